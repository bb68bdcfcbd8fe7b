"""How `mesh up` looks: progress while it starts, one table and what to try, then a line per event.

On a terminal the progress is live and gives way to the table; elsewhere every line is printed once and stays.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from typing import Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from mesh.cli.process import Event, Phase, Process, told_seconds
from mesh.cli.samples import Sample
from mesh.clock import Clock

COLOURS = {
    Phase.WAITING: "dim",
    Phase.STARTING: "yellow",
    Phase.READY: "green",
    Phase.ENDED: "red",
    Phase.LEAVING: "yellow",
    Phase.GONE: "dim",
}


class Report(Protocol):
    """Where the story of a stack is told."""

    def begin(self, processes: Sequence[Process]) -> None:
        """The stack starts; these are its processes, in the order they are shown."""
        ...

    def tell(self, event: Event) -> None:
        """A process has changed its phase."""
        ...

    def ready(self, processes: Sequence[Process], samples: Sequence[Sample], notes: Sequence[str]) -> None:
        """All of them serve."""
        ...

    def say(self, text: str) -> None:
        """Something worth a line."""
        ...

    def end(self) -> None:
        """Nothing live is shown any more. Harmless when repeated."""
        ...


class PlainReport:
    """One line per event, for files, pipes and dumb terminals; also the terminal's own form once the stack serves."""

    def __init__(self, console: Console, clock: Clock) -> None:
        self.console = console
        self._clock = clock
        self._width = 8
        self._serving = False

    def begin(self, processes: Sequence[Process]) -> None:
        """Remember how wide the names are."""
        self._width = max((len(process.name) for process in processes), default=8)

    def tell(self, event: Event) -> None:
        """Print one line."""
        text = event.text or str(event.phase)
        if event.phase is Phase.READY:
            text = f"{'ready again' if self._serving else 'ready'} after {told_seconds(event.after)}"
        elif event.phase is Phase.STARTING and self._serving:
            return  # told by the line that said when it starts again
        elif event.phase is Phase.LEAVING:
            return  # told when it has left
        self._line(event.name, text, COLOURS[event.phase])

    def ready(self, processes: Sequence[Process], samples: Sequence[Sample], notes: Sequence[str]) -> None:
        """Print the table and what to try."""
        self._serving = True
        self.console.print()
        self.console.print(process_table(processes))
        for sample in samples:
            self.console.print()
            self.console.print(Text(f"# {sample.title}", style="dim"))
            # Neither wrapped nor styled: it is there to be copied.
            self.console.print(Text(sample.text, style="cyan"), soft_wrap=True)
        self.console.print()
        for note in notes:
            self.console.print(Text(note, style="dim"), soft_wrap=True)
        self.console.print()

    def say(self, text: str) -> None:
        """Print one line that is of no process."""
        self._line("mesh", text, "bold")

    def end(self) -> None:
        """Nothing is live here."""

    def _line(self, name: str, text: str, style: str) -> None:
        moment = datetime.datetime.fromtimestamp(self._clock.time()).strftime("%H:%M:%S")
        line = Text.assemble((moment, "dim"), "  ", name.ljust(self._width), "  ", (text, style))
        self.console.print(line, soft_wrap=True)


class TerminalReport(PlainReport):
    """The same, with a live list of the processes while they start."""

    def __init__(self, console: Console, clock: Clock) -> None:
        super().__init__(console, clock)
        self._live: Live | None = None

    def begin(self, processes: Sequence[Process]) -> None:
        """Show the list until `ready` or `end`."""
        super().begin(processes)
        show = progress(processes, Spinner("dots", style="yellow"))
        self._live = Live(get_renderable=show, console=self.console, transient=True, refresh_per_second=10)
        self._live.start()

    def tell(self, event: Event) -> None:
        """Print a line, except for what the live list shows."""
        if self._live is None or event.phase is Phase.ENDED:
            super().tell(event)

    def ready(self, processes: Sequence[Process], samples: Sequence[Sample], notes: Sequence[str]) -> None:
        """Replace the live list by the table."""
        self.end()
        super().ready(processes, samples, notes)

    def end(self) -> None:
        """Take the live list away."""
        if self._live is not None:
            self._live.stop()
            self._live = None


def progress(processes: Sequence[Process], spinner: Spinner) -> Callable[[], RenderableType]:
    """Return what draws the list of starting processes; a process that is ready keeps the time it took."""
    took: dict[str, float] = {}

    def show() -> RenderableType:
        grid = Table.grid(padding=(0, 2))
        for process in processes:
            if process.phase is Phase.READY:
                took.setdefault(process.name, process.age)
            mark: RenderableType = Text("·", style="dim")
            if process.phase is Phase.READY:
                mark = Text("✓", style="green")
            elif process.phase is Phase.STARTING:
                mark = spinner
            seconds = took.get(process.name, process.age)
            time = "" if process.phase is Phase.WAITING else told_seconds(seconds)
            state = Text(str(process.phase), style=COLOURS[process.phase])
            grid.add_row(mark, process.name, state, Text(time, style="dim"), Text(process.address))
        return Group(Text("Starting the mesh", style="bold"), grid)

    return show


def process_table(processes: Sequence[Process]) -> Table:
    """Return the table of processes."""
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="dim")
    for column in ("PROCESS", "STATE", "ADDRESS"):
        table.add_column(column, no_wrap=True)
    table.add_column("PID", justify="right", no_wrap=True)
    for process in processes:
        state = Text(str(process.phase), style=COLOURS[process.phase])
        table.add_row(process.name, state, process.address, str(process.pid or ""))
    return table
