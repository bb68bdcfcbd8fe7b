"""Linux's timer that is a file descriptor, timerfd_create(2). Python has it from 3.13 on; here ctypes calls it."""

from __future__ import annotations

import ctypes
import os

# clockid_t and flags as <bits/time.h> and <sys/timerfd.h> have them.
_CLOCK_MONOTONIC = 1
_FLAGS = os.O_NONBLOCK | os.O_CLOEXEC
_LEAST, _MOST = 1, 10**18
"""Nanoseconds: 0 would stop it."""


class _Spec(ctypes.Structure):
    """struct itimerspec: the interval, then the first time; each in seconds and nanoseconds."""

    _fields_ = (
        ("every_s", ctypes.c_long),
        ("every_ns", ctypes.c_long),
        ("in_s", ctypes.c_long),
        ("in_ns", ctypes.c_long),
    )


def create() -> int | None:
    """Return the descriptor of a new one, which is the caller's to close; None where there are none."""
    if not hasattr(_libc, "timerfd_create"):
        return None
    fd: int = _libc.timerfd_create(_CLOCK_MONOTONIC, _FLAGS)
    return fd if fd >= 0 else None


def ring_in(fd: int, seconds: float) -> None:
    """Have it be readable once in so many seconds, and not when it was to be before. Raises OSError."""
    nanoseconds = int(min(max(seconds * 1e9, _LEAST), _MOST))
    spec = _Spec(0, 0, *divmod(nanoseconds, 10**9))
    if _libc.timerfd_settime(fd, 0, ctypes.byref(spec), None):
        raise OSError(ctypes.get_errno(), "timerfd_settime")


_libc = ctypes.CDLL(None, use_errno=True)
