from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.errors import MeshError, Refusal, SettingsError
from mesh.telemetry.logs import Formatter

REQUIRED = {"@timestamp", "log.level", "message", "ecs.version"}
SECRET = "Ada Lovelace"


def record(message: object, *args: object, error: BaseException | None = None, **extra: object) -> logging.LogRecord:
    about = logging.LogRecord("mesh.test", logging.INFO, "f.py", 1, message, args, None)
    if error is not None:
        about.exc_info = (type(error), error, error.__traceback__)
    about.__dict__.update(extra)
    return about


def line(about: logging.LogRecord, *, candid: bool = False) -> dict[str, Any]:
    """Format a record; check what is true of every line; return its fields."""
    text = Formatter("users.v1.UserService", "users-1", "1.2", candid=candid).format(about)
    assert text.isascii(), "no control character, line break or bidirectional mark can be in it"
    assert text.isprintable()
    fields = json.loads(text)
    assert isinstance(fields, dict)
    assert fields.keys() >= REQUIRED
    assert list(fields)[:3] == ["@timestamp", "log.level", "message"], "the order that the ECS logging spec asks for"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", fields["@timestamp"])
    return fields


def raised(error: BaseException, cause: BaseException | None = None) -> BaseException:
    try:
        raise error from cause
    except BaseException as e:
        return e


def test_a_line_names_who_speaks() -> None:
    fields = line(record("hello"))
    assert fields["service.name"] == "users.v1.UserService"
    assert fields["service.version"] == "1.2"
    assert fields["service.node.name"] == "users-1"
    assert fields["event.dataset"] == "users.v1.UserService.log"
    assert (fields["log.level"], fields["log.logger"], fields["message"]) == ("info", "mesh.test", "hello")


@given(st.text(), st.text())
def test_whatever_is_logged_is_one_line_and_comes_back_as_it_was(message: str, value: str) -> None:
    fields = line(record("%s", message, **{"mesh.value": value}))
    if "@" not in message:
        assert fields["message"] == message


@pytest.mark.parametrize(
    "hostile",
    [
        'x"}\n{"@timestamp":"2000-01-01T00:00:00.000Z","log.level":"info","message":"all is well","ecs.version":"8"}',
        "\x1b[2J\x1b]0;owned\x07 red \x1b[31m",
        "a\r\nb\x85c\u2028d\u2029e\x00f",
        "\u202eevil\u2066",
        "lone \ud800 surrogate",
        '"service.name":"other"',
    ],
)
def test_hostile_text_stays_inside_of_its_field(hostile: str) -> None:
    assert line(record(hostile))["message"] == hostile
    assert line(record("name: %r", hostile))["message"] == f"name: {hostile!r}"
    assert line(record("x", **{"mesh.peer": hostile}))["mesh.peer"] == hostile


def test_a_huge_message_is_cut_and_says_so() -> None:
    message = line(record("x" * 1_000_000))["message"]
    assert len(message) < 9_000
    assert message.endswith("(991808 more characters)")


def test_arguments_that_do_not_fit_cost_no_record() -> None:
    class Awkward:
        def __str__(self) -> str:
            raise ValueError("no")

    assert line(record("%d of %d", 1))["message"] == "%d of %d (its arguments do not fit)"
    assert line(record("%s", Awkward()))["message"] == "%s (its arguments do not fit)"
    assert line(record(Awkward()))["message"] == "(a message that cannot be shown)"
    assert line(record("x", **{"mesh.thing": Awkward()}))["mesh.thing"] == "(a value that cannot be shown)"


def test_only_extras_that_were_thought_of_are_told() -> None:
    extras = {
        "event.action": "registered",
        "event.duration": 1_500_000,
        "mesh.attempts": ["127.0.0.1:1 UNAVAILABLE 3 ms"],
        "mesh.ratio": float("nan"),
        "user.name": SECRET,
        "user.email": "ada@example.org",
        "url.path": "/v1/users/ada",
        "mesh.Odd key": SECRET,
        "request": SECRET,
        "labels": {"a": SECRET},
        "message.x": SECRET,
    }
    fields = line(record("x", **extras))
    assert fields["event.action"] == "registered"
    assert fields["event.duration"] == 1_500_000
    assert fields["mesh.attempts"] == ["127.0.0.1:1 UNAVAILABLE 3 ms"]
    assert fields["mesh.ratio"] == "nan"
    assert SECRET not in json.dumps(fields)
    assert "ada" not in json.dumps(fields)


def test_extras_cannot_change_who_speaks_and_when() -> None:
    told = {"service.name": "other.v1.Other", "@timestamp": "2000", "log.level": "debug", "ecs.version": "0"}
    fields = line(record("x", **told))
    assert fields["service.name"] == "users.v1.UserService"
    assert fields["service.target.name"] == "other.v1.Other"
    assert fields["log.level"] == "info"
    assert fields["@timestamp"] != "2000"


def test_the_text_of_foreign_errors_is_withheld_and_their_stack_is_told() -> None:
    error = raised(ValueError(f"cannot take {SECRET}"), raised(KeyError(SECRET)))
    fields = line(record("failed: %s", error, error=error))
    assert fields["message"] == "failed: ValueError"
    assert fields["error.type"] == fields["error.message"] == "ValueError"
    stack = fields["error.stack_trace"]
    assert stack.index("KeyError") < stack.index("ValueError")
    assert "test_logs.py" in stack
    assert SECRET not in json.dumps(fields)


def test_errors_inside_of_a_group_are_told_by_type() -> None:
    group = raised(ExceptionGroup(SECRET, [raised(ValueError(SECRET)), raised(OSError(2, "No such file"))]))
    stack = line(record("x", error=group))["error.stack_trace"]
    assert "1 of 2 in the group" in stack
    assert "FileNotFoundError" in stack
    assert SECRET not in stack


def test_errors_that_cause_each_other_in_a_circle_end() -> None:
    one, two = raised(ValueError("1")), raised(ValueError("2"))
    one.__cause__, two.__cause__ = two, one
    assert line(record("x", error=one))["error.stack_trace"].count("ValueError") < 20


def test_our_own_errors_and_the_systems_keep_their_text() -> None:
    assert line(record("x", error=raised(MeshError("do this"))))["error.message"] == "do this"
    assert "No such file" in line(record("x", error=raised(OSError(2, "No such file", "/x"))))["error.message"]


def test_a_refusal_is_for_its_caller_and_not_for_the_log() -> None:
    refusal = raised(Refusal(grpc.StatusCode.ALREADY_EXISTS, f"{SECRET} is here already", "TAKEN", "users.v1"))
    fields = line(record("refused: %s", refusal, error=refusal))
    assert SECRET not in json.dumps(fields)
    assert fields["error.type"] == "mesh.errors.Refusal"


def test_every_extra_that_our_code_gives_is_told() -> None:
    source = Path(__file__).parents[2] / "src"
    texts = [file.read_text() for file in source.rglob("*.py") if file.parent.name != "telemetry"]
    given = {
        name
        for text in texts
        for name in re.findall(r'"((?:event|service|mesh|xds|server|error|etcd)\.[\w.]+)":', text)
    }
    assert "event.action" in given
    assert {name for name in given if line(record("x", **{name: "told"})).get(name) != "told"} == {"service.name"}


def test_debug_keeps_the_text_of_errors_for_developers() -> None:
    fields = line(record("x", error=raised(ValueError("the whole story"))), candid=True)
    assert fields["error.message"] == "the whole story"
    assert "the whole story" in fields["error.stack_trace"]


@pytest.mark.parametrize("candid", [True, False])
def test_email_addresses_are_blotted_out_everywhere(candid: bool) -> None:
    fields = line(
        record("hi <Ada.L+x@mail.example.org>", error=raised(OSError("a@b.cd")), **{"mesh.x": ["ž@b.cd"]}),
        candid=candid,
    )
    assert "@" not in json.dumps({k: v for k, v in fields.items() if k != "@timestamp"})
    assert fields["message"] == "hi <(email)>"


def test_asyncio_does_not_tell_the_results_of_tasks() -> None:
    about = record(f"Task exception was never retrieved\nfuture: <Task result={SECRET}>")
    about.name = "asyncio"
    assert line(about)["message"] == "Task exception was never retrieved"


PROCESS = """
import asyncio, logging, sys, threading, warnings
from mesh.telemetry import logs
logging.basicConfig()
logs.configure("debug", "first", "one")
logs.configure("INFO", "users.v1.UserService", "users-1", service_version="1.2")
logging.getLogger("mesh.a").info("once")
logging.getLogger("mesh.a").debug("not told")
warnings.warn("beware\\nof lines")
thread = threading.Thread(target=lambda: 1 / 0, name="worker")
thread.start(); thread.join()

async def main():
    asyncio.get_running_loop().set_exception_handler(logs.on_loop_error)
    async def fail(): raise ValueError("Ada Lovelace")
    task = asyncio.create_task(fail())
    await asyncio.wait([task])
    del task

asyncio.run(main())
class Loud:
    def __del__(self): raise ValueError("Ada Lovelace")
Loud()
raise RuntimeError("Ada Lovelace")
"""


def test_a_process_says_everything_as_lines_of_json_its_last_words_too() -> None:
    done = subprocess.run([sys.executable, "-c", PROCESS], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stdout == ""
    lines = [json.loads(text) for text in done.stderr.splitlines()]
    assert all(fields.keys() >= REQUIRED for fields in lines)
    assert [(fields["log.logger"], fields.get("error.type")) for fields in lines] == [
        ("mesh.a", None),
        ("py.warnings", None),
        ("mesh.process", "ZeroDivisionError"),
        ("asyncio", "ValueError"),
        ("mesh.process", "ValueError"),
        ("mesh.process", "RuntimeError"),
    ]
    assert "Lovelace" not in done.stderr.replace('raise RuntimeError(\\"Ada Lovelace\\")', "")


def test_a_level_that_is_none_is_told_in_one_sentence() -> None:
    from mesh.telemetry import logs

    with pytest.raises(
        SettingsError, match=r"^MESH_LOG_LEVEL is 'LOUD': write DEBUG, INFO, WARNING, ERROR or CRITICAL$"
    ):
        logs.configure("LOUD")


GONE = """
import logging, sys
from mesh.telemetry import logs
logs.configure("INFO", "s", "n", sys.stdout)
for _ in range(1000):
    logging.getLogger("x").info("x" * 1000)
sys.stderr.write("survived")
sys.stderr.flush()
import os; os._exit(0)
"""


def test_a_stream_that_is_gone_stops_nobody() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run([sys.executable, "-c", GONE], stdout=writing, stderr=subprocess.PIPE, timeout=60)
    finally:
        os.close(writing)
    assert done.stderr == b"survived"


def test_loop_errors_without_an_exception_are_told_too(caplog: pytest.LogCaptureFixture) -> None:
    from mesh.telemetry import logs

    async def story() -> None:
        logs.on_loop_error(asyncio.get_running_loop(), {"message": "socket.send() raised"})

    asyncio.run(story())
    assert "socket.send() raised" in caplog.text
