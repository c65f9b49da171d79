"""How this process waits and allocates: call `prepare` before torch is first imported.

Measured on two CPU cores, one training step of 145 tokens: threads that spin without end while they wait
make it ten times slower as soon as anything else uses the cores; threads that never spin cost 60 µs at
each of its thousands of small operations; a short spin costs neither. An allocator that hands each
freed activation back to the system pays for it in page faults: up to seven times an operation's own time.
"""

from __future__ import annotations

import ctypes
import os
import platform

ENVIRONMENT = {"TOKENIZERS_PARALLELISM": "false", "OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "10000"}
"""Set unless the user has set them."""

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8  # malloc.h
_KEEP_BYTES = 2**30


def prepare() -> None:
    """Set `ENVIRONMENT`, and let glibc keep freed memory up to 1 GB for the next step."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if platform.libc_ver()[0] == "glibc" and "MALLOC_TRIM_THRESHOLD_" not in os.environ:
        libc = ctypes.CDLL(None)
        libc.mallopt(_MMAP_THRESHOLD, _KEEP_BYTES)
        libc.mallopt(_TRIM_THRESHOLD, _KEEP_BYTES)
        libc.mallopt(_ARENA_MAX, 1)  # the owner thread shares the main heap, which alone can keep so much
