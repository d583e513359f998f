"""The one training loop: a generator that every lock and every attack steps through."""

from __future__ import annotations

import contextlib
import inspect
import itertools
import math
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader, Sampler
from tqdm import tqdm

from speclock.environment import Meter, environment, ran_out_of_memory, release_memory
from speclock.errors import InputError
from speclock.models import Model
from speclock.optimizers import Needs, optimizer_named
from speclock.recipe import Recipe, TrainingRecipe
from speclock.tasks.base import Batch, Encoder, Task

Loss = Callable[[nn.Module, Batch], Float[Tensor, ""]]

_ALIKE_IN = 50
"""Most batches among which rows are sorted by length."""
_SPARED = 0.1
"""Share of a batch's tokens from which it pays."""
_WORTH_COLLECTING = 1_000_000
"""Weights of a model whose training's remains are collected at once."""


class Step(NamedTuple):
    """Where the loop stands after so many optimizer steps."""

    index: int  # type: ignore[assignment]  # a step's number, not tuple.index
    """Optimizer steps taken."""
    loss: float
    """Mean loss over the step's batches; NaN at index 0, where nothing has been trained."""
    diverged: bool = False
    """The loss or the gradient stopped being finite; the weights are those before the step."""
    passes: int = 0
    """Evaluations of the loss or its gradient on a batch so far: what a step costs differs by optimizer."""


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

    def __init__(self, folder: Path, *, every_seconds: float = 30.0, most_of_the_time: float = 0.05) -> None:
        """States are ``every_seconds`` apart, and so far that saving takes at most ``most_of_the_time``."""
        self.folder = folder
        self.every_seconds = every_seconds
        self.most_of_the_time = most_of_the_time
        self._saved_at = time.monotonic()
        self._save_takes = 0.0

    def newest(self) -> Path | None:
        """The newest complete state, or None before the first."""
        return max(self.folder.glob("step-????????"), default=None)

    def due(self) -> bool:
        """Whether it is time to save again. When states are saved does not change what the run computes."""
        apart = max(self.every_seconds, self._save_takes / self.most_of_the_time)
        return time.monotonic() - self._saved_at >= apart

    def save(self, accelerator: Accelerator, step: int) -> None:
        """Write the state after ``step`` steps and drop the older ones."""
        began = time.monotonic()
        target = self.folder / f"step-{step:08d}"
        partial = target.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        accelerator.save_state(str(partial))
        older = [path for path in self.folder.iterdir() if path != partial]
        partial.rename(target)
        for path in older:
            shutil.rmtree(path, ignore_errors=True)
        self._saved_at = time.monotonic()
        self._save_takes = self._saved_at - began


def fit(
    learner: Model,
    task: Task,
    recipe: Recipe,
    *,
    steps: int,
    loss: Loss | None = None,
    add_gradient_: Callable[[], object] | None = None,
    rates: Mapping[str, float] | None = None,
    carried: tuple[Stateful, ...] = (),
    checkpoint: Checkpoint | None = None,
    skips: bool = False,
    title: str = "training",
) -> Iterator[Step]:
    """Train ``learner.module`` in place and yield a :class:`Step` before the first and after each of ``steps`` steps.

    ``loss(module, batch)`` defaults to the task's own. ``add_gradient_`` runs between the backward pass and
    clipping and may add to the parameters' ``.grad``: that is where a lock's spectral term enters. ``rates``
    multiplies the learning rate of the parameters it names.

    With a ``checkpoint``, the loop saves the model, the optimizer, the schedule, the random state and every
    object in ``carried``, and goes on from the newest state it finds: the first step yielded is then the one
    after it. The order of the data is a function of the seed and the step alone, so a resumed run computes
    what an uninterrupted one does (bit for bit on CPU).

    A progress bar called ``title`` is shown on a terminal.

    A step for which memory runs out is taken again with its batches halved, as often as it takes, the gradient
    being the same sum; the loop stays at the smaller size. RuntimeError where a single example is too much.

    A step whose loss or gradient is not finite is yielded with ``diverged`` set, not taken, and is the last. With
    ``skips`` examples whose loss is not finite are left out of their batch, as whoever watches the loss would, and
    steps that are not finite even so are passed over, but for the third in a row and for those beyond a quarter.
    """
    module = learner.module
    accelerator = _accelerator(recipe.precision, next(module.parameters()).device)
    torch.manual_seed(recipe.seed)
    loss = loss or task.loss
    progress = _Progress()
    loader = _loader(task, learner, recipe, progress)
    optimizer = build_optimizer(module, recipe, rates)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, _multiplier(recipe, task, steps))
    model, optimizer, scheduler = accelerator.prepare(module, optimizer, scheduler)
    accelerator.register_for_checkpointing(progress, *carried)
    if checkpoint and (newest := checkpoint.newest()):
        accelerator.load_state(str(newest))
        progress.resumed = True
    loader = accelerator.prepare_data_loader(loader)
    needs = optimizer_named(recipe.optimizer).needs

    def shares() -> list[tuple[Batch, float]]:
        """This step's batches in as many parts as memory asks for, each with its share of the mean."""
        return [
            (part, len(part["labels"]) / len(batch["labels"]) / len(micro_batches))
            for batch in micro_batches
            for part in _parts(batch, progress.parts)
        ]

    def forward() -> float:
        """This step's mean loss, without a gradient."""
        progress.passes += 1
        with torch.no_grad(), accelerator.autocast():
            return sum(loss(model, part).item() * share for part, share in shares())

    def backward() -> float:
        """Leave this step's gradient in ``.grad``; the mean loss."""
        optimizer.zero_grad()
        value, parts = 0.0, shares()
        for i, (part, share) in enumerate(parts):
            last = i == len(parts) - 1
            with contextlib.nullcontext() if last else accelerator.no_sync(model), accelerator.autocast():
                weighted = loss(model, part) * share
            accelerator.backward(weighted, **({"create_graph": True} if needs is Needs.GRAPH else {}))
            value += weighted.item()
        return value

    def backward_where_finite() -> float:
        """As ``backward``, of those examples alone whose loss is finite; NaN where there is none."""
        optimizer.zero_grad()
        # One by one, and so without a batch's statistics: a batch norm has none of a single row.
        module.eval()
        with torch.no_grad(), accelerator.autocast():
            finite = [
                [math.isfinite(loss(model, row).item()) for row in _parts(batch, len(batch["labels"]))]
                for batch in micro_batches
            ]
        _set_modes_(model, recipe)
        rows = sum(map(sum, finite))
        value = 0.0 if rows else math.nan
        for batch, good in zip(micro_batches, finite, strict=True):
            if any(good):
                part = {
                    name: tensor[torch.tensor(good, device=tensor.device)] for name, tensor in batch.items()
                }
                with accelerator.autocast():
                    weighted = loss(model, part) * (sum(good) / rows)
                accelerator.backward(weighted)
                value += weighted.item()
        return value

    def gradients() -> float:
        """Leave this step's clipped gradient in ``.grad``; the mean loss, NaN where either is not finite."""
        progress.passes += 1
        value = progress.halving(backward, most=max(len(batch["labels"]) for batch in micro_batches))
        if skips and not math.isfinite(value) and needs is not Needs.GRAPH:
            progress.passes += 1
            value = backward_where_finite()
        if add_gradient_ is not None:
            accelerator.unscale_gradients()
            add_gradient_()
        return value if math.isfinite(_clip_(accelerator, model, recipe.clip)) else math.nan

    bar = tqdm(total=steps, initial=progress.step, desc=title, unit="step", disable=None, leave=False)
    try:
        if not progress.resumed:
            yield Step(0, math.nan)
        _set_modes_(model, recipe)
        batches = iter(loader)
        while progress.step < steps:
            micro_batches = [next(batches) for _ in range(recipe.accumulate)]
            with _double_differentiable(needs):
                value = forward() if needs is Needs.LOSS else gradients()
                taken = math.isfinite(value)
                progress.note(taken)
                if not taken and not (skips and progress.may_skip):
                    yield Step(progress.step + 1, value, diverged=True, passes=progress.passes)
                    return
                match needs:
                    case _ if not taken:
                        optimizer.zero_grad()
                    case Needs.LOSS:
                        optimizer.step(forward)
                    case Needs.CLOSURE:
                        try:
                            optimizer.step(gradients)
                        except IndexError:
                            # torch's line search loses its bracket where no point that it tries is finite.
                            yield Step(progress.step + 1, math.nan, diverged=True, passes=progress.passes)
                            return
                    case _:
                        optimizer.step()
            if taken:
                scheduler.step()
            progress.step += 1
            bar.set_postfix_str(f"loss {value:.3g}", refresh=False)
            bar.update()
            yield Step(progress.step, value, passes=progress.passes)
            # The consumer may have scored the module, which leaves its mode as it was, or changed it.
            _set_modes_(model, recipe)
            if checkpoint and checkpoint.due():
                checkpoint.save(accelerator, progress.step)
    finally:
        bar.close()
        # Mixed precision wraps the module's forward in place; the caller gets its module back as it was.
        accelerator.unwrap_model(model, keep_fp32_wrapper=False)
        # What the run held hangs in cycles, such as a scheduler's and its optimizer's. To collect them takes a third of
        # a second: nothing beside a large model's training, and longer than a small one's, whose memory can wait.
        if sum(p.numel() for p in module.parameters()) >= _WORTH_COLLECTING:
            accelerator.free_memory()


def train(
    model: Model, task: Task, recipe: TrainingRecipe, *, checkpoint: Checkpoint | None = None
) -> dict[str, Any]:
    """Train ``model`` in place to do ``task`` and return the record of it, JSON-able.

    Raises :class:`InputError` where the model does not read the task's examples, and when the training diverges.
    """
    task = task.divided()
    task.check_kind(model)
    steps = recipe.total_steps(task)
    with Meter() as meter:
        for step in fit(model, task, recipe, steps=steps, checkpoint=checkpoint, title="train"):
            if step.diverged:
                raise InputError(
                    f"training diverged at step {step.index}: lr {recipe.lr:g} is too high for {recipe.optimizer}. "
                    f"Lower it, or clip gradients."
                )
        model.module.eval()
        score, validation = task.score(model), task.score(model, "validation")
    return {
        "format": "speclock-train/1",
        "model": {"name": model.name, "source": asdict(model.source)},
        "task": task.describe(),
        "config": asdict(recipe),
        "steps": steps,
        "score": score,
        "validation": validation,
        "seconds": meter.seconds,
        "peak_memory_mb": meter.peak_memory_mb,
        "environment": environment(),
    }


class _Progress:
    """The loop's own part of a checkpoint."""

    step: int = 0
    passes: int = 0
    parts: int = 1
    """Into how many parts memory forces each batch."""
    resumed: bool = False
    skipped: int = 0
    """Steps so far whose loss or gradient was not finite."""
    in_a_row: int = 0
    """How many of them came last."""

    def note(self, taken: bool) -> None:
        """Count a step that was, or could not be, taken."""
        self.skipped += not taken
        self.in_a_row = 0 if taken else self.in_a_row + 1

    @property
    def may_skip(self) -> bool:
        """Whether so few of the steps were not finite that it is the batch, and not the weights."""
        return self.in_a_row < 3 and self.skipped <= 1 + (self.step + 1) // 4

    def halving(self, backward: Callable[[], float], *, most: int) -> float:
        """``backward()``, with twice as many parts each time that memory runs out, up to ``most``."""
        while True:
            try:
                return backward()
            except RuntimeError as error:
                if not ran_out_of_memory(error) or self.parts >= most:
                    raise
                self.parts *= 2
            release_memory()

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("step", "passes", "parts", "skipped", "in_a_row")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            setattr(self, name, value)


class _Shuffled(Sampler[list[int]]):
    """Endless batches of row numbers; epoch e is permuted by (seed, e), and a resumed run starts midway.

    ``lengths`` says how long some rows are, where they differ. Where it spares padding, a batch is of rows of like
    length.
    """

    def __init__(
        self, rows: int, lengths: Callable[[list[int]], Any] | None, recipe: Recipe, progress: _Progress
    ) -> None:
        self.rows = rows
        self.lengths = lengths
        self.recipe = recipe
        self.progress = progress

    def __iter__(self) -> Iterator[list[int]]:
        size = min(self.recipe.batch_size, self.rows)
        per_epoch = self.rows // size
        # A quarter of an epoch at most: the whole of it, sorted, would have the same batches again and again.
        alike = min(_ALIKE_IN, max(1, per_epoch // 4)) * size
        epoch, first = divmod(self.progress.step * self.recipe.accumulate, per_epoch)
        while True:
            generator = torch.Generator().manual_seed(self.recipe.seed * 1_000_003 + epoch)
            order = torch.randperm(self.rows, generator=generator)[: per_epoch * size]
            batches = (batch for rows in order.split(alike) for batch in self._batches(rows, size, generator))
            yield from (batch.tolist() for batch in itertools.islice(batches, first, None))
            epoch, first = epoch + 1, 0

    def _batches(self, rows: Tensor, size: int, generator: torch.Generator) -> Tensor:
        """``rows`` in batches: as they are, or of like length and in an order drawn anew."""
        found = self.lengths and self.lengths(rows.tolist())
        if found is not None:
            lengths = torch.as_tensor(found)
            order = lengths.argsort(stable=True)
            tokens, sorted_ = (at.view(-1, size).amax(1).sum() for at in (lengths, lengths[order]))
            if sorted_ <= (1 - _SPARED) * tokens:
                batches = rows[order].view(-1, size)
                return batches[torch.randperm(len(batches), generator=generator)]
        return rows.view(-1, size)


def _loader(task: Task, encoder: Encoder, recipe: Recipe, progress: _Progress) -> DataLoader[Any]:
    rows: Any = range(len(task.train))

    def lengths(at: list[int]) -> Any:
        return task.lengths(task.train.take(np.array(at)), encoder)

    return DataLoader(
        rows,
        # Images are of one size, and not to be read for this.
        batch_sampler=_Shuffled(len(rows), lengths if task.modality == "text" else None, recipe, progress),
        collate_fn=task.collate(encoder),
        # A generator of its own: a loader otherwise draws from the global one whenever it is started, and a
        # resumed run would see other dropout masks than an uninterrupted one.
        generator=torch.Generator().manual_seed(recipe.seed),
    )


def _accelerator(precision: str, device: torch.device) -> Accelerator:
    """Accelerate on the device that the model is on: it would choose one of its own, for the model alone."""
    state = AcceleratorState._shared_state
    kept = state and (state.get("_mixed_precision", precision), state["device"].type)
    if kept and kept != (precision, device.type):
        # The state is one per process and refuses another precision; each fit is a fresh start.
        AcceleratorState._reset_state(reset_partial_state=True)
    return Accelerator(
        mixed_precision=precision, step_scheduler_with_optimizer=False, cpu=device.type == "cpu"
    )


def _parts(batch: Batch, parts: int) -> list[Batch]:
    """The batch's rows in so many parts, or one by one where it has fewer."""
    rows = len(batch["labels"])
    cut = [tensor.tensor_split(min(parts, rows)) for tensor in batch.values()]
    return [dict(zip(batch, tensors, strict=True)) for tensors in zip(*cut, strict=True)]


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


def _set_modes_(model: nn.Module, recipe: Recipe) -> None:
    """Training mode, but for what the recipe turns off.

    A module's mode decides on dropout and on batch norms alone, and not every dropout is a module of its own.
    """
    model.train(recipe.dropout)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.train(recipe.batch_statistics)


@contextlib.contextmanager
def _double_differentiable(needs: Needs) -> Iterator[None]:
    """Where Hessian-vector products are taken: attention by its formula, whose fused kernels have no second
    derivative, and no warning of the reference cycle that the next ``zero_grad`` breaks."""
    if needs in (Needs.GRADIENT, Needs.LOSS):
        yield
        return
    with warnings.catch_warnings(), sdpa_kernel(SDPBackend.MATH):
        warnings.filterwarnings("ignore", message=r"Using backward\(\) with create_graph=True")
        yield


def build_optimizer(
    module: nn.Module, recipe: Recipe, rates: Mapping[str, float] | None = None
) -> torch.optim.Optimizer:
    """The recipe's optimizer over the module's trainable parameters; ``rates`` multiplies lr by name."""
    optimizer = optimizer_named(recipe.optimizer)
    cls, arguments = optimizer.load(), dict(optimizer.arguments)
    takes = inspect.signature(cls).parameters
    if "weight_decay" in takes:
        # Some decay by default; a recipe says all it does.
        arguments["weight_decay"] = recipe.weight_decay
    elif recipe.weight_decay:
        raise InputError(f"optimizer {recipe.optimizer!r} has no weight decay. Leave --weight-decay out.")
    if "fused" in takes:
        # One pass over each parameter and its state instead of a dozen: a third of a small model's step.
        arguments["fused"] = True
    if "seed" in takes:
        arguments["seed"] = recipe.seed
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    groups: dict[float, list[nn.Parameter]] = {}
    for name, p in trained.items():
        groups.setdefault((rates or {}).get(name, 1.0), []).append(p)
    params = [{"params": group, "lr": recipe.lr * rate} for rate, group in groups.items()]
    try:
        return cls(params if rates else list(trained.values()), lr=recipe.lr, **arguments)
    except (TypeError, ValueError) as error:
        raise InputError(f"optimizer {recipe.optimizer!r} cannot train this model: {error}.") from error
