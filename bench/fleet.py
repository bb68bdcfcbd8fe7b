"""A simulated fleet in a real etcd: as many registrations as are asked for, in the form that instances write and under
leases, all by one process. Nobody listens at their addresses.
"""

from __future__ import annotations

import re
import urllib.request
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import TracebackType
from typing import Self

import grpc

from bench.measure import cpu_ns, memory_mb
from grpcmesh.etcd.v3 import etcd_pb2 as pb
from mesh.contract import descriptors
from mesh.etcd import EtcdStore, wire
from mesh.instance import Endpoint, Instance, State
from mesh.registry.record import contract_key, encode, instance_key
from mesh.store import Lease
from users.v1 import users_pb2_grpc as _linked  # noqa: F401  its descriptors are the fleet's contract

SERVICE = "users.v1.UserService"
MESH, RAW = "mesh", "raw"
"""Prefixes in etcd: what the mesh watches, and what bare stubs do, so that each change is told to one kind only."""
_DESCRIPTORS = descriptors.descriptor_set([SERVICE])
CONTRACT = descriptors.digest(_DESCRIPTORS)
_BATCH = 100  # etcd takes up to 128 operations in a transaction
_LEASES = 4
_TTL = 30.0


def instance(number: int) -> Instance:
    """Return an instance as a fleet has it: three zones, one version, an address in 10.0.0.0/8."""
    address = f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"
    return Instance(
        SERVICE,
        f"bench-{number:05}-7c9f4d",
        Endpoint(address, 50051),
        zone=f"zone-{number % 3}",
        version="1.4.2",
        started=1_760_000_000.0 + number,
        contract=CONTRACT,
    )


class Fleet:
    """The registrations of one service; `size` of them, and one more that comes and goes: `change`."""

    def __init__(self, etcd: str) -> None:
        self._etcd = etcd
        self._store = EtcdStore([Endpoint.parse(etcd)])
        self._leases: list[Lease] = []
        self._comings = 0
        self.size = 0

    async def __aenter__(self) -> Self:
        self._leases = [await self._store.lease(_TTL) for _ in range(_LEASES)]
        await self._store.put(contract_key(MESH, CONTRACT), _DESCRIPTORS)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._store.close()

    async def grow(self, size: int) -> None:
        """Register until there are so many."""
        async with grpc.aio.insecure_channel(self._etcd) as channel:
            commit = channel.unary_unary(wire.TXN.path, wire.TXN.encode, wire.TXN.decode)
            for begin in range(self.size, size, _BATCH):
                numbers = range(begin, min(size, begin + _BATCH))
                await commit(pb.TxnRequest(success=[pb.RequestOp(request_put=self._put(n)) for n in numbers]))
        self.size = size

    def changes(self, prefix: str) -> list[Callable[[], Awaitable[object]]]:
        """Return what one more instance does under a prefix: it comes, says goodbye, goes. Each is one change."""
        self._comings += 1
        guest = instance(90_000)._replace(id=f"guest-{self._comings:05}")
        key, lease = instance_key(prefix, guest), self._leases[0]
        return [
            lambda: self._store.put(key, encode(guest), lease),
            lambda: self._store.put(key, encode(guest.with_state(State.DRAINING)), lease),
            lambda: self._store.delete(key),
        ]

    def _put(self, number: int) -> pb.PutRequest:
        one = instance(number)
        return wire.put_request(instance_key(MESH, one), encode(one), self._leases[number % _LEASES].id)


class Etcd:
    """An etcd with an account of what it sends."""

    def __init__(self, folder: Path) -> None:
        from support import etcd

        self._member = etcd.Etcd(folder / f"etcd-{id(self)}")
        self.endpoint = self._member.endpoint

    def __enter__(self) -> Self:
        self._member.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._member.kill()

    def cpu_ms(self) -> float:
        """Return the CPU time that it has used."""
        return cpu_ns(self._member.pid) / 1e6

    def memory_mb(self) -> float:
        """Return its resident memory."""
        return memory_mb(self._member.pid)

    def sent(self) -> float:
        """Return the bytes that it has sent to its clients."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self._member.metrics_port}/metrics", timeout=10) as page:
            found = re.search(rb"^etcd_network_client_grpc_sent_bytes_total (\S+)", page.read(), re.MULTILINE)
        assert found is not None
        return float(found.group(1))
