"""What a lock costs: one SpecDef step beside one plain training step, and beside Algorithm 1 as it is written.

    python benchmarks/lock_step.py [--json] [--only MODEL] [--top-k K]

**Time.** Two copies of a model train in turn on the same batch, step by step: forward, backward, optimizer; one of
them with ``SpectralPenalty.add_gradient_`` between backward and optimizer, which is all that a lock adds in
the training loop. After a warm-up past the cold start, steps are taken in
windows of 16, the longest interval, so that each pays for a refresh of every matrix at least. The value is the
median over windows of (seconds of the lock's steps)/(seconds of the plain steps). AdaDelta at 1.0 on ResNet-18,
the paper's setting, which moves weights fast; AdamW at 2e-4 on the transformers. Inputs are random numbers and
random tokens: the cost of a step does not depend on what they say.

**Full SVD.** A step of Algorithm 1 as the paper writes it, ``svdvals`` of every weight matrix in the graph, over
our step, in windows of one such step and 16 of ours.

**Memory.** A few steps of each kind in a process of their own; the high-water mark of the process's resident
memory (of allocated device memory on a GPU), lock over plain. It includes the interpreter, libraries and
weights, as a user's does.

Prints the target beside each value. A benchmark reports: exit 0 whether met or missed.
"""

from __future__ import annotations

import argparse
import copy
import json
import resource
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from speclock import models
from speclock.spectra import SpectralPenalty, weight_matrices

ALPHA = 0.9
WINDOW = 16
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
Batch = tuple[dict[str, Tensor], Tensor]


@dataclass(frozen=True)
class Case:
    """A model, the batch it is timed on, and how long."""

    model: str
    labels: int
    what: str
    """The batch, in words."""
    shape: tuple[int, ...]
    vocabulary: int
    """Tokens to draw from; 0 for images."""
    optimizer: Callable[..., torch.optim.Optimizer]
    lr: float
    warmup: int
    windows: int
    target: float

    def batch(self, generator: torch.Generator) -> Batch:
        if self.vocabulary:
            tokens = torch.randint(5, self.vocabulary, self.shape, generator=generator)
            inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
        else:
            inputs = {"pixel_values": torch.randn(self.shape, generator=generator)}
        labels = torch.randint(self.labels, self.shape[:1], generator=generator)
        return {name: x.to(DEVICE) for name, x in inputs.items()}, labels.to(DEVICE)

    def load(self) -> nn.Module:
        names = tuple(f"class {i}" for i in range(self.labels))
        return models.load(self.model, labels=names).module.to(DEVICE).train()


CASES = [
    Case("resnet18", 10, "32 images, 28×28", (32, 3, 28, 28), 0, torch.optim.Adadelta, 1.0, 48, 6, 1.15),
    Case("minilm", 4, "16×96 tokens", (16, 96), 30522, torch.optim.AdamW, 2e-4, 8, 1, 1.05),
    Case("smollm2-135m-instruct", 4, "8×64 tokens", (8, 64), 49152, torch.optim.AdamW, 2e-4, 8, 1, 1.05),
]


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    what: str
    model: str
    value: float
    target: str
    met: bool
    detail: str


class Trainer:
    """One copy of a model, its optimizer and what is added to its gradient."""

    def __init__(self, case: Case, module: nn.Module, top_k: int, kind: str) -> None:
        self.module = module
        self.top_k = top_k
        self.kind = kind
        self.optimizer = case.optimizer(module.parameters(), lr=case.lr)
        self.penalty = SpectralPenalty(module, top_k=top_k) if kind == "lock" else None

    def step(self, batch: Batch) -> float:
        """Takes one step and returns its seconds."""
        inputs, labels = batch
        synchronize()
        start = time.perf_counter()
        self.optimizer.zero_grad()
        output = self.module(**inputs)
        loss = ALPHA * cross_entropy(getattr(output, "logits", output), labels)
        if self.kind == "svd":
            sigma = [torch.linalg.svdvals(w.matrix)[: self.top_k] for w in weight_matrices(self.module)]
            loss = loss - (1 - ALPHA) * torch.cat(sigma).mean()
        loss.backward()
        if self.penalty is not None:
            self.penalty.add_gradient_(-(1 - ALPHA))
        self.optimizer.step()
        synchronize()
        return time.perf_counter() - start


def synchronize() -> None:
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def time_rows(case: Case, top_k: int) -> list[Row]:
    """The lock's step over a plain one; on ResNet-18 the full SVD's step over the lock's too."""
    module = case.load()
    plain = Trainer(case, module, top_k, "plain")
    lock = Trainer(case, copy.deepcopy(module), top_k, "lock")
    generator = torch.Generator().manual_seed(0)
    for i in range(case.warmup):
        batch = case.batch(generator)
        lock.step(batch)
        if i < 2:
            plain.step(batch)

    ratios, baseline = [], []
    for _ in range(case.windows):
        seconds = {"plain": 0.0, "lock": 0.0}
        for i in range(WINDOW):
            batch = case.batch(generator)
            pair = (plain, lock) if i % 2 else (lock, plain)
            for trainer in pair:
                seconds[trainer.kind] += trainer.step(batch)
        ratios.append(seconds["lock"] / seconds["plain"])
        baseline.append(seconds["plain"] / WINDOW)
    value = statistics.median(ratios)
    detail = f"plain step {1000 * statistics.median(baseline):.0f} ms; {spread(ratios)}"
    rows = [
        Row("lock step / plain step", case.model, value, f"≤ {case.target}", value <= case.target, detail)
    ]

    if case.model == "resnet18":
        svd = Trainer(case, copy.deepcopy(module), top_k, "svd")
        svd.step(case.batch(generator))
        ratios = []
        for _ in range(4):
            dense = svd.step(case.batch(generator))
            ours = sum(lock.step(case.batch(generator)) for _ in range(WINDOW)) / WINDOW
            ratios.append(dense / ours)
        value = statistics.median(ratios)
        rows.append(Row("full-SVD step / lock step", case.model, value, "≥ 12", value >= 12, spread(ratios)))
    return rows


def spread(ratios: list[float]) -> str:
    return f"{len(ratios)} windows, {min(ratios):.3f}–{max(ratios):.3f}" if len(ratios) > 1 else "1 window"


def memory_row(case: Case, top_k: int) -> Row:
    """Peak memory of a lock's process over a plain one's."""
    peaks = {}
    for kind in ("plain", "lock"):
        command = [sys.executable, __file__, "--peak", kind, "--only", case.model, "--top-k", str(top_k)]
        run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        peaks[kind] = float(run.stdout.splitlines()[-1])
    value = peaks["lock"] / peaks["plain"]
    detail = f"{peaks['plain']:.0f} → {peaks['lock']:.0f} MiB"
    return Row("peak memory, lock / plain", case.model, value, "≤ 1.05", value <= 1.05, detail)


def peak(case: Case, top_k: int, kind: str) -> float:
    """MiB at the high-water mark of two steps: the second has the optimizer's state from the start."""
    trainer = Trainer(case, case.load(), top_k, kind)
    generator = torch.Generator().manual_seed(0)
    for _ in range(2):
        trainer.step(case.batch(generator))
    if DEVICE == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status")
    if status.exists():
        # Not ru_maxrss, which on Linux a process inherits from the one that started it.
        (line,) = [line for line in status.read_text().splitlines() if line.startswith("VmHWM:")]
        return int(line.split()[1]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # bytes on macOS


def main() -> None:
    parser = argparse.ArgumentParser(description="What a lock's step costs beside a plain one.")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    parser.add_argument("--only", choices=[case.model for case in CASES], help="time this model alone")
    parser.add_argument("--top-k", type=int, default=2, help="singular values for each matrix (default 2)")
    parser.add_argument("--peak", choices=["plain", "lock"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    # Heads of four classes have fewer columns than some top-k: that is no news here.
    warnings.filterwarnings("ignore", message="top_k=")

    cases = [case for case in CASES if options.only in (None, case.model)]
    if options.peak:
        print(peak(cases[0], options.top_k, options.peak))
        return

    processor = torch.cuda.get_device_name() if DEVICE == "cuda" else f"{torch.get_num_threads()} CPU threads"
    if not options.json:
        print(
            f"torch {torch.__version__}, {processor}, fp32, top_k={options.top_k}, random inputs", flush=True
        )
    rows = []
    for case in cases:
        for row in [*time_rows(case, options.top_k), memory_row(case, options.top_k)]:
            rows.append(row)
            if not options.json:
                print(
                    f"{row.what:28}{row.model:24}{row.value:8.3f}   {row.target:8}"
                    f"{'PASS' if row.met else 'MISS'}   {case.what}; {row.detail}",
                    flush=True,
                )
    if options.json:
        environment = {"torch": torch.__version__, "device": processor, "top_k": options.top_k}
        print(json.dumps({"environment": environment, "rows": [asdict(row) for row in rows]}, indent=2))


if __name__ == "__main__":
    main()
