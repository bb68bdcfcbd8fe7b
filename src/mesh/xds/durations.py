"""Float seconds as protobuf durations."""

from __future__ import annotations

from google.protobuf.duration_pb2 import Duration


def duration(seconds: float) -> Duration:
    """Return the duration, to the millisecond: finer is noise and would change versions."""
    ms = round(seconds * 1000)
    return Duration(seconds=ms // 1000, nanos=ms % 1000 * 1_000_000)
