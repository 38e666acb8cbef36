"""Settings of the C library and of OpenMP, for the command line's own processes."""

from __future__ import annotations

import ctypes
import os
import sys
from contextlib import suppress

__all__ = ["keep_freed_memory", "wait_briefly"]


# How often a waiting thread looks before it sleeps, some ten microseconds. GNU's OpenMP looks for
# milliseconds, and as long as it looks it keeps the core from another process.
_LOOKS = "10000"

# Parameters of glibc's mallopt(3).
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def keep_freed_memory() -> bool:
    """Lets the process keep up to half a gigabyte of freed memory for later allocations.

    Each operation on a chunk of an evaluation allocates and frees some megabytes. By default glibc
    returns them to the system each time, and the page faults that follow cost a fifth of the time.

    Returns:
        Whether glibc took the setting.
    """
    if sys.platform != "linux":
        return False
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        kept = mallopt(_M_TRIM_THRESHOLD, 2**29)
        # The higher threshold turns off glibc's own adjustment, which would undo the first.
        return bool(kept and mallopt(_M_MMAP_THRESHOLD, 2**25))
    return False


def wait_briefly() -> bool:
    """Lets OpenMP's threads sleep soon when they wait for each other.

    By default they keep their cores busy, and two trainings on one machine take several times
    as long as one after the other (``benchmarks/side_by_side.py``). It counts only before torch is
    loaded; settings of the user's stay.

    Returns:
        Whether it was set.
    """
    if "torch" in sys.modules or {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
        return False
    os.environ["GOMP_SPINCOUNT"] = _LOOKS
    return True
