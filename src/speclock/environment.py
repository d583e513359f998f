"""What a record says of the machine: versions, device, seconds, peak memory."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.metadata
import os
import platform
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    import torch

_PACKAGES = (
    "speclock",
    "torch",
    "transformers",
    "accelerate",
    "scikit-learn",
    "safetensors",
    "numpy",
    "scipy",
)
_BF16 = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")
"""Instruction sets with bf16 products, by their names in torch: two of x86, two of Arm."""


def environment(device: torch.device | None = None) -> dict[str, Any]:
    """Versions and hardware of this process, JSON-able; ``device`` is where the models were, if not where they would
    be by default."""
    import psutil
    import torch

    if device is None:
        device = accelerator_here() or torch.device("cpu")
    return {
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in _PACKAGES},
        "system": f"{platform.system()} {platform.machine()}",
        "device": torch.cuda.get_device_name() if device.type == "cuda" else device.type,
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
    }


def accelerator_here() -> torch.device | None:
    """The accelerator of this machine; None where torch was only built for one, as its usual wheels are for CUDA."""
    import torch

    return torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, of the device or of the machine."""
    import torch
    from accelerate.utils.memory import should_reduce_batch_size

    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, Exception) and bool(should_reduce_batch_size(error))


def release_memory() -> None:
    """Give back what freed tensors still hold of the device's memory."""
    from accelerate.utils.memory import clear_device_cache

    clear_device_cache(garbage_collection=True)


def keep_freed_memory() -> None:
    """Have this process keep what it frees for the tensors of its next step, where its allocator can be told to.

    glibc gives large blocks back to the system at once, and the system clears every page of the next: on a machine
    of two cores a training step of a 22M transformer takes a quarter longer for it, and scoring two thirds.
    """
    with contextlib.suppress(OSError, AttributeError):  # no glibc
        set_option = ctypes.CDLL("libc.so.6").mallopt
        set_option(_M_MMAP_THRESHOLD, 2**28)
        set_option(_M_TRIM_THRESHOLD, 2**30)


def has_bf16() -> bool:
    """Whether what trains here multiplies bf16 numbers in hardware: the accelerator where there is one, else the CPU.

    Every processor can compute in bf16; one without the instructions widens each number and rounds it back, and
    a training step takes ten times as long as in fp32 and more. What cannot be found out counts as absent.
    """
    import torch

    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if torch.backends.mps.is_available():
        return torch.backends.mps.is_macos_or_newer(14, 0)
    if capabilities := getattr(torch.cpu, "get_capabilities", None):
        known = capabilities()
        return any(known.get(name, False) for name in _BF16)
    # An older torch answers two private questions about x86, and none about Arm.
    asked = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, bool)() for name in asked)


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h


class Meter:
    """Seconds and peak memory of a ``with`` block.

    ``peak_memory_mb`` is the device's peak allocation (CUDA), or the process's peak resident size where the
    kernel lets it be reset (Linux), else its resident size at the end.
    """

    seconds: float = 0.0
    peak_memory_mb: float = 0.0

    def __enter__(self) -> Meter:
        import torch

        self._cuda = torch.cuda.is_available()
        if self._cuda:
            torch.cuda.reset_peak_memory_stats()
        else:
            self._reset = _reset_peak_resident()
        self._start = time.perf_counter()
        return self

    def __exit__(self, *exc: object) -> None:
        import psutil
        import torch

        self.seconds = round(time.perf_counter() - self._start, 2)
        if self._cuda:
            peak = torch.cuda.max_memory_allocated()
        elif self._reset:
            peak = _peak_resident()
        else:
            peak = psutil.Process().memory_info().rss
        self.peak_memory_mb = round(peak / 2**20, 1)


def _reset_peak_resident() -> bool:
    """Ask Linux to forget the peak so far; False where that is not possible."""
    with contextlib.suppress(OSError, AttributeError):
        # What was freed and kept is not what is about to be measured.
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _peak_resident() -> int:
    status = Path("/proc/self/status").read_text()
    kib = next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]
    return int(kib) * 1024


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown")


class _Step(Protocol):
    @property
    def passes(self) -> int: ...


S = TypeVar("S", bound=_Step)


class Operations:
    """Floating-point operations of a training, from its first steps: to count slows a step down by a quarter and more.

    What is done before the first step, a lock's removal or an attack's surgery, counts once; the step after it stands
    for all later ones.
    """

    def __init__(self) -> None:
        self.first = 0.0
        """Up to and with the first passes."""
        self.first_passes = 0
        self.per_pass: float | None = None

    def next(self, steps: Iterator[S]) -> S | None:
        """The next of a training's steps, counted while need be; None after the last."""
        with Flops(enabled=self.per_pass is None) as flops:
            step = next(steps, None)
        if step is None or self.per_pass is not None:
            return step
        if self.first_passes and step.passes > self.first_passes:
            self.per_pass = flops.total / (step.passes - self.first_passes)
        else:
            self.first += flops.total
            self.first_passes = step.passes
        return step

    def total(self, passes: int) -> float:
        """Of the training up to ``passes`` forward and backward passes."""
        return self.first + (self.per_pass or 0.0) * max(0, passes - self.first_passes)


class Flops:
    """Floating-point operations of a ``with`` block (matrix products, convolutions, attention)."""

    total: float = 0.0

    def __init__(self, enabled: bool) -> None:
        self.enabled = enabled

    def __enter__(self) -> Flops:
        if self.enabled:
            from torch.utils.flop_counter import FlopCounterMode

            self._mode = FlopCounterMode(display=False)
            self._mode.__enter__()
        return self

    def __exit__(self, *exc: Any) -> None:
        if self.enabled:
            self._mode.__exit__(*exc)
            self.total = float(self._mode.get_total_flops())
