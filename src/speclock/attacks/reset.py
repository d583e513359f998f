"""Unit reset: units that no longer learn are drawn anew, and rows out of proportion are brought back."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from speclock.attacks.base import InapplicableError, Scene
from speclock.attacks.surgery import Surgery
from speclock.errors import InputError

if TYPE_CHECKING:
    import torch
    from jaxtyping import Bool, Float
    from torch import Tensor, nn
    from torch.nn.modules.batchnorm import _BatchNorm

    from speclock.models import Model
    from speclock.models.wiring import Run

    Layer = nn.Linear | nn.Conv2d

_STILL = 1e-3
"""A unit whose activation varies less than this part of its layer's median passes no gradient worth the name."""
_CLONE = 0.9999
"""Units whose activations correlate more than this are one unit."""


@dataclass(frozen=True, kw_only=True)
class ResetUnits(Surgery):
    """Dead, saturated and cloned units get new incoming weights; rows out of proportion are rescaled.

    A unit is a row of a linear layer or convolution whose output enters an activation, at once or through a batch
    norm. On the attacker's own inputs a dead or saturated one hardly varies and a clone goes with another; either
    is friction that fine-tuning cannot shed and a redraw can [cf. Dohare et al. 2024, Loss of plasticity]. Its
    incoming weights become N(0, s²/fan-in) with s the layer's median row norm, its bias 0, and its outgoing ones
    are cut to the next layer's median column. First, rows further than ``outlier`` from the median norm are
    brought to it, with their biases.
    """

    outlier: float = 4.0
    """How many times longer or shorter than its layer's median a row may be."""
    examples: int = 256
    """Training inputs on which the units are watched."""

    name: ClassVar[str] = "reset-units"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 < self.outlier < math.inf:
            raise InputError(f"outlier is {self.outlier}; it must be above 1.")
        if self.examples < 2:
            raise InputError(f"examples is {self.examples}; units are told apart on at least 2.")

    def operate_(self, model: Model, scene: Scene) -> None:
        import torch

        from speclock.models.initial import head_names
        from speclock.models.wiring import LAYERS, sample_run

        module, run = model.module, sample_run(model, scene.task, self.examples)
        heads = tuple(f"{name}." for name in head_names(module))
        generator = torch.Generator().manual_seed(self.seed)
        for name, layer in module.named_modules():
            if isinstance(layer, LAYERS) and not f"{name}.".startswith(heads):
                rescale_rows_(layer, self.outlier)
        found = [site for site in sites(module, run) if not f"{site.name}.".startswith(heads)]
        if not found:
            raise InapplicableError("no activation follows a linear layer or a convolution")
        for (
            site
        ) in found:  # in the order of the forward pass: a unit that fires again changes those behind it
            stale = stale_units(seen_by(module, run, site, site.activation)[1])
            if stale.any():
                reset_(site, stale, generator)
                if site.norm is not None:
                    settle_(site.norm, stale, seen_by(module, run, site, site.norm)[0])


class Site(NamedTuple):
    """Where units are: a layer, what stands between it and its activation, and the layer that they feed."""

    name: str
    """The layer's."""
    layer: Layer
    norm: _BatchNorm | None
    activation: nn.Module
    call: int
    """Which call of the activation's it is: one module may serve several layers."""
    fed: Layer | None = None


def sites(module: nn.Module, run: Run) -> list[Site]:
    """Every layer whose very output enters an activation, found by running the module, in that order.

    An activation is a module without parameters that returns a tensor of its input's shape, pooling and dropout
    aside. The layer fed is the first to get what it returns, through pooling and flattening that are modules.
    """
    from torch import Tensor
    from torch.nn.modules.batchnorm import _BatchNorm

    from speclock.models.wiring import LAYERS, outputs

    names = {part: name for name, part in module.named_modules()}
    from_layer: dict[int, tuple[str, Any, Any]] = {}
    from_site: dict[int, int] = {}
    calls: dict[nn.Module, int] = {}
    found: list[Site] = []
    held: list[Any] = []

    def note(part: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        call = calls[part] = calls.get(part, -1) + 1
        if not inputs or not isinstance(output, Tensor):
            return
        held.extend((inputs[0], output))  # an identity is reused once its object is gone
        layer, site = from_layer.get(id(inputs[0])), from_site.get(id(inputs[0]))
        if isinstance(part, LAYERS):
            if site is not None and found[site].fed is None:
                found[site] = found[site]._replace(fed=part)
            from_layer[id(output)] = names[part], part, None
        elif isinstance(part, _BatchNorm):
            if layer is not None and layer[2] is None:
                from_layer[id(output)] = *layer[:2], part
        elif layer is not None and _is_activation(part, inputs[0], output):
            from_layer.pop(id(output), None)  # in place, it is the layer's output no more
            from_site[id(output)] = len(found)
            found.append(Site(*layer, part, call))
        elif site is not None:
            from_site[id(output)] = site

    hooks = [
        part.register_forward_hook(note)
        for part in module.modules()
        if isinstance(part, (*LAYERS, _BatchNorm)) or not [*part.children(), *part.parameters()]
    ]
    try:
        outputs(module, run)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _is_activation(part: nn.Module, given: Tensor, returned: Tensor) -> bool:
    kind = type(part).__name__.lower()
    return (
        returned.shape == given.shape
        and (returned is not given or getattr(part, "inplace", False))
        and not any(word in kind for word in ("pool", "dropout", "identity", "flatten"))
    )


def seen_by(module: nn.Module, run: Run, site: Site, part: nn.Module) -> tuple[Tensor, Tensor]:
    """What a site's norm or activation is given and returns, as (examples and positions, units), in fp32."""
    from torch import nn

    from speclock.models.wiring import outputs

    seen: list[tuple[Tensor, Tensor]] = []

    def flat(x: Tensor) -> Tensor:
        units_last = x.movedim(1, -1) if isinstance(site.layer, nn.Conv2d) else x
        return units_last.flatten(0, -2).float().clone()  # what follows may work in place

    hooks = [
        part.register_forward_pre_hook(lambda _, inputs: seen.append((flat(inputs[0]), inputs[0]))),
        part.register_forward_hook(lambda _, __, output: seen.append((seen.pop()[0], flat(output)))),
    ]
    try:
        outputs(module, run)
    finally:
        for hook in hooks:
            hook.remove()
    return seen[site.call if part is site.activation else 0]


def stale_units(a: Float[Tensor, "n units"]) -> Bool[Tensor, " units"]:
    """The units whose activation ``a`` hardly varies, and all but the first of those that vary as one."""
    import torch

    deviation = a.std(dim=0)
    # The upper decile: most of a layer may be dead.
    stale = deviation <= _STILL * torch.quantile(deviation, 0.9)
    if len(a) >= 8:  # on fewer, strangers correlate as well
        few = a[:: math.ceil(len(a) / 4096)]
        z = (few - few.mean(dim=0)) / few.std(dim=0).clamp_min(1e-12)
        clones = (z.T @ z / (len(few) - 1)).abs() > _CLONE
        stale |= (clones.triu(1) & ~stale[:, None]).any(dim=0)
    return stale


def reset_(site: Site, stale: Bool[Tensor, " units"], generator: torch.Generator) -> None:
    """Draw the incoming weights of a site's ``stale`` units anew at the layer's own scale, and cut the outgoing."""
    import torch

    W = site.layer.weight
    rows = W.flatten(1)
    with torch.no_grad():
        scale = rows.norm(dim=1).median() / math.sqrt(rows.shape[1])
        drawn = torch.randn((int(stale.sum()), rows.shape[1]), generator=generator)
        W[stale] = drawn.to(W).view(-1, *W.shape[1:]) * scale
        for part in (site.layer, site.norm):
            if part is not None and part.bias is not None:
                part.bias[stale] = 0
        if site.norm is not None and site.norm.weight is not None:
            site.norm.weight[stale] = site.norm.weight.abs().median()
        if site.fed is not None and site.fed.weight.shape[1] % len(stale) == 0:
            outgoing = site.fed.weight.unflatten(
                1, (len(stale), -1)
            )  # flattened, a channel is several columns
            norms = outgoing.transpose(0, 1).flatten(1).norm(dim=1)
            cut = (norms.median() / norms.clamp_min(1e-12)).clamp_max(1).where(stale, norms.new_ones(()))
            outgoing.mul_(cut.view(-1, *[1] * (outgoing.ndim - 2)))


def settle_(norm: _BatchNorm, units: Bool[Tensor, " units"], x: Float[Tensor, "n units"]) -> None:
    """Put the running statistics of a batch norm's ``units`` where its input ``x`` is."""
    if norm.running_mean is not None and norm.running_var is not None:
        norm.running_mean[units] = x.mean(dim=0)[units].to(norm.running_mean)
        norm.running_var[units] = x.var(dim=0)[units].to(norm.running_var)


def rescale_rows_(layer: Layer, outlier: float) -> None:
    """Bring rows that are ``outlier`` times longer or shorter than the median to it, with their biases."""
    import torch

    with torch.no_grad():
        norms = layer.weight.flatten(1).norm(dim=1)
        factor = norms.median() / norms
        # A row of zeros has no direction to be rescaled in.
        apart = factor.isfinite() & ((factor > outlier) | (factor < 1 / outlier))
        factor = factor.where(apart, factor.new_ones(()))
        layer.weight.mul_(factor.view(-1, *[1] * (layer.weight.ndim - 1)))
        if layer.bias is not None:
            layer.bias.mul_(factor)
