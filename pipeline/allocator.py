"""Memory that is freed stays with the process, to be used again."""

from __future__ import annotations

import ctypes

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # of mallopt(3)
NEVER = 2**30  # bytes


def keep_freed_memory() -> None:
    """Tell glibc not to give large blocks back to the system.

    torch on a CPU allocates and frees every activation.  glibc maps large blocks afresh each time, and the system must clear every
    page of them again.  Does nothing where the C library is another.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(MMAP_THRESHOLD, NEVER)
        mallopt(TRIM_THRESHOLD, 2 * NEVER - 1)
