"""Factor chains: each layer trained as a product of k well-conditioned factors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, cast

from speclock.attacks.base import InapplicableError, Scene
from speclock.attacks.surgery import Surgery
from speclock.errors import InputError

if TYPE_CHECKING:
    from torch import nn

    from speclock.models import Model


_MARK = "speclock_chain"
"""Attribute by which a chain is told from the model's own sequences."""


@dataclass(frozen=True, kw_only=True)
class Chain(Surgery):
    """``W = UΣVᵀ → (UΣ^{1/k}) · Σ^{1/k} ⋯ (Σ^{1/k}Vᵀ)``: k linear layers of norm σ₁^{1/k} in W's place.

    The function is W's; what is trained has singular values that are k-th roots [arXiv 2602.18868].
    Linear layers only, the head's aside; multiplied out again in the end.
    """

    factors: int = 2
    """k, at least 2: layers in each linear layer's place."""

    name: ClassVar[str] = "chain"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.factors < 2:
            raise InputError(f"factors is {self.factors}; a chain has at least 2.")

    def operate_(self, model: Model, scene: Scene) -> None:
        from torch import nn

        from speclock.models import wiring
        from speclock.models.initial import output_names

        heads = output_names(model.module)
        chains = {
            name: factored(layer, self.factors)
            for name, layer in model.module.named_modules()
            if type(layer) is nn.Linear and not any(f"{name}.".startswith(f"{head}.") for head in heads)
        }
        if not chains:
            raise InapplicableError("there is no linear layer but the head")
        wiring.replace_submodules_(model.module, chains)

    def finish_(self, model: Model) -> None:
        from torch import nn

        from speclock.models import wiring

        chains = {
            name: multiplied(layer)
            for name, layer in model.module.named_modules()
            if isinstance(layer, nn.Sequential) and hasattr(layer, _MARK)
        }
        wiring.replace_submodules_(model.module, chains)


def factored(layer: nn.Linear, k: int) -> nn.Sequential:
    """``layer`` as a chain of ``k`` linear layers, the bias on the last."""
    import torch
    from torch import nn

    from speclock.spectra import back_from_float64, in_float64

    W = layer.weight.detach()
    U, sigma, Vh = torch.linalg.svd(in_float64(W), full_matrices=False)
    root = sigma ** (1 / k)
    weights = [root[:, None] * Vh, *(torch.diag(root) for _ in range(k - 2)), U * root]
    links = []
    for weight in weights:
        link = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
        link.weight = nn.Parameter(back_from_float64(weight, W))
        links.append(link)
    if layer.bias is not None:
        links[-1].bias = nn.Parameter(layer.bias.detach().clone())
    chain = nn.Sequential(*links).train(layer.training)
    setattr(chain, _MARK, True)
    return chain


def multiplied(chain: nn.Sequential) -> nn.Linear:
    """The one layer that a chain computes."""
    from speclock.attacks.fuse import product

    links = cast("list[nn.Linear]", list(chain))
    layer = links[0]
    for link in links[1:]:
        layer = product(link, layer)
    if links[-1].bias is None:
        layer.register_parameter("bias", None)
    return layer.train(chain.training)
