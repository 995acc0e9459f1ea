"""Gives memory of tensors back to the system, and measures it."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterable

import torch

from yatt.errors import BackendError

MADV_DONTNEED = 4


def free_pages(tensors: Iterable[torch.Tensor]) -> int:
    """Give the pages of these tensors' storages back to the system (CPU only); returns the bytes that were resident.

    Addresses stay valid: a page that is touched again is a fresh one of zeros, so that taking it back is free. Raises
    BackendError where the system refuses.
    """
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    before = resident_bytes()
    libc = ctypes.CDLL(None, use_errno=True)
    for address, size in storages.items():
        start = -(-address // mmap.PAGESIZE) * mmap.PAGESIZE
        length = (address + size - start) // mmap.PAGESIZE * mmap.PAGESIZE
        if length > 0 and libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), MADV_DONTNEED) != 0:
            raise BackendError(f"the KV cache cannot be freed: {os.strerror(ctypes.get_errno())}")
    return max(0, before - resident_bytes())


def resident_bytes() -> int:
    """Bytes of memory that this process has."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * mmap.PAGESIZE


def device_bytes() -> int:
    """Bytes in use on this process's device (CUDA only)."""
    free, total = torch.cuda.mem_get_info()
    return total - free
