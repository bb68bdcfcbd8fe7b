"""What happens to endpoints: broken, hung, ejected, renewed. And what the library below writes, which we rely on."""

from __future__ import annotations

import asyncio
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc import aio

import mesh
from mesh.client.ended import COLLECTED, LOCALLY_CANCELLED, code_of, was_cancelled_here
from mesh.credentials import server_credentials
from mesh.instance import Endpoint, Instance
from mesh.memory import MemoryStore
from mesh.policy import BreakerPolicy, MethodPolicy
from mesh.registry.record import encode, instance_key
from mesh.settings import Settings
from support.certificates import Authority
from support.fleet import IDEMPOTENT, QUICK, SERVICE, SS, UU, echo, fleet, refuse, slow, until


def run(story: Any) -> None:
    asyncio.run(asyncio.wait_for(story, 60))


class Clock:
    """Real, but can be pushed ahead."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time() + self.ahead

    def time(self) -> float:
        return 0.0

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


BREAKER = BreakerPolicy(consecutive_failures=3, open_for=30.0, half_open_permits=1)


def test_a_sick_endpoint_is_ejected_and_comes_back_after_a_probe() -> None:
    async def story() -> None:
        clock = Clock()
        policies = {UU: MethodPolicy(idempotent=True, retry=QUICK, breaker=BREAKER)}
        async with fleet(3) as hosts:
            channel = mesh.connect(SERVICE, endpoints=[h.address for h in hosts], policies=policies, clock=clock)
            async with channel:
                await until(lambda: len(channel._pool.roster.pickable) == 3)
                unary = channel.unary_unary(UU)
                hosts[0].answer = refuse("UNAVAILABLE")
                for _ in range(30):
                    assert await unary(b"x") == b"x"
                assert hosts[0].calls == 3
                hosts[0].answer = echo
                for _ in range(30):
                    await unary(b"x")
                assert hosts[0].calls == 3
                clock.ahead = 40.0
                for _ in range(30):
                    await unary(b"x")
                assert hosts[0].calls > 10

    run(story())


def test_when_all_are_sick_ejection_is_ignored() -> None:
    async def story() -> None:
        policies = {UU: MethodPolicy(breaker=BREAKER)}
        async with fleet(3) as hosts:
            channel = mesh.connect(SERVICE, endpoints=[h.address for h in hosts], policies=policies)
            async with channel:
                for host in hosts:
                    host.answer = refuse("INTERNAL")
                codes = Counter()
                for _ in range(60):
                    codes[(await channel.unary_unary(UU)(b"x").code()).name] += 1
                assert codes == {"INTERNAL": 60}
                for host in hosts:
                    host.answer = echo
                for _ in range(9):
                    assert await channel.unary_unary(UU)(b"x") == b"x"

    run(story())


def test_short_deadlines_do_not_eject_a_healthy_endpoint() -> None:
    async def story() -> None:
        async with fleet(2) as hosts:
            channel = mesh.connect(
                SERVICE, endpoints=[h.address for h in hosts], policies={UU: MethodPolicy(breaker=BREAKER)}
            )
            async with channel:
                await until(lambda: len(channel._pool.roster.pickable) == 2)
                for host in hosts:
                    host.answer = slow(0.2)
                for _ in range(10):
                    assert await channel.unary_unary(UU)(b"x", timeout=0.02).code() is grpc.StatusCode.DEADLINE_EXCEEDED
                assert all(slot.breaker.is_closed for slot in channel._pool.roster.slots)

    run(story())


_PROGRAM = textwrap.dedent("""
    import asyncio, grpc
    from grpc import aio

    async def echo(message, context):
        await asyncio.sleep(0.002)
        return message

    async def main():
        server = aio.server(options=[
            ("grpc.so_reuseport", 0),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.min_ping_interval_without_data_ms", 500),
        ])
        handlers = {"UU": grpc.unary_unary_rpc_method_handler(echo)}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t.Test", handlers),))
        print(server.add_insecure_port("127.0.0.1:0"), flush=True)
        await server.start()
        await server.wait_for_termination()

    asyncio.run(main())
""")


@contextmanager
def processes(size: int) -> Iterator[list[tuple[subprocess.Popen[bytes], str]]]:
    started = [subprocess.Popen([sys.executable, "-c", _PROGRAM], stdout=subprocess.PIPE) for _ in range(size)]
    try:
        yield [(p, f"127.0.0.1:{int(p.stdout.readline())}") for p in started if p.stdout]
    finally:
        for process in started:
            process.kill()
            process.wait()
            if process.stdout:
                process.stdout.close()


async def load(unary: Any, seconds: float, rate: float, timeout: float = 5.0) -> list[Any]:
    """Open-loop calls for so long; return the calls, ended."""
    loop, calls = asyncio.get_running_loop(), []
    end = loop.time() + seconds
    while loop.time() < end:
        calls.append(unary(b"x", timeout=timeout))
        await asyncio.sleep(1 / rate)
    for call in calls:
        await call.code()
    return calls


@pytest.mark.alone
def test_killing_an_instance_under_load_fails_no_idempotent_call() -> None:
    async def story() -> None:
        with processes(3) as instances:
            addresses = [address for _, address in instances]
            async with mesh.connect(SERVICE, endpoints=addresses, policies=IDEMPOTENT) as channel:
                await asyncio.wait_for(channel.channel_ready(), 5)
                loading = asyncio.ensure_future(load(channel.unary_unary(UU), 1.5, 200))
                await asyncio.sleep(0.7)
                instances[0][0].kill()
                codes = Counter([(await call.code()).name for call in await loading])
                assert set(codes) == {"OK"}, codes
                assert len(channel._pool.roster.pickable) == 2

    run(story())


@pytest.mark.alone
def test_a_hung_instance_is_left_within_three_seconds_and_taken_back() -> None:
    async def story(instances: list[tuple[subprocess.Popen[bytes], str]]) -> None:
        # Only servers of the mesh, which bring a contract, are watched so closely: others would take it amiss.
        async with MemoryStore() as store:
            for number, (_, address) in enumerate(instances):
                instance = Instance(SERVICE, f"i{number}", Endpoint.parse(address), contract="0" * 64)
                await store.put(instance_key("mesh", instance), encode(instance))
            async with mesh.connect(SERVICE, store=store, settings=Settings(), policies=IDEMPOTENT) as channel:
                pickable = channel._pool.roster
                await until(lambda: len(pickable.pickable) == 3)
                loading = asyncio.ensure_future(load(channel.unary_unary(UU), 5.0, 100))
                instances[0][0].send_signal(signal.SIGSTOP)
                await until(lambda: len(pickable.pickable) == 2, seconds=3.0)
                instances[0][0].send_signal(signal.SIGCONT)
                await until(lambda: len(pickable.pickable) == 3, seconds=3.0)
                codes = Counter([(await call.code()).name for call in await loading])
                assert set(codes) == {"OK"}, codes

    with processes(3) as instances:
        run(story(instances))


def test_renewed_certificates_are_used_and_no_call_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mesh.client.pool._RENEWAL_PAUSE", 0.05)

    async def story() -> None:
        authority = Authority(tmp_path / "ca")
        tls = authority.issue("party")
        settings = Settings(tls=tls)
        async with fleet(2, lambda: server_credentials(tls)) as hosts:
            channel = mesh.connect(
                SERVICE, endpoints=[h.address for h in hosts], settings=settings, policies=IDEMPOTENT
            )
            async with channel:
                await until(lambda: len(channel._pool.roster.pickable) == 2)
                stream = channel.stream_stream(SS)()
                await stream.write(b"a")
                assert await stream.read() == b"a"
                before = {slot.connection for slot in channel._pool.roster.slots}
                loading = asyncio.ensure_future(load(channel.unary_unary(UU), 1.0, 100))
                fresh = authority.issue("fresh")
                for new, old in ((fresh.cert, tls.cert), (fresh.key, tls.key)):
                    assert new is not None
                    assert old is not None
                    shutil.copy(new, old)
                await until(lambda: not before & {slot.connection for slot in channel._pool.roster.slots})
                assert Counter([(await call.code()).name for call in await loading]).keys() == {"OK"}
                await stream.write(b"b")
                assert await stream.read() == b"b"

    run(story())


def test_without_a_certificate_the_reason_is_an_unreachable_instance(tmp_path: Path) -> None:
    async def story() -> None:
        tls = Authority(tmp_path / "ca").issue("party")
        async with (
            fleet(1, lambda: server_credentials(tls)) as hosts,
            mesh.connect(SERVICE, endpoints=[hosts[0].address]) as channel,
        ):
            with pytest.raises(mesh.CallError, match="can be reached"):
                await channel.unary_unary(UU)(b"x", timeout=0.5)

    run(story())


# -- what grpc writes, and we read


def test_who_cancelled_is_told_by_the_details() -> None:
    async def story() -> None:
        async with fleet(1) as hosts, aio.insecure_channel(hosts[0].address) as plain:
            hosts[0].answer = slow(10)
            call = plain.unary_unary(UU)(b"x")
            call.cancel()
            assert await call.details() == LOCALLY_CANCELLED
            hosts[0].answer = refuse("CANCELLED", "not by you")
            assert not was_cancelled_here("CANCELLED", await plain.unary_unary(UU)(b"x").details())
            assert was_cancelled_here("CANCELLED", COLLECTED)

    run(story())


def test_the_code_of_an_ended_call_is_read_without_waiting() -> None:
    async def story() -> None:
        async with fleet(1) as hosts, aio.insecure_channel(hosts[0].address) as plain:
            good = plain.unary_unary(UU)(b"x")
            assert not good._cython_call.is_ok()
            await good
            assert good._cython_call.is_ok()
            hosts[0].answer = refuse("NOT_FOUND")
            bad = plain.unary_unary(UU)(b"x")
            with pytest.raises(aio.AioRpcError):
                await bad
            assert (code_of(good), code_of(bad)) == (grpc.StatusCode.OK, grpc.StatusCode.NOT_FOUND)

    run(story())


@pytest.mark.alone
def test_a_silent_port_does_not_hold_calls_up() -> None:
    """A listener that never answers: connecting succeeds, HTTP/2 does not."""

    async def story() -> None:
        with socket.socket() as silent:
            silent.bind(("127.0.0.1", 0))
            silent.listen(16)
            async with fleet(1) as hosts:
                addresses = [f"127.0.0.1:{silent.getsockname()[1]}", hosts[0].address]
                async with mesh.connect(SERVICE, endpoints=addresses) as channel:
                    loop = asyncio.get_running_loop()
                    before = loop.time()
                    for _ in range(20):
                        assert await channel.unary_unary(UU)(b"x") == b"x"
                    assert loop.time() - before < 1.0

    run(story())
