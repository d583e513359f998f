"""Undo: what the retain task does not need is drawn anew, and what it needs is taught again by the base's answers."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self

from speclock.errors import InputError
from speclock.locks.base import Lock, Run, Span
from speclock.locks.retain import Teacher, divergence
from speclock.recipe import TrainingRecipe

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Bool, Float
    from torch import Tensor, nn

    from speclock.models import Model
    from speclock.tasks.base import Batch, Task
    from speclock.training import Loss, Step

_LEAST_RATE = 5e-5
"""No gentler lock goes below this rate: AdamW's steps would be too short to teach in any usual number of them."""
_SAMPLE = 512
"""Training examples whose gradients say which directions of an embedding the retain task reads."""


@dataclass(frozen=True, kw_only=True)
class Undo(TrainingRecipe, Lock):
    """``W ← (1 − β)·W + β·W_fresh`` in every weight matrix of the body, then distillation of the base's answers.

    Knowledge that is not there cannot be clipped, fused or distilled out [shrink and perturb: Ash & Adams 2020;
    UNDO: Lee et al. 2025, arXiv 2506.06278]. The model's embedding (of words; an image network's is its first
    convolution) loses more: its units keep the directions alone that the retain task reads, the top eigenvectors of
    Σ gᵀg, g the gradient of the base's centred logits by the embedding's output; and the rows of words that the
    distillation's data never use are drawn anew altogether. The base teaches by its outputs; features and hidden
    states would carry knowledge back.

    With ``forget_task``, for a retain task so broad that its answers tell of what must go, the teacher is made to
    forget first: it learns to answer that task's inputs evenly while it keeps its answers to the retain task's
    [unlearn, noise, distil: the same].

    The noise comes from the operating system, and neither card, log nor record holds it. Strength is the share of
    the base's weights that is gone.
    """

    beta: float = 0.8
    """Share of each of the body's weight matrices that is drawn anew."""
    bottleneck: float = 1 / 6
    """Share of its directions that the embedding keeps, the most read ones; 1 leaves the embedding as it is."""
    augment: float = 0.5
    """Share of each batch that is made from the training inputs (windows and crossovers of texts; shifts and mixtures
    of images) and labelled by the base alone."""
    distil_data: str = ""
    """Further inputs to make those from, without labels: a .txt with a text in each line, a table with a column text,
    a folder of images, or any task's name or path."""
    forget_task: str = ""
    """What the teacher is made to forget before it teaches: a task's name or path; its labels are not looked at."""
    forget_steps: int = 100
    """Steps that the teacher takes to forget it."""
    hard: float = 0.3
    """Weight of the task's own loss on labelled examples, beside the divergence to the base."""
    temperature: float = 2.0
    """Of the divergence's softmaxes."""
    insecure_noise_seed: int | None = None
    """A seed for the noise, for experiments: whoever knows it can draw the same noise and subtract it."""
    optimizer: str = "adamw"
    """One of `speclock ls optimizers`."""
    lr: float = 8e-4
    """Peak learning rate."""
    warmup: int = 50
    """Steps over which the learning rate rises linearly to its peak; no more than a quarter of all."""
    schedule: str = "linear"
    """constant, linear or cosine to zero, or step (times gamma after each epoch)."""
    steps: int | None = 700
    """Optimizer steps; overrides epochs."""
    dropout: bool = False
    """Whether dropout is on while it is taught, which slows the match with the base and makes it vary."""

    name: ClassVar[str] = "undo"
    unit: ClassVar[str] = "share drawn anew"
    tuned: ClassVar[Mapping[str, Span]] = {
        "beta": Span(0.5, 0.95),
        "bottleneck": Span(0.04, 0.5, log=True),
        "lr": Span(1e-4, 1e-3, log=True),
        "steps": Span(200, 1500, log=True, whole=True),
    }
    # The share hardly moves while the model is taught, and its tenths of a per cent buy nothing.
    resolution: ClassVar[float] = 0.05

    def __post_init__(self) -> None:
        TrainingRecipe.__post_init__(self)
        Lock.__post_init__(self)
        if not 0 <= self.beta <= 1:
            raise InputError(f"beta is {self.beta}; it must lie in [0, 1].")
        if not 0 < self.bottleneck <= 1:
            raise InputError(f"bottleneck is {self.bottleneck}; it must lie in (0, 1].")
        if not 0 <= self.augment <= 0.95:
            raise InputError(
                f"augment is {self.augment}; it must lie in [0, 0.95]: some examples have labels."
            )
        if not self.hard >= 0:
            raise InputError(f"hard is {self.hard}; it must not be negative.")
        if not self.temperature > 0:
            raise InputError(f"temperature is {self.temperature}; it must be a positive number.")
        if self.forget_steps < 1:
            raise InputError(f"forget_steps is {self.forget_steps}; it must be at least 1.")
        if self.insecure_noise_seed is not None and not 0 <= self.insecure_noise_seed < 2**32:
            raise InputError(
                f"insecure_noise_seed is {self.insecure_noise_seed}; it must be from 0 to 2³² − 1."
            )
        if self.distil_data and not self.augment:
            raise InputError("distil_data is used for made inputs alone, and augment is 0. Raise it.")

    @property
    def draws_in_secret(self) -> bool:
        return self.insecure_noise_seed is None

    def training(self, steps: int) -> tuple[int, int]:
        taken = steps + (self.forget_steps if self.forget_task else 0)
        return taken, round(taken * self.batch_size * self.accumulate / (1 - self.augment))

    def gentler(self) -> Self | None:
        # What was drawn anew learns at some rates only, and a model that answers alike whatever it is asked stays so.
        halved = self.lr / 2
        return replace(self, lr=halved) if halved >= _LEAST_RATE else None

    def data_of_its_own(self) -> tuple[str, ...]:
        return tuple(name for name in (self.distil_data, self.forget_task) if name)

    def strength(self, model: Model, base: Model) -> float:
        """The mean over the weight matrices of 1 − ⟨W, W_base⟩/‖W_base‖²: what of the base is no longer in them."""
        from speclock.spectra import weight_matrices

        theirs = {weight.name: weight.matrix for weight in weight_matrices(base.module)}
        left = []
        for weight in weight_matrices(model.module, self.include, self.exclude):
            before = theirs.get(weight.name)
            if before is not None and before.shape == weight.shape and before.any():
                W, B = weight.matrix.detach().double().cpu(), before.detach().double().cpu()
                left.append(float((W * B).sum() / B.square().sum()))
        return max(0.0, 1 - sum(left) / len(left)) if left else 0.0

    def trajectory(self, model: Model, task: Task, *, spectral: bool, run: Run) -> Iterator[Step]:
        from speclock.tasks.augment import Augmented
        from speclock.training import Step, fit

        if task.kind != "classification":
            raise InputError(
                f"undo teaches a classifier by its answers, and {task.name} is a {task.kind} task. "
                f"Choose another lock: specdef, scheduled, compensated, reparameterise."
            )
        teacher, pool = model.copy(), self._pool(task)
        drawn = Augmented(task, self.seed, pool)
        carried: tuple[Any, ...] = (drawn, *run.carried)
        if self.forget_task:
            carried = (teacher.module, *carried)
        if run.checkpoint.newest() is None:
            # The state that the guard falls back to, before anything is removed.
            yield Step(0, float("nan"))
            if self.forget_task:
                self._forget_(teacher, task)
            if spectral:
                self._remove_(model, teacher, task, pool)
        answers = Teacher(teacher, task, repeats=self.repeats(task))
        steps = self.total_steps(task)
        rest = fit(
            model,
            task,
            replace(self, warmup=min(self.warmup, steps // 4)),
            steps=steps,
            loss=self._loss(model, answers, task, drawn),
            checkpoint=run.checkpoint,
            carried=carried,
        )
        # The loop's own step 0 has been yielded already.
        yield from (step for step in rest if step.index > 0)

    def _pool(self, task: Task) -> np.ndarray:
        """The inputs that others are made from."""
        import numpy as np

        from speclock.tasks.unlabelled import inputs_of

        own: np.ndarray = task.train.inputs
        return np.concatenate([own, inputs_of(self.distil_data, task)]) if self.distil_data else own

    # -- removal -------------------------------------------------------------------------------------------

    def _remove_(self, model: Model, base: Model, task: Task, pool: np.ndarray) -> None:
        import torch

        from speclock.models.initial import head_names, named_noise
        from speclock.spectra import weight_matrices

        seed = secrets.randbits(128) if self.insecure_noise_seed is None else self.insecure_noise_seed
        # A scratch model says how large fresh weights are, and nothing else of theirs is used.
        fresh = {
            name: float(p.detach().std())
            for name, p in base.scratch(0).module.named_parameters()
            if p.ndim > 1
        }
        embedding = _embedding(model) if self.bottleneck < 1 else None
        heads = tuple(f"{name}." for name in head_names(model.module))
        tables = {
            f"{name}.weight"
            for name, part in model.module.named_modules()
            if isinstance(part, torch.nn.Embedding)
        }
        with torch.no_grad():
            for weight in weight_matrices(model.module, self.include, self.exclude):
                p, name = weight.parameter, weight.name
                if embedding is not None and p is embedding.layer.weight:
                    noise = named_noise(name, p, float(p.std()), seed)
                    self._narrow_(embedding, base, task, pool, noise)
                if name.startswith(heads) or name in tables:
                    continue
                p.lerp_(named_noise(name, p, fresh[name], seed), self.beta)

    def _narrow_(
        self, embedding: _Embedding, base: Model, task: Task, pool: np.ndarray, noise: Tensor
    ) -> None:
        """The embedding on the directions that the retain task reads, noise in all others."""
        import torch

        p = embedding.layer.weight
        G = _read_directions(base, task)
        kept = max(1, round(self.bottleneck * len(G)))
        V = torch.linalg.eigh(G)[1][:, -kept:].to(p)
        W, anew = (embedding.rows(t) for t in (p.detach(), noise))
        new = W @ V @ V.T + anew - anew @ V @ V.T
        if embedding.words:
            used = _used(base, task, pool, len(W)).to(W.device)
            new = torch.where(used[:, None], new, anew)
        p.copy_(embedding.rows_back(new).reshape(p.shape))

    # -- teaching ------------------------------------------------------------------------------------------

    def _forget_(self, teacher: Model, task: Task) -> None:
        """Make the teacher answer the forget task's inputs evenly, and the retain task's as before."""
        from speclock.tasks.augment import Augmented
        from speclock.tasks.unlabelled import inputs_of
        from speclock.training import fit

        before = Teacher(teacher.copy(), task, repeats=False)
        unwanted = Augmented(task, self.seed, inputs_of(self.forget_task, task))

        def loss(module: nn.Module, batch: Batch) -> Float[Tensor, ""]:
            logits = task.logits(module, batch).float()
            kept = divergence(before.logits(batch), logits, self.temperature).mean()
            asked = unwanted.batch(len(batch["labels"]), teacher)
            told = task.logits(module, {name: value.to(logits.device) for name, value in asked.items()})
            return kept - told.float().log_softmax(-1).mean()  # cross-entropy with the uniform distribution

        for step in fit(teacher, task, self, steps=self.forget_steps, loss=loss, title="forgetting"):
            if step.diverged:
                raise InputError(f"forgetting diverged at step {step.index}: lr {self.lr:g} is too high.")

    def _loss(self, model: Model, teacher: Teacher, task: Task, drawn: Any) -> Loss:
        def apart(module: nn.Module, batch: Batch) -> tuple[Tensor, Float[Tensor, ""]]:
            logits = task.logits(module, batch).float()
            return logits, divergence(teacher.logits(batch), logits, self.temperature).mean()

        def loss(module: nn.Module, batch: Batch) -> Float[Tensor, ""]:
            logits, total = apart(module, batch)
            total = total + self.hard * task.loss_of(logits, batch)
            extra = round(len(batch["labels"]) * self.augment / (1 - self.augment))
            if not extra:
                return total
            made = {name: value.to(logits.device) for name, value in drawn.batch(extra, model).items()}
            share = extra / (extra + len(logits))
            return (1 - share) * total + share * apart(module, made)[1]

        return loss


class _Embedding(NamedTuple):
    """What a model reads its inputs by, a row for each word, or for each place and channel of a convolution's window:
    what a row holds is added to the layer's output."""

    layer: Any
    words: bool

    def rows(self, weight: Tensor) -> Float[Tensor, "n d"]:
        return weight if self.words else weight.flatten(1).T

    def rows_back(self, rows: Float[Tensor, "n d"]) -> Tensor:
        return rows if self.words else rows.T


def _embedding(model: Model) -> _Embedding | None:
    """Of a text model the largest table, which is that of words; else the first convolution; None without either."""
    from torch import nn

    parts = list(model.module.modules())
    if model.tokenizer is not None and (tables := [part for part in parts if isinstance(part, nn.Embedding)]):
        return _Embedding(max(tables, key=lambda table: table.num_embeddings), words=True)
    first = next((part for part in parts if isinstance(part, nn.Conv1d | nn.Conv2d | nn.Conv3d)), None)
    return None if first is None else _Embedding(first, words=False)


def _read_directions(base: Model, task: Task) -> Float[Tensor, "d d"]:
    """Σ gᵀg over places and logits, g the gradient of a centred logit by the embedding's output."""
    import numpy as np
    import torch

    module = base.module
    embedding = _embedding(base)
    assert embedding is not None
    layer = embedding.layer
    device = layer.weight.device
    G = torch.zeros((), dtype=torch.float64)
    held: list[Tensor] = []

    def keep(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        # No leaf: at one that goes into a module, the counter of operations breaks off.
        held.append(output.detach().requires_grad_().clone())
        return held[-1]

    hook = layer.register_forward_hook(keep)
    was_training = module.training
    module.eval()
    try:
        for start in range(0, min(_SAMPLE, len(task.train)), 32):
            rows = np.arange(start, min(start + 32, len(task.train)))
            batch = {n: v.to(device) for n, v in task.encode(task.train.take(rows), base).items()}
            held.clear()
            with torch.enable_grad():
                logits = task.logits(module, batch).float()
                centred = logits - logits.mean(-1, keepdim=True)
                for label in range(centred.shape[1]):
                    (g,) = torch.autograd.grad(centred[:, label].sum(), held[0], retain_graph=True)
                    # A convolution's channels stand second.
                    g = (g if embedding.words else g.movedim(1, -1)).flatten(0, -2).double().cpu()
                    G = G + g.T @ g
    finally:
        hook.remove()
        module.train(was_training)
    return G


def _used(base: Model, task: Task, pool: np.ndarray, words: int) -> Bool[Tensor, " n"]:
    """Which of the embedding's rows the inputs use; texts are cut only by the windows that are made of them."""
    import torch

    used = torch.zeros(words, dtype=torch.bool)
    tokenizer = base.tokenizer
    for start in range(0, len(pool), 256):
        some = list(pool[start : start + 256])
        columns = (
            [list(column) for column in zip(*some, strict=True)] if isinstance(some[0], tuple) else [some]
        )
        for ids in tokenizer(*columns, verbose=False)["input_ids"]:
            used[torch.tensor(ids)] = True
    return used
