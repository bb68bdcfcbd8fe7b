"""UUIDs of version 7 (RFC 9562, 5.7): milliseconds since 1970 first, so ids grow with time and indexes stay dense."""

from __future__ import annotations

from uuid import UUID

from mesh.clock import Dice


def uuid7(milliseconds: int, dice: Dice) -> str:
    """Make an id of this moment: 48 bits of time, the version, 12 bits of chance, the variant, 62 bits of chance."""
    time = (milliseconds & (1 << 48) - 1) << 80
    chance = dice.randrange(1 << 12) << 64 | dice.randrange(1 << 62)
    return str(UUID(int=time | 0x7 << 76 | 0b10 << 62 | chance))
