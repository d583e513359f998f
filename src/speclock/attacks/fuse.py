"""Fusing adjacent linear layers: undoes a compensated pair in seconds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from speclock.attacks.base import InapplicableError, Scene
from speclock.attacks.surgery import Surgery

if TYPE_CHECKING:
    from torch import nn

    from speclock.models import Model


@dataclass(frozen=True, kw_only=True)
class Fuse(Surgery):
    """``C(Wx + b) + d → (CW)x + (Cb + d)`` wherever one linear layer feeds another with nothing between.

    A lock that raises W and undoes it in C leaves the function as it was and the curvature high; the product
    has neither. Pairs are found by running the model, and only fused if its answers stay the same.
    """

    name: ClassVar[str] = "fuse"

    def operate_(self, model: Model, scene: Scene) -> None:
        from torch import nn

        from speclock.models import wiring
        from speclock.models.initial import head_names

        # The head stays apart: it is drawn for the task, and what the model did before is asked of its own.
        heads = tuple(f"{name}." for name in head_names(model.module))
        run = wiring.sample_run(model, scene.task)
        fused = 0
        # A chain C₂C₁W takes several rounds: each leaves the product feeding the next.
        while pairs := wiring.feeding(model.module, run):
            before = wiring.outputs(model.module, run)
            done = 0
            for first, second in pairs:
                W, C = model.module.get_submodule(first), model.module.get_submodule(second)
                if f"{second}.".startswith(heads) or not (
                    isinstance(W, nn.Linear) and isinstance(C, nn.Linear)
                ):
                    continue  # or already part of another pair of this round
                wiring.replace_submodules_(model.module, {first: product(C, W), second: nn.Identity()})
                after = wiring.outputs(model.module, run)
                # Raised and lowered again in fp32, a function is exact to the raise times 1e-7 only.
                if (after - before).norm() > 1e-2 * before.norm():
                    wiring.replace_submodules_(model.module, {first: W, second: C})
                else:
                    done += 1
            fused += done
            if not done:
                break
        if not fused:
            raise InapplicableError("no linear layer feeds another directly")


def product(C: nn.Linear, W: nn.Linear) -> nn.Linear:
    """The layer that applies ``W`` and then ``C``, computed in float64."""
    import torch
    from torch import nn

    from speclock.spectra import back_from_float64, in_float64

    with torch.no_grad():
        outer = in_float64(C.weight)
        bias = outer.new_zeros(C.out_features)
        if W.bias is not None:
            bias += outer @ in_float64(W.bias)
        if C.bias is not None:
            bias += in_float64(C.bias)
        weight = outer @ in_float64(W.weight)
    layer = nn.Linear(W.in_features, C.out_features, device="meta")
    layer.weight = nn.Parameter(back_from_float64(weight, W.weight))
    layer.bias = nn.Parameter(back_from_float64(bias, W.weight))
    return layer
