"""The machines of a mesh client under virtual time and seeded chance: what retries, budgets, breakers and balancers do
to thousands of clients and servers in the worst minute of their lives, in seconds and the same every time.

No clock, no chance, no network of its own: time is a `Timeline`, and dice are given. Read `scenario` first (what can
be simulated), then `client` beside mesh.client.call, then `world`.
"""

from mesh.simulation.reading import ScenarioError, read_scenarios
from mesh.simulation.report import Phase, Report, Series, report_of
from mesh.simulation.scenario import Scenario
from mesh.simulation.world import simulate

__all__ = ["Phase", "Report", "Scenario", "ScenarioError", "Series", "read_scenarios", "report_of", "simulate"]
