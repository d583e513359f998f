"""The loss of a model on a fixed sample of a task, whose curvature is measured."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from speclock.curvature import Hessian
from speclock.errors import InputError
from speclock.models import Model
from speclock.tasks.base import Batch, Task


@dataclass(frozen=True)
class Objective:
    """A task's mean loss over a fixed sample, in evaluation mode and float32: a function of the weights alone."""

    model: Model
    """A copy of its own, with a fresh head where the task has other labels; :meth:`descend` moves it."""
    task: Task
    """The task on the sample alone."""
    batches: list[Batch]
    """The sample in mini-batches, which bound the memory that a product with the Hessian takes."""

    @classmethod
    def of(
        cls, model: Model, task: Task, *, samples: int = 64, batch_size: int = 16, seed: int = 0
    ) -> Objective:
        """The objective of ``samples`` training examples, drawn by ``seed``, each class in proportion.

        Raises :class:`InputError` where the task has no examples or the model is of another kind.
        """
        task.check_kind(model)
        if samples < 1:
            raise InputError(f"samples is {samples}; curvature needs at least one example.")
        copy = model.copy() if model.labels == task.head else model.with_head(task.head, seed)
        copy.module.float().eval()
        sample = task.limit(train=samples, seed=seed)
        device = next(copy.module.parameters()).device
        batches = [
            {name: value.to(device) for name, value in batch.items()}
            for batch in sample.batches(copy, "train", batch_size)
        ]
        return cls(copy, sample, batches)

    def parameters(self) -> dict[str, Tensor]:
        """What an attacker trains: every parameter that takes a gradient, tied ones once."""
        return {name: p for name, p in self.model.module.named_parameters() if p.requires_grad}

    def hessian(self) -> Hessian:
        """Of the mean loss over the sample, with respect to :meth:`parameters`."""
        return Hessian([partial(self._share, batch) for batch in self.batches], self.parameters())

    def _share(self, batch: Batch) -> Tensor:
        weight = len(batch["labels"]) / len(self.task.train)
        return weight * self.task.loss(self.model.module, batch)

    def descend(self, rate: float) -> None:
        """One step of gradient descent on the whole sample, in place."""
        H = self.hessian()
        slopes = H.parts(H.gradient())
        with torch.no_grad():
            for name, p in H.parameters.items():
                p.sub_(slopes[name].to(p.device), alpha=rate)

    def adam_preconditioner(self, *, batch_size: int = 16, eps: float = 1e-8) -> NDArray[np.floating]:
        """``√(mean g²) + ε`` over the gradients of mini-batches of the sample: what Adam divides by once it has seen
        them all from where the model stands."""
        device = next(self.model.module.parameters()).device
        squares, count = np.zeros(self.hessian().shape[0], np.float32), 0
        for batch in self.task.batches(self.model, "train", batch_size):
            moved = {name: value.to(device) for name, value in batch.items()}
            mean_loss = partial(self.task.loss, self.model.module, moved)
            square = Hessian([mean_loss], self.parameters()).gradient()
            square *= square
            squares += square
            count += 1
        return np.sqrt(squares / count) + eps
