"""Metadata reaches a server as the caller has given it, though grpc.aio does not make it into its own."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from grpc import aio
from grpc.aio import _channel

import mesh
from mesh.client.entries import NOTHING, Entries
from support.fleet import IDEMPOTENT, SERVICE, SS, SU, US, UU, echo, fleet

PAIRS = (("a", "1"), ("b-bin", b"\x00\xff"), ("a", "2"), ("c", "3"))


def test_grpc_takes_entries_as_they_are() -> None:
    # Not public: what a multicallable makes of the metadata that it is given.
    taken: Any = _channel._BaseMultiCallable._init_metadata
    for entries in (NOTHING, Entries(PAIRS)):
        assert taken(entries) is entries
    assert (tuple(NOTHING), len(NOTHING)) == ((), 0)
    assert (tuple(Entries(PAIRS)), len(Entries(PAIRS))) == (PAIRS, 4)


@pytest.mark.parametrize("given", [None, (), [], PAIRS, list(PAIRS), [list(pair) for pair in PAIRS]])
def test_every_kind_of_call_brings_what_it_was_given_in_that_order(given: Any) -> None:
    async def story() -> None:
        brought: list[list[Any]] = []

        async def answer(message: bytes, context: Any) -> bytes:
            brought.append([tuple(pair) for pair in context.invocation_metadata() if pair[0] in ("a", "b-bin", "c")])
            return await echo(message, context)

        async with fleet(1) as (host,):
            host.answer = answer
            async with mesh.connect(SERVICE, endpoints=[host.address], policies=IDEMPOTENT) as channel:
                assert await channel.unary_unary(UU)(b"x", metadata=given) == b"x"
                assert len([m async for m in channel.unary_stream(US)(b"x", metadata=given)]) == 3
                assert await channel.stream_unary(SU)(iter([b"x"]), metadata=given) == b"x"
                assert [m async for m in channel.stream_stream(SS)(iter([b"x"]), metadata=given)] == [b"x"]
        assert brought == [[tuple(pair) for pair in given or ()]] * 6

    asyncio.run(asyncio.wait_for(story(), 30))


def test_metadata_of_grpc_itself_has_the_values_of_a_name_together() -> None:
    assert tuple(Entries(aio.Metadata(*PAIRS))) == (PAIRS[0], PAIRS[2], PAIRS[1], PAIRS[3])
