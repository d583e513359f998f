"""Distillation: what the released model knows, taught to another, and the imitation that repairs use too."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from speclock.attacks.base import InapplicableError, Scene
from speclock.attacks.finetune import FineTune
from speclock.errors import InputError
from speclock.recipe import Recipe
from speclock.registry import unknown

if TYPE_CHECKING:
    import torch
    from torch import nn

    from speclock.models import Model
    from speclock.tasks.base import Task
    from speclock.training import Step

STUDENTS = ("fresh", "public")


@dataclass(frozen=True, kw_only=True)
class Distill(FineTune):
    """A student without the lock's weights learns the released model's features, then the attack task."""

    student: str = "fresh"
    """Who is taught: the architecture freshly initialised (fresh) or a public base (public)."""
    teaching: float = 0.5
    """Steps of imitation before the first label, as a multiple of the budget."""

    name: ClassVar[str] = "distill"
    kind: ClassVar[str] = "distillation"
    joint: ClassVar[str | None] = ", then "

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.student not in STUDENTS:
            raise InputError(unknown("student", self.student, list(STUDENTS)))
        if not 0 < self.teaching < math.inf:
            raise InputError(f"teaching is {self.teaching}; it must be a positive number.")

    @property
    def needs_public(self) -> bool:
        return self.student == "public"

    def unlabelled(self, steps: int) -> int:
        return max(1, round(self.teaching * steps))

    def prepare_(self, model: Model, scene: Scene) -> None:
        super().prepare_(model, scene)
        if self.student == "fresh":
            model.module = model.scratch(self.seed).module
        elif scene.public is None:
            raise InapplicableError("no public base is known (--public-base)")
        else:
            model.module = scene.public.with_head_of(model).module

    def trajectory(self, model: Model, scene: Scene) -> Iterator[Step]:
        lessons = self.unlabelled(scene.steps)
        yield from in_turn(
            imitation(model, scene.released, scene.task, self, lessons), super().trajectory(model, scene)
        )


def imitation(student: Model, teacher: Model, task: Task, recipe: Recipe, steps: int) -> Iterator[Step]:
    """Train ``student`` in place to give the head what ``teacher`` gives its own, on the task's inputs.

    The loss is the mean squared error of the features over their variance in the batch. Labels are not used.
    """
    import torch

    from speclock.training import fit

    tutor = teacher.copy().module.eval().requires_grad_(False)

    def loss(module: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        with torch.no_grad():
            wanted = features(tutor, task, batch)
        found = features(module, task, batch)
        return ((found - wanted) ** 2).mean() / wanted.var(dim=0, unbiased=False).mean().clamp_min(1e-12)

    student.module.requires_grad_(True)
    yield from fit(student, task, recipe, steps=steps, loss=loss, skips=True, title="imitation")


def features(module: nn.Module, task: Task, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """What the head is given for a batch, flattened: (examples, width), in fp32."""
    from speclock.models.initial import output_names

    seen: list[torch.Tensor] = []
    head = module.get_submodule(output_names(module)[0])
    hook = head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        task.answer(module, batch)  # not its logits: the teacher's head may have other labels
    finally:
        hook.remove()
    return seen[-1].flatten(1).float()


def in_turn(first: Iterator[Step], second: Iterator[Step]) -> Iterator[Step]:
    """Two trainings as one: the second's steps and passes go on from the first's."""
    taken, passes = 0, 0
    for step in first:
        taken, passes = step.index, step.passes
        yield step
        if step.diverged:
            return
    for step in second:
        if step.index:
            yield step._replace(index=taken + step.index, passes=passes + step.passes)
