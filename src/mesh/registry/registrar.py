"""Keeps us known to the others: our instances are in the store, under a lease, whatever happens to it.

It never gives up. A lost lease is replaced, a key that was deleted, revoked or overwritten is put again within
milliseconds, because we watch our own keys. Whose a key is decides `claim`; here is only the waiting.

An instance id belongs to one living process. Whoever finds it taken by another address waits for that one's lease to
run out, or takes over at once where nobody listens there any more; otherwise `start` raises DuplicateInstance.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Sequence

from mesh.clock import Clock, Dice
from mesh.errors import DuplicateInstance, LeaseLost, StoreDenied, StoreError
from mesh.instance import Endpoint, Instance, State, check_instance_id, check_service_name
from mesh.registry.claim import Claim, decide
from mesh.registry.mirror import Mirror
from mesh.registry.record import contract_key, decode, encode, instance_key
from mesh.resilience.reconnect import Reconnect
from mesh.store import Lease, Store
from mesh.telemetry.metrics import REGISTERED, REGISTRATIONS
from mesh.wallclock import CLOCK, DICE

_log = logging.getLogger("mesh.registry")

# Longest time in seconds that leaving, or telling a new state, waits for a store that does not answer. What was not
# told ends with the lease.
_FAREWELL = 3.0
# Seconds beyond the TTL after which a dead predecessor's lease has surely ended (etcd looks twice a second).
_LEASE_SLACK = 2.0
_PROBE = 1.0


class Registrar:
    """Registers instances (all of one process) and keeps them registered until `leave`.

    contract: their FileDescriptorSet, put beside them by its digest.
    ttl: seconds after which others forget us if we die without a word.

    `_instances` is what should be in the store; `_lease` the present lease, `_lost` done when it has ended, `_held` all
    leases so far; `_news` is set when something about our keys changed.
    """

    def __init__(
        self,
        store: Store,
        instances: Sequence[Instance],
        *,
        prefix: str = "mesh",
        ttl: float = 10.0,
        contract: bytes = b"",
        clock: Clock = CLOCK,
        dice: Dice = DICE,
    ) -> None:
        for instance in instances:
            check_service_name(instance.service)
            check_instance_id(instance.id)
        self._store = store
        self._instances = tuple(instances)
        self._prefix = prefix
        self._ttl = ttl
        self._contract = contract
        self._clock = clock
        self._dice = dice
        self._lease: Lease | None = None
        self._lost: asyncio.Task[bool] | None = None
        self._held: set[int] = set()
        self._news = asyncio.Event()
        self._writing = asyncio.Lock()
        self._mirrors: list[Mirror] = []
        self._task: asyncio.Task[None] | None = None
        self._complaint = ""
        self.registered = False

    def __repr__(self) -> str:
        names = ", ".join(f"{i.service}/{i.id} {i.state}" for i in self._instances)
        return f"Registrar({names}, registered={self.registered})"

    async def start(self, *, wait: bool = True) -> None:
        """Register, and stay registered. With `wait`, return when it is done, however long the store is away.

        Raises, with `wait`, StoreDenied if the store refuses us, and DuplicateInstance if another living process has
        our id. Without, it keeps trying and logs.
        """
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._mirrors = [
            Mirror(self._store, instance_key(self._prefix, i), lambda *_: self._news.set(), self._clock, self._dice)
            for i in self._instances
        ]
        self._task = asyncio.create_task(self._run(done), name="mesh-registrar")
        if not wait:
            done.add_done_callback(lambda f: f.cancelled() or f.exception())
            return
        try:
            await done
        except BaseException:
            await self.leave()
            raise

    async def set_state(self, state: State) -> bool:
        """Tell another state; return whether the store took it in time. If not, it is told as soon as possible."""
        self._instances = tuple(i.with_state(state) for i in self._instances)
        if self._lease is None:
            return False
        try:
            async with asyncio.timeout(_FAREWELL):
                await self._ensure(self._lease)
        except (StoreError, TimeoutError) as e:
            _log.warning("could not tell that we are %s: %s", state, e or "the store did not answer in time")
            self._news.set()
            return False
        return True

    async def leave(self) -> None:
        """Delete our keys and end the lease. Takes a few seconds at most; then the lease runs out by itself."""
        await self._stop()
        lease = self._lease
        self._drop_lease()
        if lease is None:
            return
        try:
            async with asyncio.timeout(_FAREWELL):
                await lease.revoke()  # deletes the keys under it
        except (StoreError, TimeoutError) as e:
            _log.warning("left without a word: %s", e or "the store did not answer in time")

    async def _stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        for mirror in self._mirrors:
            await mirror.close()
        self._mirrors = []

    async def _run(self, done: asyncio.Future[None]) -> None:
        reconnect = Reconnect()
        contested_since: float | None = None
        while True:
            pause = reconnect.failed
            try:
                lease = self._lease if self._lease is not None else await self._grant()
                await self._ensure(lease)
                self._set_registered(True)
                contested_since, self._complaint = None, ""
                reconnect.worked()
                if not done.done():
                    done.set_result(None)
                await self._until_news()
                continue
            except LeaseLost:
                self._drop_lease()
                if not reconnect.failures:
                    reconnect.failed(0.0)
                    continue  # the first time at once
            except DuplicateInstance as e:
                self._set_registered(False)
                now = self._clock.monotonic()
                contested_since = now if contested_since is None else contested_since
                if now - contested_since > self._ttl + _LEASE_SLACK:
                    self._complain(e)
                    _fail(done, e)
            except StoreDenied as e:
                self._complain(e)
                _fail(done, e)
                pause = reconnect.refused
            except StoreError as e:
                self._complain(e)
            if self._lost is not None and self._lost.done():
                self._drop_lease()
            await self._clock.sleep(pause(self._dice.random()))

    async def _grant(self) -> Lease:
        lease = await self._store.lease(self._ttl)
        self._held.add(lease.id)
        self._lease, self._lost = lease, asyncio.create_task(_end_of(lease), name="mesh-registrar-lease")
        return lease

    def _drop_lease(self) -> None:
        self._lease = None
        if self._lost is not None:
            self._lost.cancel()
            self._lost = None
        self._set_registered(False)

    async def _until_news(self) -> None:
        """Return when something about our keys changed; raise LeaseLost when the lease has ended."""
        assert self._lost is not None
        news = asyncio.create_task(self._news.wait(), name="mesh-registrar-news")
        try:
            await asyncio.wait([self._lost, news], return_when=asyncio.FIRST_COMPLETED)
        finally:
            news.cancel()
        if self._lost.done():
            raise LeaseLost("the lease has ended")

    async def _ensure(self, lease: Lease) -> None:
        """Make the store show what it should. One at a time: a state told meanwhile must not be overwritten."""
        async with self._writing:
            self._news.clear()
            for number in range(len(self._instances)):
                await self._ensure_one(number, lease)

    async def _ensure_one(self, number: int, lease: Lease) -> None:
        instance = self._instances[number]
        key, value = instance_key(self._prefix, instance), encode(instance)
        found = await self._store.get(key)
        match decide(found, value, instance, lease.id, self._held, self._prefix):
            case Claim.KEEP:
                return
            case Claim.REPLACE:
                await self._put_contract()
                await self._store.put(key, value, lease)
            case Claim.CREATE:
                await self._put_contract()
                if not await self._store.put_if_absent(key, value, lease):
                    raise DuplicateInstance(_taken(instance, ""))
            case Claim.CONTEST:
                assert found is not None
                other = decode(key, found.value, self._prefix).endpoint
                if not await _is_deserted(other):
                    raise DuplicateInstance(_taken(instance, f" at {other}"))
                await self._store.delete(key)
                await self._put_contract()
                if not await self._store.put_if_absent(key, value, lease):
                    raise DuplicateInstance(_taken(instance, ""))
        REGISTRATIONS.labels(instance.service).inc()
        _log.info(
            "registered %s as %s, %s",
            instance.service,
            instance.id,
            instance.state,
            extra={"event.action": "registered"},
        )

    async def _put_contract(self) -> None:
        if self._contract:
            digest = hashlib.sha256(self._contract).hexdigest()
            await self._store.put_if_absent(contract_key(self._prefix, digest), self._contract)

    def _set_registered(self, registered: bool) -> None:
        self.registered = registered
        for instance in self._instances:
            REGISTERED.labels(instance.service).set(registered)

    def _complain(self, error: StoreError) -> None:
        """Log each trouble once, however often it is met."""
        if str(error) != self._complaint:
            self._complaint = str(error)
            _log.warning("not registered: %s", error, extra={"event.action": "not-registered"})


async def _end_of(lease: Lease) -> bool:
    await lease.lost()
    return True


def _fail(done: asyncio.Future[None], error: StoreError) -> None:
    if not done.done():
        done.set_exception(error)


def _taken(instance: Instance, where: str) -> str:
    return (
        f"instance id {instance.id!r} of {instance.service} is taken by another process{where}: "
        "give each process its own MESH_INSTANCE_ID, or leave it empty"
    )


async def _is_deserted(endpoint: Endpoint) -> bool:
    """Whether nobody listens there any more. Only a refused connection is proof."""
    try:
        async with asyncio.timeout(_PROBE):
            _, writer = await asyncio.open_connection(endpoint.host.strip("[]"), endpoint.port)
    except ConnectionRefusedError:
        return True
    except (OSError, TimeoutError):
        return False
    writer.close()
    return False
