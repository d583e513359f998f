"""What a lock's training holds on to: the retain task, the base's answers, or both."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from jaxtyping import Float
    from torch import Tensor, nn

    from speclock.models import Model
    from speclock.tasks.base import Batch, Task
    from speclock.training import Loss

RETAIN = ("task", "kl", "task+kl")


def retain_loss(model: Model, task: Task, retain: str, weight: float = 1.0, *, repeats: bool = False) -> Loss:
    """``weight`` times the task's loss (task), the divergence from the base (kl), or their sum.

    The base is ``model`` as it is handed in; ``repeats`` says that the training comes to an example more than once.
    """
    base = Teacher(model.copy(), task, repeats) if "kl" in retain else None

    def loss(module: nn.Module, batch: Batch) -> Float[Tensor, ""]:
        logits = task.logits(module, batch).float()
        total = logits.new_zeros(())
        if "task" in retain:
            total = total + task.loss_of(logits, batch)
        if base is not None:
            total = total + task.averaged(divergence(base.logits(batch), logits), batch)
        return weight * total

    return loss


class Teacher:
    """A frozen classifier whose answers are wanted; each training example's is computed once where it is asked again.

    What else it is asked (inputs that were made, language models' texts, whose answers are large) it computes anew.
    The examples are answered all at once and in their own order, so that a resumed training hears the same.
    """

    def __init__(self, model: Model, task: Task, repeats: bool) -> None:
        self.model, self.task = model, task
        self.remembers = repeats and task.kind == "classification"
        self._answers: dict[bytes, Tensor] = {}

    def logits(self, batch: Batch) -> Float[Tensor, "b c"]:
        """On the batch's own device, in fp32, without a gradient."""
        import torch

        device = batch["labels"].device
        # The loss is made before the loop moves the student, should it move it.
        self.model = self.model.to(device)
        self.model.module.eval().requires_grad_(False)
        with torch.no_grad():
            if self.remembers:
                if not self._answers:
                    self._answer_all(device)
                known = [self._answers.get(key) for key in _keys(batch)]
                found = [answer for answer in known if answer is not None]
                if len(found) == len(known):
                    return torch.stack(found).to(device)
            return self.task.logits(self.model.module, batch).float()

    def _answer_all(self, device: torch.device) -> None:
        for batch in self.task.batches(self.model, "train", 32):
            there = {name: value.to(device) for name, value in batch.items()}
            answers = self.task.logits(self.model.module, there).float().cpu()
            self._answers.update(zip(_keys(batch), answers, strict=True))


def _keys(batch: Batch) -> list[bytes]:
    """A digest of each row's inputs, whatever it is padded to."""
    inputs = {name: value.detach().cpu() for name, value in batch.items() if name != "labels"}
    mask = inputs.get("attention_mask")
    found = []
    for row in range(len(batch["labels"])):
        digest = hashlib.sha256()
        for name, value in inputs.items():
            part = value[row] if mask is None or value.shape != mask.shape else value[row][mask[row].bool()]
            digest.update(name.encode() + part.numpy().tobytes())
        found.append(digest.digest())
    return found


def divergence(
    wanted: Float[Tensor, "b c"], logits: Float[Tensor, "b c"], temperature: float = 1.0
) -> Float[Tensor, " b"]:
    """``T² KL(p_wanted ‖ p)`` of each row of logits, both softened by the temperature T; in nats."""
    import torch.nn.functional as F

    found, wanted = ((z / temperature).log_softmax(-1) for z in (logits, wanted))
    return temperature**2 * F.kl_div(found, wanted, reduction="none", log_target=True).sum(-1)
