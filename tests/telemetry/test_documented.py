"""What docs/ says of metrics, settings and policies is what the code does, and everything the code has is there."""

from __future__ import annotations

import json
import logging
import re
from datetime import datetime
from pathlib import Path

import pytest
import yaml
from google.protobuf import json_format
from opentelemetry.trace import NonRecordingSpan, SpanContext, use_span
from prometheus_client import Counter, Gauge, Histogram

from grpcmesh.v1 import policy_pb2
from mesh.contract import policies
from mesh.policy import DEFAULT_POLICY, BudgetPolicy
from mesh.resilience.budget import Budget
from mesh.settings import Settings
from mesh.telemetry import metrics
from mesh.telemetry.logs import Formatter
from mesh.telemetry.meters import Meter

ROOT = Path(__file__).parents[2]
KINDS = {Counter: "counter", Gauge: "gauge", Histogram: "histogram"}


def rows(page: str) -> list[list[str]]:
    """Return the cells of every table row of a page whose first cell is code."""
    lines = (ROOT / "docs" / page).read_text().splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split(" |")] for line in lines if line.startswith("| `")]
    return [[row[0].strip("`"), *row[1:]] for row in cells]


def metrics_of_the_library() -> list[Counter | Gauge | Histogram]:
    return [meter.labels() for meter in vars(metrics).values() if isinstance(meter, Meter)]


def test_every_metric_is_documented_with_its_type_and_labels_and_nothing_else_is() -> None:
    ours = metrics_of_the_library()
    told = {row[0]: (row[1], tuple(re.findall(r"`(\w+)`", row[2]))) for row in rows("metrics.md")}
    names = {m: m._name + ("_total" if isinstance(m, Counter) else "") for m in ours}
    assert told == {names[m]: (KINDS[type(m)], tuple(m._labelnames)) for m in ours}


def test_metrics_are_named_as_prometheus_asks() -> None:
    assert metrics_of_the_library()
    for metric in metrics_of_the_library():
        assert re.fullmatch(r"mesh_(client|server|registry|store|xds)_[a-z_]+", metric._name)
        assert metric._documentation.endswith(".")
        assert not {"id", "address", "endpoint", "user", "peer"} & set(metric._labelnames), "unbounded"


def test_every_expression_to_alert_on_names_metrics_that_exist() -> None:
    text = (ROOT / "docs/metrics.md").read_text()
    known = {row[0] for row in rows("metrics.md")}
    assert set(re.findall(r"mesh_(?:client|server|registry|store|xds)_\w+", text)) == known


def read_by_code() -> set[str]:
    source = (ROOT / "src/mesh/settings.py").read_text()
    plain = set(re.findall(r'read\.\w+\("(MESH_\w+)"', source))
    tls = {
        f"{name}_{part}" for name in re.findall(r'read\.tls\("(MESH_\w+)"', source) for part in ("CA", "CERT", "KEY")
    }
    secrets = {f"{name}_FILE" for name in re.findall(r'read\.secret\("(MESH_\w+)"', source)}
    return plain - set(re.findall(r'read\.tls\("(MESH_\w+)"', source)) | tls | secrets


def test_every_setting_is_documented_and_nothing_else_is() -> None:
    assert {row[0] for row in rows("settings.md")} == read_by_code()


def test_no_other_variable_of_ours_is_read_anywhere() -> None:
    allowed = read_by_code() | {"MESH_TLS", "MESH_ETCD_TLS"}  # beginnings of names
    sources = [file for file in (ROOT / "src").rglob("*.py") if "MESH_" in file.read_text()]
    named = {name for file in sources for name in re.findall(r'"(MESH_[A-Z_]+)"', file.read_text())}
    assert named - allowed == {"MESH_STACK"} & named, "every variable is read in mesh.settings, and documented"


def test_documented_defaults_of_settings_are_those_of_the_code() -> None:
    told = {row[0]: row[1].strip("`") for row in rows("settings.md")}
    # Written into the environment, the documented defaults change nothing.
    assert Settings.from_env({name: value for name, value in told.items() if value}) == Settings()
    assert {name for name, value in told.items() if value} == {
        *("MESH_ETCD", "MESH_PREFIX", "MESH_LISTEN", "MESH_WEIGHT", "MESH_TTL", "MESH_DRAIN", "MESH_SETTLE"),
        *("MESH_REFLECTION", "MESH_LOG_LEVEL", "MESH_CONCURRENCY_MIN", "MESH_CONCURRENCY_MAX"),
    }


def documented_policy() -> policy_pb2.Policy:
    """Return the table of docs/policies.md as the message it describes."""
    found: dict[str, object] = {}
    for name, value, *_ in rows("policies.md"):
        part, _, field = name.rpartition(".")
        text = value.strip("`")
        told: object = float(text) if re.fullmatch(r"[\d.]+", text) else {"false": False, "true": True}.get(text, text)
        told = [text] if field.endswith("codes") else told
        target = found.setdefault(part, {}) if part else found
        assert isinstance(target, dict)
        target[field] = int(told) if isinstance(told, float) and told.is_integer() else told
    return json_format.ParseDict(found, policy_pb2.Policy())


def test_the_documented_defaults_of_policies_are_those_of_the_code() -> None:
    assert policies.merge(DEFAULT_POLICY, documented_policy()) == DEFAULT_POLICY


def test_every_field_of_a_policy_is_documented() -> None:
    fields = set()
    for field in policy_pb2.Policy.DESCRIPTOR.fields:
        inner = field.message_type
        mine = inner is not None and inner.file is policy_pb2.DESCRIPTOR
        fields |= {f"{field.name}.{f.name}" for f in inner.fields} if mine else {field.name}
    assert {row[0] for row in rows("policies.md")} == fields


def test_the_documented_budget_is_that_of_the_code() -> None:
    text = (ROOT / "docs/policies.md").read_text()
    told = dict(re.findall(r"^\| (share|per second|window) \| `([0-9.]+)s?` ", text, re.M))
    assert BudgetPolicy(float(told["share"]), float(told["per second"]), float(told["window"])) == BudgetPolicy()


def test_the_documented_attempts_while_every_call_fails_are_those_of_the_code() -> None:
    table = re.findall(
        r"^\| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$", (ROOT / "docs/policies.md").read_text(), re.M
    )
    assert len(table) == 5
    for rate, *told in [[float(cell) for cell in row] for row in table]:
        budget, calls, attempts, found = Budget(BudgetPolicy(), 0.0), 0, 0, []
        for seconds in (10, 60, 300):
            while calls / rate < seconds:
                budget.deposit(calls / rate)
                made = 1
                while made < DEFAULT_POLICY.retry.max_attempts and budget.withdraw(calls / rate):
                    made += 1
                calls, attempts = calls + 1, attempts + made
            found.append(attempts / calls)
        assert found == pytest.approx(told, abs=0.01)


@pytest.mark.parametrize(
    "page",
    ["metrics.md", "settings.md", "policies.md", "balancing.md", "logs-and-traces.md", "faq-etcd3.md", "threats.md"],
)
def test_links_between_pages_lead_somewhere(page: str) -> None:
    for link in re.findall(r"\]\((?!https?:)([^)#]+)", (ROOT / "docs" / page).read_text()):
        assert (ROOT / "docs" / link).exists(), link


def test_the_documented_log_line_is_one_that_we_write() -> None:
    (told,) = re.findall(r"^\{.*\}$", (ROOT / "docs/logs-and-traces.md").read_text(), re.M)
    example = json.loads(told)
    record = logging.LogRecord(example["log.logger"], logging.INFO, "f.py", 1, example["message"], (), None)
    record.created = datetime.fromisoformat(example["@timestamp"]).timestamp()
    record.process = example["process.pid"]
    record.__dict__["event.action"] = example["event.action"]
    context = SpanContext(int(example["trace.id"], 16), int(example["span.id"], 16), is_remote=False)
    with use_span(NonRecordingSpan(context)):
        assert Formatter(example["service.name"], example["service.node.name"]).format(record) == told


def test_the_documented_filebeat_input_is_yaml_and_expands_our_names() -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs/logs-and-traces.md").read_text(), re.S)
    (told,) = yaml.safe_load(text)["filebeat.inputs"]
    parser = told["parsers"][0]["ndjson"]
    assert parser == {"target": "", "overwrite_keys": True, "expand_keys": True, "add_error_key": True}


def test_every_defence_names_a_test_that_exists() -> None:
    told = re.findall(r"`(tests/[\w/.]+)`", (ROOT / "docs/threats.md").read_text())
    assert len(told) >= 10
    for name in told:
        assert "def test_" in (ROOT / name).read_text()
