"""The one training loop: a generator that every lock and every attack steps through."""

from __future__ import annotations

import contextlib
import inspect
import math
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler
from tqdm import tqdm

from speclock.environment import Meter, environment
from speclock.errors import InputError
from speclock.models import Model
from speclock.optimizers import optimizer_class
from speclock.recipe import Recipe, Schooling
from speclock.tasks.base import Batch, Encoder, Task

Loss = Callable[[nn.Module, Batch], Float[Tensor, ""]]


class Step(NamedTuple):
    """Where the loop stands after so many optimizer steps."""

    index: int  # type: ignore[assignment]  # a step's number, not tuple.index
    """Optimizer steps taken."""
    loss: float
    """Mean loss over the step's batches; NaN at index 0, where nothing has been trained."""
    diverged: bool = False
    """The loss or the gradient stopped being finite; the weights are those before the step."""


@runtime_checkable
class Stateful(Protocol):
    """What a checkpoint can carry beside the model and the optimizer."""

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any], /) -> Any: ...


class Checkpoint:
    """A folder that keeps the newest complete state of a run.

    Each save is a new folder, complete once it has its final name; the older one goes only after that, so
    a kill at any moment leaves one that loads.
    """

    def __init__(self, folder: Path, *, every_seconds: float = 30.0) -> None:
        self.folder = folder
        self.every_seconds = every_seconds
        self._saved_at = time.monotonic()

    def newest(self) -> Path | None:
        """The newest complete state, or None before the first."""
        return max(self.folder.glob("step-????????"), default=None)

    def due(self) -> bool:
        """Whether it is time to save again. When states are saved does not change what the run computes."""
        return time.monotonic() - self._saved_at >= self.every_seconds

    def save(self, accelerator: Accelerator, step: int) -> None:
        """Write the state after ``step`` steps and drop the older ones."""
        target = self.folder / f"step-{step:08d}"
        partial = target.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        accelerator.save_state(str(partial))
        older = [path for path in self.folder.iterdir() if path != partial]
        partial.rename(target)
        for path in older:
            shutil.rmtree(path, ignore_errors=True)
        self._saved_at = time.monotonic()


def fit(
    module: nn.Module,
    task: Task,
    encoder: Encoder,
    recipe: Recipe,
    *,
    steps: int,
    loss: Loss | None = None,
    add_gradient_: Callable[[], object] | None = None,
    carried: tuple[Stateful, ...] = (),
    checkpoint: Checkpoint | None = None,
    title: str = "training",
) -> Iterator[Step]:
    """Train ``module`` in place and yield a :class:`Step` before the first and after each of ``steps`` steps.

    ``loss(module, batch)`` defaults to the task's own. ``add_gradient_`` runs between the backward pass and
    clipping and may add to the parameters' ``.grad``: that is where a lock's spectral term enters. With a
    ``checkpoint``, the loop saves the model, the optimizer, the schedule, the random state and every object in
    ``carried``, and goes on from the newest state it finds: the first step yielded is then the one after it.
    The order of the data is a function of the seed and the step alone, so a resumed run computes what an
    uninterrupted one does (bit for bit on CPU).

    A progress bar called ``title`` is shown on a terminal.

    A step whose loss or gradient is not finite is yielded with ``diverged`` set, not taken, and is the last.
    """
    accelerator = _accelerator(recipe.precision)
    torch.manual_seed(recipe.seed)
    loss = loss or task.loss
    progress = _Progress()
    loader = _loader(task, encoder, recipe, progress)
    optimizer = build_optimizer(module, recipe)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, _multiplier(recipe, task, steps))
    model, optimizer, scheduler = accelerator.prepare(module, optimizer, scheduler)
    accelerator.register_for_checkpointing(progress, *carried)
    if checkpoint and (newest := checkpoint.newest()):
        accelerator.load_state(str(newest))
        progress.resumed = True
    loader = accelerator.prepare_data_loader(loader)

    def gradients() -> float:
        """Leave this step's gradient in ``.grad`` and return the mean loss."""
        optimizer.zero_grad()
        value = 0.0
        for i, batch in enumerate(micro_batches):
            last = i == len(micro_batches) - 1
            with contextlib.nullcontext() if last else accelerator.no_sync(model), accelerator.autocast():
                part = loss(model, batch) / len(micro_batches)
            accelerator.backward(part)
            value += part.item()
        if add_gradient_ is not None:
            accelerator.unscale_gradients()
            add_gradient_()
        return value

    bar = tqdm(total=steps, initial=progress.step, desc=title, unit="step", disable=None, leave=False)
    try:
        if not progress.resumed:
            yield Step(0, math.nan)
        model.train()
        batches = iter(loader)
        while progress.step < steps:
            micro_batches = [next(batches) for _ in range(recipe.accumulate)]
            # L-BFGS asks for the gradient several times a step; for all others once is enough.
            line_search = isinstance(optimizer.optimizer, torch.optim.LBFGS)
            value = gradients()
            if not (math.isfinite(value) and math.isfinite(_clip_(accelerator, model, recipe.clip))):
                yield Step(progress.step + 1, value, diverged=True)
                return
            optimizer.step(gradients if line_search else None)
            scheduler.step()
            progress.step += 1
            bar.set_postfix_str(f"loss {value:.3g}", refresh=False)
            bar.update()
            yield Step(progress.step, value)
            # The consumer may have scored the module, which leaves its mode as it was, or changed it.
            model.train()
            if checkpoint and checkpoint.due():
                checkpoint.save(accelerator, progress.step)
    finally:
        bar.close()
        # Mixed precision wraps the module's forward in place; the caller gets its module back as it was.
        accelerator.unwrap_model(model, keep_fp32_wrapper=False)
        accelerator.free_memory()


def school(
    model: Model, task: Task, recipe: Schooling, *, checkpoint: Checkpoint | None = None
) -> dict[str, Any]:
    """Train ``model`` in place to do ``task`` and return the record of it, JSON-able.

    Raises :class:`InputError` when the training diverges.
    """
    steps = recipe.total_steps(task)
    with Meter() as meter:
        for step in fit(model.module, task, model, recipe, steps=steps, checkpoint=checkpoint, title="train"):
            if step.diverged:
                raise InputError(
                    f"training diverged at step {step.index}: lr {recipe.lr:g} is too high for {recipe.optimizer}. "
                    f"Lower it, or clip gradients."
                )
        model.module.eval()
        score = task.score(model.module, model)
    return {
        "format": "speclock-train/1",
        "model": {"name": model.name, "source": asdict(model.source)},
        "task": task.describe(),
        "config": asdict(recipe),
        "steps": steps,
        "score": score,
        "seconds": meter.seconds,
        "peak_memory_mb": meter.peak_memory_mb,
        "environment": environment(),
    }


class _Progress:
    """The loop's own part of a checkpoint."""

    step: int = 0
    resumed: bool = False

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step = state["step"]


class _Shuffled(Sampler[list[int]]):
    """Endless batches of row numbers; epoch e is permuted by (seed, e), and a resumed run starts midway."""

    def __init__(self, rows: int, recipe: Recipe, progress: _Progress) -> None:
        self.rows = rows
        self.recipe = recipe
        self.progress = progress

    def __iter__(self) -> Iterator[list[int]]:
        size = min(self.recipe.batch_size, self.rows)
        per_epoch = self.rows // size
        epoch, first = divmod(self.progress.step * self.recipe.accumulate, per_epoch)
        while True:
            generator = torch.Generator().manual_seed(self.recipe.seed * 1_000_003 + epoch)
            order = torch.randperm(self.rows, generator=generator)
            for i in range(first, per_epoch):
                yield order[i * size : (i + 1) * size].tolist()
            epoch, first = epoch + 1, 0


def _loader(task: Task, encoder: Encoder, recipe: Recipe, progress: _Progress) -> DataLoader[Any]:
    rows: Any = range(len(task.train))
    return DataLoader(
        rows,
        batch_sampler=_Shuffled(len(rows), recipe, progress),
        collate_fn=task.collate(encoder),
        # A generator of its own: a loader otherwise draws from the global one whenever it is started, and a
        # resumed run would see other dropout masks than an uninterrupted one.
        generator=torch.Generator().manual_seed(recipe.seed),
    )


def _accelerator(precision: str) -> Accelerator:
    state = AcceleratorState._shared_state
    if state and state.get("_mixed_precision", precision) != precision:
        # The state is one per process and refuses another precision; each fit is a fresh start.
        AcceleratorState._reset_state()
    return Accelerator(mixed_precision=precision, step_scheduler_with_optimizer=False)


def _clip_(accelerator: Accelerator, model: nn.Module, clip: float | None) -> float:
    """Clip the gradient's norm in place and return what it was."""
    if clip is not None:
        return float(accelerator.clip_grad_norm_(model.parameters(), clip))
    accelerator.unscale_gradients()
    return float(nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None]))


def _multiplier(recipe: Recipe, task: Task, total: int) -> Callable[[int], float]:
    """The learning rate at a step over its peak."""
    per_epoch = recipe.steps_per_epoch(task)

    def at(step: int) -> float:
        if step < recipe.warmup:
            return (step + 1) / (recipe.warmup + 1)
        done = (step - recipe.warmup) / max(1, total - recipe.warmup)
        match recipe.schedule:
            case "linear":
                return 1 - done
            case "cosine":
                return 0.5 * (1 + math.cos(math.pi * done))
            case "step":
                return recipe.gamma ** (step // per_epoch)
        return 1.0

    return at


def build_optimizer(module: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """The recipe's optimizer over the module's trainable parameters."""
    cls, arguments = optimizer_class(recipe.optimizer)
    if recipe.weight_decay or cls is torch.optim.AdamW:
        # AdamW's own default decays; a recipe says all it does.
        arguments["weight_decay"] = recipe.weight_decay
    if "fused" in inspect.signature(cls).parameters:
        # One pass over each parameter and its state instead of a dozen: a third of a small model's step.
        arguments["fused"] = True
    try:
        return cls([p for p in module.parameters() if p.requires_grad], lr=recipe.lr, **arguments)  # type: ignore[call-arg]
    except (TypeError, ValueError) as error:
        raise InputError(f"optimizer {recipe.optimizer!r} cannot train this model: {error}.") from error
