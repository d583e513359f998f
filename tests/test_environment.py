"""What is found out of the machine."""

from __future__ import annotations

import platform
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch

from speclock.environment import Operations, environment, has_bf16
from speclock.training import Step


@pytest.fixture
def processor(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine without an accelerator."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    return monkeypatch


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"architecture": "x86_64", "avx512_f": True, "avx512_bf16": False, "amx_bf16": False}, False),
        ({"architecture": "x86_64", "avx512_bf16": True}, True),
        ({"architecture": "x86_64", "amx_bf16": True}, True),
        ({"architecture": "aarch64", "neon": True, "bf16": False}, False),
        ({"architecture": "aarch64", "neon": True, "bf16": True}, True),
        ({}, False),
    ],
)
def test_bf16_is_what_the_processor_says(
    capabilities: dict[str, object], expected: bool, processor: pytest.MonkeyPatch
) -> None:
    processor.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert has_bf16() is expected


def test_an_older_torch_is_asked_what_it_knows(processor: pytest.MonkeyPatch) -> None:
    processor.delattr(torch.cpu, "get_capabilities", raising=False)
    processor.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True, raising=False)
    assert has_bf16()
    processor.delattr(torch.cpu, "_is_avx512_bf16_supported")
    processor.delattr(torch.cpu, "_is_amx_tile_supported", raising=False)
    assert not has_bf16()


def test_a_build_for_an_accelerator_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    # What `pip install torch` gives on Linux, on a laptop without one.
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    assert environment()["device"] == "cpu"


def test_an_accelerator_answers_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for answer in (True, False):
        monkeypatch.setattr(
            torch.cuda, "is_bf16_supported", lambda including_emulation=True, answer=answer: answer
        )
        assert has_bf16() is answer


FREED = """
import resource
from speclock.environment import Meter, keep_freed_memory

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

keep_freed_memory()
b"x" * 2**27
before = faults()
b"x" * 2**27
print(faults() - before)
with Meter() as meter:
    pass
print(meter.peak_memory_mb)
b"x" * 2**27
with Meter() as meter:
    b"x" * 2**27
print(meter.peak_memory_mb)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told to keep what is freed")
def test_freed_memory_is_kept_and_not_measured() -> None:
    done = subprocess.run([sys.executable, "-c", FREED], capture_output=True, text=True, check=True)
    faults, idle, busy = map(float, done.stdout.split())
    assert faults < 2**27 / 4096 / 10  # the same pages again, but for a few
    assert 120 < busy - idle < 140


def test_what_comes_before_the_first_step_is_counted_once() -> None:
    """A lock's removal was counted with its first step, which stood for all 700."""
    product = 2 * 8**3

    def training() -> Iterator[Step]:
        yield Step(0, float("nan"))
        square = torch.ones(8, 8)
        for _ in range(100):  # a removal, say
            square @ square
        for step in range(1, 11):
            square @ square
            square @ square
            yield Step(step, 0.0, passes=2 * step)

    operations, steps = Operations(), training()
    totals = [operations.total(step.passes) for step in iter(lambda: operations.next(steps), None)]
    assert totals[:3] == [0, 102 * product, 104 * product]
    assert totals[-1] == 120 * product
