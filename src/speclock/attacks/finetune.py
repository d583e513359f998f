"""Fine-tuning: the attack that everybody tries first, with every knob that an attacker can turn."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from speclock.attacks.base import Attack, InapplicableError, Scene
from speclock.environment import has_bf16
from speclock.errors import InputError
from speclock.numbers import short
from speclock.optimizers import optimizer_named
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
    embedding_rate: float = 1.0
    """The embeddings' learning rate over the others'; an image network's embedding is its first convolution."""
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
        for field in ("embedding_rate", "temperature"):
            if not 0 <= getattr(self, field) < math.inf:
                raise InputError(f"{field} is {getattr(self, field)}; it must not be negative.")

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

    def requires(self) -> None:
        optimizer_named(self.optimizer).load()

    def prepare_(self, model: Model, scene: Scene) -> None:
        from torch import nn

        modules = list(model.module.modules())
        if self.precision == "bf16" and not has_bf16():
            raise InapplicableError("the processor has no bf16 arithmetic")
        if self.embedding_rate != 1 and not embedding_names(model.module):
            raise InapplicableError("there is no embedding")
        if not self.batch_statistics and not any(
            isinstance(m, nn.modules.batchnorm._BatchNorm) for m in modules
        ):
            raise InapplicableError("there is no batch norm to freeze")
        if self.parameters in ("norms", "all-but-norms") and not any(map(is_norm, modules)):
            raise InapplicableError("there is no normalisation layer")

    def trajectory(self, model: Model, scene: Scene) -> Iterator[Step]:
        from speclock.training import fit

        select_(model.module, self.parameters)
        yield from fit(
            model,
            scene.task,
            self,
            steps=scene.steps,
            rates=self._rates(model.module),
            add_gradient_=self._noise(model.module) if self.temperature else None,
            skips=True,
            title=self.name,
        )

    def _rates(self, module: nn.Module) -> dict[str, float]:
        """η_W / η by parameter, where it is not 1."""
        rates = spectral_rates(module) if self.layer_rates == "spectral" else {}
        if self.embedding_rate != 1:
            for name in embedding_names(module):
                rates[name] = rates.get(name, 1.0) * self.embedding_rate
        return rates

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
        if is_norm(submodule)
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


def embedding_names(module: nn.Module) -> list[str]:
    """The parameters of every ``nn.Embedding``; without one, those of the first convolution."""
    from torch import nn

    found = [name for name, part in module.named_modules() if isinstance(part, nn.Embedding)]
    if not found:
        convolutions = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
        found = [name for name, part in module.named_modules() if isinstance(part, convolutions)][:1]
    prefixes = tuple(f"{name}." if name else "" for name in found)
    return [name for name, _ in module.named_parameters() if name.startswith(prefixes)]


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a normalisation layer, by its class's name: there is no common base class."""
    return "norm" in type(module).__name__.lower()


def spectral_rates(module: nn.Module) -> dict[str, float]:
    """η_W / η for every weight matrix: (median σ₁ / σ₁(W))², so that steep directions get short steps."""
    from statistics import median

    from speclock.spectra import singular_values, weight_matrices

    sigma = {w.name: float(singular_values(w.matrix.detach(), 1)[0]) for w in weight_matrices(module)}
    middle = median(sigma.values())
    return {name: (middle / value) ** 2 if value > 0 else 1.0 for name, value in sigma.items()}
