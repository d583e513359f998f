"""Fine-tuning: the attack that everybody tries first, with every knob that an attacker can turn."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from speclock.attacks.base import Attack, InapplicableError, Scene
from speclock.errors import InputError
from speclock.numbers import short
from speclock.recipe import Recipe
from speclock.registry import unknown

if TYPE_CHECKING:
    from torch import nn

    from speclock.models import Model
    from speclock.training import Step

PARAMETERS = ("all", "all-but-norms", "norms", "biases", "head")
LAYER_RATES = ("uniform", "spectral")


@dataclass(frozen=True, kw_only=True)
class FineTune(Recipe, Attack):
    """The model trained on the attack task with the task's own loss."""

    clip: float | None = 1.0
    """Largest gradient norm; none leaves gradients as they are."""
    parameters: str = "all"
    """What is trained beside the head: all, all-but-norms, norms, biases, or nothing else (head)."""
    layer_rates: str = "uniform"
    """One learning rate for all (uniform), or η ∝ 1/σ₁² for each weight matrix, the median's being lr (spectral)."""
    temperature: float = 0.0
    """Langevin noise: N(0, 2·temperature/lr) is added to each gradient before it is clipped."""

    name: ClassVar[str] = "finetune"
    joint: ClassVar[str | None] = None
    """How a label joins a further attack's name and the optimizer."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for field, known in (("parameters", PARAMETERS), ("layer_rates", LAYER_RATES)):
            if getattr(self, field) not in known:
                raise InputError(unknown(field, getattr(self, field), list(known)))
        if not 0 <= self.temperature < math.inf:
            raise InputError(f"temperature is {self.temperature}; it must not be negative.")

    @property
    def label(self) -> str:
        """
        >>> FineTune(optimizer="adamw", dropout=False).label
        'adamw (no dropout)'
        """
        settings = f" ({self.settings()})" if self.settings() else ""
        return (
            f"{self.optimizer}{settings}"
            if self.joint is None
            else f"{self.name}{settings}{self.joint}{self.optimizer}"
        )

    @property
    def title(self) -> str:
        """
        >>> FineTune(optimizer="sgd", lr=3e-4).title
        'sgd at lr 3e-4'
        """
        return f"{self.label} at lr {short(self.lr)}"

    def settings(self) -> str:
        """What is not at its default, in words; the optimizer, its rate and its decay are said elsewhere."""
        words = []
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value == field.default or field.name in ("optimizer", "lr", "weight_decay", "seed"):
                continue
            spoken = field.name.replace("_", " ")
            if value is None or value is False:
                words.append(f"no {spoken}")
            elif isinstance(value, str):
                words.append(value)
            elif isinstance(value, float):
                words.append(f"{spoken} {short(value)}")
            else:
                words.append(f"{spoken} {value}")
        return ", ".join(words)

    def prepare_(self, model: Model, scene: Scene) -> None:
        from torch import nn

        modules = list(model.module.modules())
        if not self.batch_statistics and not any(
            isinstance(m, nn.modules.batchnorm._BatchNorm) for m in modules
        ):
            raise InapplicableError("there is no batch norm to freeze")
        if self.parameters in ("norms", "all-but-norms") and not any(map(_is_norm, modules)):
            raise InapplicableError("there is no normalisation layer")

    def trajectory(self, model: Model, scene: Scene) -> Iterator[Step]:
        from speclock.training import fit

        select_(model.module, self.parameters)
        yield from fit(
            model,
            scene.task,
            self,
            steps=scene.steps,
            rates=spectral_rates(model.module) if self.layer_rates == "spectral" else None,
            add_gradient_=self._noise(model.module) if self.temperature else None,
            title=self.name,
        )

    def _noise(self, module: nn.Module) -> Callable[[], None]:
        import torch

        generator = torch.Generator().manual_seed(self.seed)
        size = math.sqrt(2 * self.temperature / self.lr)

        def add() -> None:
            for p in module.parameters():
                if p.grad is not None:
                    p.grad.add_(torch.randn(p.shape, generator=generator).to(p.grad), alpha=size)

        return add


def select_(module: nn.Module, which: str) -> None:
    """Make just these parameters trainable, whatever the publisher froze; the head always is."""
    from speclock.models.initial import head_names

    norms = {
        id(p)
        for submodule in module.modules()
        if _is_norm(submodule)
        for p in submodule.parameters(recurse=False)
    }
    heads = tuple(f"{name}." for name in head_names(module))
    wanted = {
        "all": lambda name, p: True,
        "all-but-norms": lambda name, p: id(p) not in norms,
        "norms": lambda name, p: id(p) in norms,
        "biases": lambda name, p: name.endswith("bias"),
        "head": lambda name, p: False,
    }[which]
    for name, p in module.named_parameters():
        p.requires_grad_(name.startswith(heads) or wanted(name, p))


def _is_norm(module: nn.Module) -> bool:
    return "norm" in type(module).__name__.lower()


def spectral_rates(module: nn.Module) -> dict[str, float]:
    """η_W / η for every weight matrix: (median σ₁ / σ₁(W))², so that steep directions get short steps."""
    from statistics import median

    from speclock.spectra import singular_values, weight_matrices

    sigma = {w.name: float(singular_values(w.matrix.detach(), 1)[0]) for w in weight_matrices(module)}
    middle = median(sigma.values())
    return {name: (middle / value) ** 2 if value > 0 else 1.0 for name, value in sigma.items()}
