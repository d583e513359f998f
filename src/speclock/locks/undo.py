"""Undo: what the retain task does not need is drawn anew, and what it needs is taught again by the base's answers."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from speclock.errors import InputError
from speclock.locks.base import Lock, Run
from speclock.recipe import TrainingRecipe

if TYPE_CHECKING:
    import torch
    from jaxtyping import Float
    from torch import Tensor, nn

    from speclock.models import Model
    from speclock.tasks.base import Batch, Task
    from speclock.training import Step

_SAMPLE = 512
"""Training examples whose gradients say which directions of an embedding the retain task reads."""


@dataclass(frozen=True, kw_only=True)
class Undo(TrainingRecipe, Lock):
    """``W ← (1 − β)·W + β·W_fresh`` in every weight matrix of the body, then distillation of the base's answers.

    Knowledge that is not there cannot be clipped, fused or distilled out [shrink and perturb: Ash & Adams 2020;
    UNDO: Lee et al. 2025, arXiv 2506.06278]. Of a text model, embedding rows of tokens that the retain data never
    use are drawn anew, and the others keep ``rank`` directions alone: the top eigenvectors of Σ gᵀg, g the gradient
    of the base's centred logits by a token's embedding. The base teaches by its outputs; features and hidden states
    would carry knowledge back.

    The noise comes from the operating system, and neither card, log nor record holds it. Strength is the share of
    the base's weights that is gone.
    """

    beta: float = 0.8
    """Share of each of the body's weight matrices that is drawn anew."""
    rank: int = 64
    """Directions that rows of an embedding keep; 0 leaves embeddings as they are."""
    augment: float = 0.5
    """Share of each batch that is made from the training inputs (windows and crossovers of texts; shifts and mixtures
    of images) and labelled by the base alone."""
    hard: float = 0.3
    """Weight of the task's own loss on labelled examples, beside the divergence to the base."""
    temperature: float = 2.0
    """Of the divergence's softmaxes."""
    insecure_noise_seed: int | None = None
    """A seed for the noise, for experiments: whoever knows it can draw the same noise and subtract it."""
    optimizer: str = "adamw"
    """One of `speclock ls optimizers`."""
    lr: float = 4e-4
    """Peak learning rate."""
    schedule: str = "linear"
    """constant, linear or cosine to zero, or step (times gamma after each epoch)."""
    steps: int | None = 700
    """Optimizer steps; overrides epochs."""

    name: ClassVar[str] = "undo"
    unit: ClassVar[str] = "share drawn anew"

    def __post_init__(self) -> None:
        TrainingRecipe.__post_init__(self)
        Lock.__post_init__(self)
        if not 0 <= self.beta <= 1:
            raise InputError(f"beta is {self.beta}; it must lie in [0, 1].")
        if not 0 <= self.augment < 1:
            raise InputError(f"augment is {self.augment}; it must lie in [0, 1): some examples have labels.")
        for field in ("rank", "hard"):
            if getattr(self, field) < 0:
                raise InputError(f"{field} is {getattr(self, field)}; it must not be negative.")
        if not self.temperature > 0:
            raise InputError(f"temperature is {self.temperature}; it must be a positive number.")

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

        teacher = model.copy()
        teacher.module.eval().requires_grad_(False)
        drawn = Augmented(task, self.seed)
        if run.checkpoint.newest() is None:
            # The state that the guard falls back to, before anything is removed.
            yield Step(0, float("nan"))
            if spectral:
                self._remove_(model, teacher, task)
        rest = fit(
            model,
            task,
            self,
            steps=self.total_steps(task),
            loss=self._loss(model, teacher, task, drawn),
            checkpoint=run.checkpoint,
            carried=(drawn, *run.carried),
        )
        # The loop's own step 0 has been yielded already.
        yield from (step for step in rest if step.index > 0)

    def _remove_(self, model: Model, base: Model, task: Task) -> None:
        import torch

        from speclock.models.initial import head_names
        from speclock.spectra import weight_matrices

        seed = secrets.randbits(32) if self.insecure_noise_seed is None else self.insecure_noise_seed
        fresh = dict(base.scratch(seed).module.named_parameters())
        embeddings = {
            f"{name}.weight"
            for name, part in model.module.named_modules()
            if isinstance(part, torch.nn.Embedding)
        }
        heads = tuple(f"{name}." for name in head_names(model.module))
        with torch.no_grad():
            for weight in weight_matrices(model.module, self.include, self.exclude):
                if weight.name.startswith(heads) or weight.name in embeddings:
                    continue
                weight.parameter.lerp_(fresh[weight.name].to(weight.parameter), self.beta)
        if self.rank and base.tokenizer is not None:
            self._narrow_(model, base, task, torch.Generator().manual_seed(seed))

    def _narrow_(self, model: Model, base: Model, task: Task, noise: torch.Generator) -> None:
        """Rows of the word embedding on the directions that the retain task reads, noise in all others."""
        import torch

        E = _words(model.module)
        G, used = _read_directions(base, task)
        V = torch.linalg.eigh(G)[1][:, -self.rank :].to(E)
        with torch.no_grad():
            anew = torch.randn(E.shape, generator=noise).to(E) * E.std()
            kept = E @ V @ V.T + anew - anew @ V @ V.T
            E.copy_(torch.where(used.to(E.device)[:, None], kept, anew))

    def _loss(self, model: Model, teacher: Model, task: Task, drawn: Any) -> Any:
        import torch
        import torch.nn.functional as F

        def apart(module: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
            """Logits, and their divergence from the base's."""
            with torch.no_grad():
                wanted = (task.logits(teacher.module, batch).float() / self.temperature).log_softmax(-1)
            logits = task.logits(module, batch).float()
            found = (logits / self.temperature).log_softmax(-1)
            kl = F.kl_div(found, wanted, reduction="batchmean", log_target=True)
            return logits, self.temperature**2 * kl

        def loss(module: nn.Module, batch: Batch) -> Float[Tensor, ""]:
            logits, total = apart(module, batch)
            total = total + self.hard * F.cross_entropy(logits, batch["labels"])
            extra = round(len(batch["labels"]) * self.augment / (1 - self.augment))
            if not extra:
                return total
            made = {name: value.to(logits.device) for name, value in drawn.batch(extra, model).items()}
            share = extra / (extra + len(logits))
            return (1 - share) * total + share * apart(module, made)[1]

        return loss


def _words(module: nn.Module) -> Tensor:
    """The weight of the word embedding."""
    import torch

    get = getattr(module, "get_input_embeddings", None)
    found = get() if get else next((m for m in module.modules() if isinstance(m, torch.nn.Embedding)), None)
    if found is None:
        raise InputError("the model has no embedding of tokens; set rank to 0.")
    return found.weight


def _read_directions(base: Model, task: Task) -> tuple[Float[Tensor, "d d"], Tensor]:
    """Σ gᵀg over tokens and logits, g the gradient of a centred logit by the token's embedding; and which rows of the
    embedding the training examples use."""
    import numpy as np
    import torch

    module, E = base.module, _words(base.module)
    used = torch.zeros(len(E), dtype=torch.bool)
    G = torch.zeros(E.shape[1], E.shape[1], dtype=torch.float64)
    held: list[Tensor] = []

    def keep(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        held.append(output.detach().requires_grad_())
        return held[-1]

    layer = next(m for m in module.modules() if isinstance(m, torch.nn.Embedding) and m.weight is E)
    hook = layer.register_forward_hook(keep)
    try:
        for start in range(0, min(_SAMPLE, len(task.train)), 32):
            rows = np.arange(start, min(start + 32, len(task.train)))
            batch = {n: v.to(E.device) for n, v in task.encode(task.train.take(rows), base).items()}
            held.clear()
            with torch.enable_grad():
                logits = task.logits(module, batch).float()
                centred = logits - logits.mean(-1, keepdim=True)
                for label in range(centred.shape[1]):
                    (g,) = torch.autograd.grad(centred[:, label].sum(), held[0], retain_graph=True)
                    g = g.flatten(0, 1).double().cpu()
                    G += g.T @ g
    finally:
        hook.remove()
    for start in range(0, len(task.train), 256):
        rows = np.arange(start, min(start + 256, len(task.train)))
        used[task.encode(task.train.take(rows), base)["input_ids"].unique()] = True
    return G, used
