"""The one place that knows which device this is: clocks, memory and rates, the same questions to a GPU and to a CPU."""

from __future__ import annotations

import gc
import os
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from yatt.simulation.costs import DEVICES


class Cpu:
    """A rehearsal's device. Its memory is what this process has of the machine's; the numbers mean nothing, the code
    that asks for them is the GPU's."""

    kind = "cpu"

    def __init__(self) -> None:
        self.torch = torch.device("cpu")

    def name(self) -> str:
        return platform.machine()

    def about(self) -> dict[str, Any]:
        """What the results are of."""
        return {"name": self.name(), "memory_gb": round(self.capacity() / 1e9, 1)}

    def capacity(self) -> int:
        """Bytes of memory."""
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")

    def synchronize(self) -> None:
        """A CPU has done all it was told."""

    def allocated(self) -> int:
        """Bytes in use now."""
        return _status("VmRSS")

    def reset_peak(self) -> None:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")

    def peak(self) -> int:
        """The most bytes in use since `reset_peak`."""
        return _status("VmHWM")

    def free(self) -> None:
        """Give back what nobody holds."""
        gc.collect()

    def data_sheet(self) -> str | None:
        """The device's name in the table of `yatt plan`; None where it is not there."""
        return None

    def pinned(self, count: int) -> torch.Tensor:
        """So many bytes of the host's memory, which the device reads by itself."""
        return torch.empty(count, dtype=torch.uint8)


class Cuda(Cpu):
    """The first GPU in sight."""

    kind = "cuda"

    def __init__(self) -> None:
        self.torch = torch.device("cuda", 0)
        torch.cuda.set_device(self.torch)

    def name(self) -> str:
        return torch.cuda.get_device_name(self.torch)

    def about(self) -> dict[str, Any]:
        capability = ".".join(map(str, torch.cuda.get_device_capability(self.torch)))
        return {**super().about(), "capability": capability, "cuda": torch.version.cuda}

    def capacity(self) -> int:
        return torch.cuda.get_device_properties(self.torch).total_memory

    def synchronize(self) -> None:
        torch.cuda.synchronize(self.torch)

    def allocated(self) -> int:
        return torch.cuda.memory_allocated(self.torch)

    def reset_peak(self) -> None:
        torch.cuda.reset_peak_memory_stats(self.torch)

    def peak(self) -> int:
        return torch.cuda.max_memory_allocated(self.torch)

    def free(self) -> None:
        super().free()
        torch.cuda.empty_cache()

    def data_sheet(self) -> str | None:
        name = self.name()
        # The longest first: an H100 on a PCIe card is no H100-SXM.
        spelled = name.replace("H100 PCIe", "H100-PCIe")
        return next((known for known in sorted(DEVICES, key=len, reverse=True) if known in spelled), None)

    def pinned(self, count: int) -> torch.Tensor:
        return torch.empty(count, dtype=torch.uint8, pin_memory=True)


Device = Cpu
"""Either: a GPU answers all that a CPU does."""


def open_device(kind: str) -> Device:
    """Raises RuntimeError where there is no GPU."""
    if kind == "cpu":
        return Cpu()
    if not torch.cuda.is_available():
        raise RuntimeError("torch sees no GPU here; use --device cpu for a rehearsal")
    return Cuda()


def seconds(device: Device, work: Callable[[], object]) -> float:
    """How long the work takes, all that it starts on the device included."""
    device.synchronize()
    start = time.perf_counter()
    work()
    device.synchronize()
    return time.perf_counter() - start


def median(device: Device, work: Callable[[], object], rounds: int) -> float:
    """Seconds of the work: the median of `rounds`, after one that is not counted."""
    work()
    return statistics.median(seconds(device, work) for _ in range(rounds))


def copy_rate(device: Device, count: int) -> float:
    """Bytes per second that a copy on the device copies: each is read and written."""
    source = torch.zeros(count, dtype=torch.uint8, device=device.torch)
    target = torch.empty_like(source)
    return count / median(device, lambda: target.copy_(source), 5)


def matrix_rate(device: Device, size: int, dtype: torch.dtype) -> float:
    """FLOP/s of a large product of matrices of random numbers."""
    a, b = (torch.randn(size, size, device=device.torch, dtype=dtype) for _ in range(2))
    return 2 * size**3 / median(device, lambda: a @ b, 5)


def _status(field: str) -> int:
    with open("/proc/self/status") as file:
        line = next(line for line in file if line.startswith(field))
    return 1024 * int(line.split()[1])
