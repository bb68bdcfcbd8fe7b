"""Every line that the stack writes, Envoy's and the control plane's too, is ready for Filebeat and Logstash."""

from __future__ import annotations

import json

import pytest

from support.entrances import ask
from support.stack import Stack

pytestmark = [pytest.mark.stack, pytest.mark.xdist_group("stack")]


def test_every_line_is_json_in_the_elastic_common_schema(stack: Stack) -> None:
    ask(stack.edge, "GET", "/v1/users", None)
    ask(stack.edge, "POST", "/v1/users", b'{"name":"\\u001b[31m\\n{\\"log.level\\":')
    ask(stack.edge, "GET", "/no\x1b[31m%0a/where", None)

    files = [file for file in (stack.data / "logs").glob("*.log") if file.stem != "etcd"]  # etcd writes zap's JSON
    assert {file.stem for file in files} >= {"envoy", "control-plane"}
    for file in files:
        # Bytes, because str.splitlines would split at more than Filebeat does. The last line may be half written.
        for line in file.read_bytes().split(b"\n")[:-1]:
            fields = json.loads(line)
            assert fields.keys() >= {"@timestamp", "log.level", "message", "ecs.version", "event.dataset"}, line
