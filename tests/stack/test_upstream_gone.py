"""Instances that hang or are gone: the edge says so in JSON, in time, and serves again when they are back."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import grpc
import pytest

from support.entrances import ask, call_bytes
from support.stack import Stack

pytestmark = [pytest.mark.stack, pytest.mark.alone, pytest.mark.xdist_group("stack")]

TIMEOUT = 5.0  # of users.v1.UserService, by its contract
MARGIN = 0.5


@contextmanager
def stopped(pids: list[int]) -> Iterator[None]:
    """Hang processes for a while."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def test_hung_instances_are_told_in_json_within_the_timeout(stack: Stack) -> None:
    with stopped([instance.pid for instance in stack.instances]):
        begin = time.monotonic()
        answer = ask(stack.edge, "GET", "/v1/users/nobody")
        taken = time.monotonic() - begin
        code, details, _ = call_bytes(stack.edge, "GetUser", b"\x0a\x01x")

    assert answer.status in (503, 504), answer
    assert answer.json()["message"]
    assert taken <= TIMEOUT + MARGIN
    assert code in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE), details
    stack.wait_whole()
    assert_serving_again(stack)


def test_dead_instances_are_told_in_json_at_once(stack: Stack) -> None:
    with ExitStack() as held:
        instances = stack.instances
        for instance in instances:
            held.enter_context(stack.held(instance.name))
        for instance in instances:
            os.kill(instance.pid, signal.SIGKILL)
        begin = time.monotonic()
        answer = ask(stack.edge, "GET", "/v1/users/nobody")
        taken = time.monotonic() - begin
        code, details, _ = call_bytes(stack.edge, "GetUser", b"\x0a\x01x")

    assert answer.status == 503, answer
    assert answer.json()["message"]
    assert taken <= TIMEOUT + MARGIN
    assert code == grpc.StatusCode.UNAVAILABLE, details
    assert details
    stack.wait_whole()
    assert_serving_again(stack)


def assert_serving_again(stack: Stack, within: float = 5.0) -> None:
    """The edge finds the instances again by itself."""
    begin = time.monotonic()
    while (answer := ask(stack.edge, "GET", "/v1/users/nobody")).status != 404:
        assert time.monotonic() - begin < within, answer
        time.sleep(0.05)
    print(f"serving again after {time.monotonic() - begin:.2f} s")
