"""Low-rank adapters: the locked weights frozen, a small product trained beside them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from speclock.attacks.base import InapplicableError, Scene
from speclock.attacks.finetune import FineTune
from speclock.errors import InputError
from speclock.registry import unknown

if TYPE_CHECKING:
    from speclock.models import Model
    from speclock.training import Step

LAYERS = ("all", "unlocked")


@dataclass(frozen=True, kw_only=True)
class LoRA(FineTune):
    """``W + (α/r) B A`` with W frozen, on the linear layers and convolutions, the head trained in full (peft)."""

    rank: int = 8
    """r, the adapters' rank; α is 2r."""
    layers: str = "all"
    """Adapters on all layers, or only on those whose spectrum does not stand out (unlocked)."""

    name: ClassVar[str] = "lora"
    kind: ClassVar[str] = "adapters"
    joint: ClassVar[str | None] = " with "

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rank < 1:
            raise InputError(f"rank is {self.rank}; it must be at least 1.")
        if self.layers not in LAYERS:
            raise InputError(unknown("layers", self.layers, list(LAYERS)))

    def requires(self) -> None:
        super().requires()
        try:
            import peft  # noqa: F401
        except ModuleNotFoundError as error:
            raise InputError("lora comes with peft: pip install 'speclock[attacks]'.") from error

    def prepare_(self, model: Model, scene: Scene) -> None:
        super().prepare_(model, scene)
        self.requires()
        from peft import LoraConfig, inject_adapter_in_model

        from speclock.attacks.repair import suspects
        from speclock.models.initial import head_names, seeded
        from speclock.models.wiring import LAYERS as KINDS

        heads = tuple(f"{name}." for name in head_names(model.module))
        avoided = {w.name for w in suspects(model, 0.5)} if self.layers == "unlocked" else set()
        targets = [
            name
            for name, layer in model.module.named_modules()
            if isinstance(layer, KINDS)
            and not f"{name}.".startswith(heads)
            and f"{name}.weight" not in avoided
        ]
        if not targets:
            raise InapplicableError("there is no layer to put an adapter on")
        config = LoraConfig(r=self.rank, lora_alpha=2 * self.rank, target_modules=targets)
        with seeded(self.seed):
            inject_adapter_in_model(config, model.module)

    def trajectory(self, model: Model, scene: Scene) -> Iterator[Step]:
        from speclock.models.initial import head_names
        from speclock.training import fit

        heads = tuple(f"{name}." for name in head_names(model.module))
        for name, p in model.module.named_parameters():
            p.requires_grad_("lora_" in name or name.startswith(heads))
        yield from fit(model, scene.task, self, steps=scene.steps, skips=True, title=self.name)

    def finish_(self, model: Model) -> None:
        from peft.tuners.tuners_utils import BaseTunerLayer

        from speclock.models.wiring import replace_submodules_

        merged = {}
        for name, layer in model.module.named_modules():
            if isinstance(layer, BaseTunerLayer):
                layer.merge()
                merged[name] = layer.get_base_layer()
        replace_submodules_(model.module, merged)
