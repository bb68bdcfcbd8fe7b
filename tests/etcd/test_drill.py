"""etcd's own robustness method: harm a cluster at random, note what each watcher saw, compare it with what happened."""

from __future__ import annotations

import asyncio
import random
import time
from pathlib import Path

import pytest

from mesh.errors import StoreError
from mesh.etcd import EtcdStore
from mesh.instance import Endpoint
from support.etcd import Etcd, EtcdCluster
from support.stories import no_tasks_left, until

HARM_FOR = 25.0


class Witness:
    """Notes every change under "w/" with its revision, through a store of its own."""

    def __init__(self, cluster: EtcdCluster, after: int) -> None:
        self.store = EtcdStore([Endpoint.parse(e) for e in cluster.endpoints])
        self.seen: list[tuple[int, str, bytes | None]] = []
        self.task = asyncio.create_task(self._watch(after))

    async def _watch(self, after: int) -> None:
        async for changed in self.store.watch("w/", after):
            for key, entry in changed.changes.items():
                self.seen.append((changed.revision, key, None if entry is None else entry.value))

    async def close(self) -> None:
        self.task.cancel()
        await asyncio.wait([self.task])
        await self.store.close()


async def write(cluster: EtcdCluster, number: int, until_time: float) -> int:
    done = 0
    async with EtcdStore([Endpoint.parse(e) for e in cluster.endpoints]) as store:
        while time.monotonic() < until_time:
            try:
                if done % 5 == 4:
                    await store.delete(f"w/{number}")
                else:
                    await store.put(f"w/{number}", b"%d" % done)
                done += 1
            except StoreError:
                pass
            await asyncio.sleep(0.01)
    return done


async def harm(cluster: EtcdCluster, until_time: float, dice: random.Random) -> list[str]:
    """Hurt one member at a time, so that the other two go on."""
    told = []
    while time.monotonic() < until_time:
        member: Etcd = dice.choice(cluster.members)
        kind = dice.choice(["kill", "pause", "restart", "leader"])
        if kind == "leader":
            member = await asyncio.to_thread(cluster.leader)
        told.append(f"{kind} {member.name}")
        if kind == "pause":
            member.pause()
            await asyncio.sleep(dice.uniform(0.5, 6.0))
            member.resume()
        else:
            member.kill()
            await asyncio.sleep(dice.uniform(0.0, 2.0))
            await asyncio.to_thread(member.start)
        await asyncio.sleep(dice.uniform(0.2, 1.5))
    return told


@pytest.mark.drill
def test_no_witness_misses_repeats_or_reorders_anything_while_members_fail_at_random(tmp_path: Path) -> None:
    seed = random.randrange(10_000)
    print(f"seed {seed}")

    async def story() -> None:
        with EtcdCluster(tmp_path) as cluster:
            async with EtcdStore([Endpoint.parse(e) for e in cluster.endpoints]) as store:
                after = await store.put("w/begin", b"")
            witnesses = [Witness(cluster, after) for _ in range(5)]
            end = time.monotonic() + HARM_FOR
            *written, told = await asyncio.gather(
                *(write(cluster, n, end) for n in range(3)), harm(cluster, end, random.Random(seed))
            )
            print(f"{sum(written)} writes answered; {', '.join(told)}")
            for member in cluster.members:
                await asyncio.to_thread(member.wait_ready)
            # What happened, told by a watch that was never harmed.
            truth = Witness(cluster, after)
            async with EtcdStore([Endpoint.parse(e) for e in cluster.endpoints]) as store:
                last = await store.put("w/end", b"")
            for witness in (truth, *witnesses):
                await until(lambda w=witness: w.seen and w.seen[-1][0] >= last, 10.0, "the end is seen")
            assert len(truth.seen) >= sum(written) > 100
            for witness in witnesses:
                assert witness.seen == truth.seen
            for witness in (truth, *witnesses):
                await witness.close()
        await no_tasks_left()

    asyncio.run(story())
