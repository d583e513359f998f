"""What a lock's training holds on to: the retain task, the base's answers, or both."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor, nn

    from speclock.models import Model
    from speclock.tasks.base import Batch, Task
    from speclock.training import Loss

RETAIN = ("task", "kl", "task+kl")


def retain_loss(model: Model, task: Task, retain: str, weight: float = 1.0) -> Loss:
    """``weight`` times the task's loss (task), the divergence from the base (kl), or their sum.

    The base is ``model`` as it is handed in.
    """
    base = model.copy() if "kl" in retain else None
    if base is not None:
        base.module.eval().requires_grad_(False)

    def loss(module: nn.Module, batch: Batch) -> Float[Tensor, ""]:
        nonlocal base
        logits = task.logits(module, batch).float()
        total = logits.new_zeros(())
        if "task" in retain:
            total = total + task.loss_of(logits, batch)
        if base is not None:
            # The loss is made before the loop moves the student, should it move it.
            base = base.to(logits.device)
            total = total + divergence(base, task, logits, batch)
        return weight * total

    return loss


def divergence(
    teacher: Model, task: Task, logits: Float[Tensor, "b c"], batch: Batch, temperature: float = 1.0
) -> Float[Tensor, ""]:
    """``T² KL(p_teacher ‖ p)`` over a batch, both softened by the temperature T; in nats."""
    import torch
    import torch.nn.functional as F

    with torch.no_grad():
        wanted = (task.logits(teacher.module, batch).float() / temperature).log_softmax(-1)
    found = (logits / temperature).log_softmax(-1)
    return temperature**2 * F.kl_div(found, wanted, reduction="batchmean", log_target=True)
