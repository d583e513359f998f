"""σ_max of MiniLM's Hessian on 64 samples: ours beside hessian-eigenthings, the same loss to the same tolerance.

    python benchmarks/hessian.py [--json] [--model NAME] [--samples N] [--max-length TOKENS] [--batch-size N]
                                 [--rounds N]

**Time.** Both in one process, in turn: the eigenvalue of largest modulus to a Ritz residual of 1e-3 of itself.
hessian-eigenthings takes a fixed number of Lanczos steps, so it is given the fewest (of 4, 6, 8, 12, 16, 24, 32)
that it calls converged; finding that number is not timed, and is its warm-up. It gets the sample as one batch, ours
takes it in mini-batches of 32 (of 16, the default of `speclock curvature`, it is about a tenth slower).

**Memory.** Each in a process of its own: how far the resident size (on a GPU, the allocated memory) rises above the
loaded model and batch, over how far one backward pass over the sample lifts it: *product* with the sample as one
batch, as hessian-eigenthings gets it (12 steps of it); *eigenvalue* in mini-batches, as it is timed.

The loss is cross-entropy on four newsgroups in evaluation mode. Products take attention by its formula, since fused
kernels have no second derivative; the backward pass takes it as the model does.

Prints the target beside each value. A benchmark reports: exit 0 whether met or missed.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import psutil
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from speclock import models, tasks
from speclock.curvature import spectral_ends
from speclock.forecast import Objective

TOLERANCE = 1e-3
TASK = "newsgroups:comp.graphics,rec.autos,sci.med,talk.politics.guns"
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class Row(NamedTuple):
    """One figure beside its target, which it should not exceed."""

    what: str
    value: float
    target: float
    detail: str


class Setting(NamedTuple):
    """What is measured."""

    model: str
    samples: int
    max_length: int
    batch_size: int

    def objective(self, *, whole: bool = False) -> Objective:
        task = tasks.load(TASK, tasks.Reading(max_length=self.max_length))
        model = models.load(self.model, labels=task.labels)
        model.module.to(DEVICE)
        size = self.samples if whole else self.batch_size
        return Objective.of(model, task, samples=self.samples, batch_size=size)


def ours(what: Objective) -> float:
    return spectral_ends(what.hessian(), tol=TOLERANCE).by_modulus.value


def theirs(what: Objective, steps: int) -> tuple[float, bool]:
    import hessian_eigenthings

    batch = whole(what)

    def loss(module: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return what.task.loss(module, batch)

    # Fused attention has no second derivative, here as there.
    with sdpa_kernel(SDPBackend.MATH):
        operator = hessian_eigenthings.HessianOperator(what.model.module, [batch], loss)
        found = hessian_eigenthings.lanczos(operator, k=1, max_iter=steps, tol=TOLERANCE, seed=0)
    return float(found.eigenvalues[0]), bool(found.converged[0])


def whole(what: Objective) -> dict[str, torch.Tensor]:
    """The sample as one batch."""
    return {name: torch.cat([batch[name] for batch in what.batches]) for name in what.batches[0]}


def backward(what: Objective) -> None:
    loss = what.task.loss(what.model.module, whole(what))
    torch.autograd.grad(loss, list(what.parameters().values()))


def one_product(what: Objective) -> None:
    H = what.hessian()
    _ = H @ torch.randn(H.shape[0]).numpy()


KINDS: dict[str, Callable[[Objective], object]] = {
    "backward": backward,
    "product": one_product,
    "eigenvalue": ours,
    "hessian-eigenthings": lambda what: theirs(what, 12),
}


def rise(kind: str, setting: Setting) -> float:
    """MiB by which memory rises above the loaded model and batch."""
    what = setting.objective(whole=kind != "eigenvalue")
    gc.collect()
    if DEVICE == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        KINDS[kind](what)
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    # What loading has freed must not hide what is allocated next.
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = psutil.Process().memory_info().rss
    KINDS[kind](what)
    (line,) = [
        line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")
    ]
    return int(line.split()[1]) / 2**10 - before / 2**20


def values_and_seconds(setting: Setting, rounds: int) -> list[Row]:
    """Both packages in turn."""
    what = setting.objective()
    steps = next(n for n in (4, 6, 8, 12, 16, 24, 32) if theirs(what, n)[1])
    seconds: dict[str, list[float]] = {"ours": [], "theirs": []}
    values: dict[str, float] = {}
    for _ in range(rounds):
        for name, run in (("ours", lambda: ours(what)), ("theirs", lambda: theirs(what, steps)[0])):
            start = time.perf_counter()
            values[name] = run()
            seconds[name].append(time.perf_counter() - start)
    ratios = [a / b for a, b in zip(seconds["ours"], seconds["theirs"], strict=True)]
    took = {name: f"{statistics.median(times):.1f} s" for name, times in seconds.items()}
    one_by_one = ", ".join(f"{ratio:.3f}" for ratio in ratios)
    return [
        Row(
            "σ_max(H), difference",
            abs(values["ours"] / values["theirs"] - 1),
            0.01,
            f"{values['ours']:.6g} and {values['theirs']:.6g}",
        ),
        Row(
            "time, ours / theirs",
            statistics.median(ratios),
            1.0,
            f"{took['ours']} and {took['theirs']} of {steps} steps; rounds {one_by_one}",
        ),
    ]


def memory(setting: Setting, kinds: list[str]) -> list[Row]:
    """Every kind beside the backward pass, each in a process of its own."""
    peaks = {}
    for kind in ["backward", *kinds]:
        command = [sys.executable, __file__, "--rise", kind]
        command += [f"--{name.replace('_', '-')}={value}" for name, value in setting._asdict().items()]
        peaks[kind] = float(
            subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.split()[-1]
        )
    return [
        Row(
            f"memory, {kind} / backward",
            peaks[kind] / peaks["backward"],
            3.0,
            f"{peaks[kind]:.0f} and {peaks['backward']:.0f} MiB",
        )
        for kind in kinds
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description="σ_max(H) beside hessian-eigenthings.")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--max-length", type=int, default=32, help="tokens")
    parser.add_argument("--batch-size", type=int, default=32, help="ours; theirs is the whole sample")
    parser.add_argument("--rounds", type=int, default=3, help="0 measures our memory alone")
    parser.add_argument("--rise", choices=list(KINDS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    setting = Setting(options.model, options.samples, options.max_length, options.batch_size)
    if options.rise:
        print(rise(options.rise, setting))
        return
    rows = values_and_seconds(setting, options.rounds) if options.rounds else []
    rows += memory(setting, ["product", "eigenvalue"] + ["hessian-eigenthings"] * bool(options.rounds))
    where = torch.cuda.get_device_name() if DEVICE == "cuda" else f"{torch.get_num_threads()} CPU threads"
    if options.json:
        environment = {"torch": torch.__version__, "device": where, **setting._asdict()}
        print(json.dumps({"environment": environment, "rows": [row._asdict() for row in rows]}, indent=1))
        return
    print(f"torch {torch.__version__}, {where}, fp32, {setting}")
    for row in rows:
        met = "PASS" if row.value <= row.target else "MISS"
        print(f"{row.what:40}{row.value:9.4f}   ≤ {row.target:<5}{met}   {row.detail}")


if __name__ == "__main__":
    main()
