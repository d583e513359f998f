"""Balancing: undoes every rescaling that adjacent layers compensate for, without knowing the lock."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from speclock.attacks.base import InapplicableError, Scene
from speclock.attacks.fuse import sample_run
from speclock.attacks.surgery import Surgery

if TYPE_CHECKING:
    import torch
    from torch import nn

    from speclock.models import Model
    from speclock.models.wiring import Run

    Layer = nn.Linear | nn.Conv2d


_ROUNDS = 100
_BALANCED = 0.01
"""Rounds end when no unit's factor is further than this from 1, in logarithm."""


@dataclass(frozen=True, kw_only=True)
class Balance(Surgery):
    """Units rescaled so that both of their layers weigh the same: ``A ← DA``, ``B ← BD⁻¹`` (or ``D⁻¹B``).

    Between layers that a positively homogeneous function joins (ReLU, pooling, dropout; values and their
    output projection), and between queries and keys, a diagonal D > 0 can be moved without changing the
    function. Which pairs these are is found by trying a random D on each pair of layers that are called in
    turn; for those that leave the answers as they were, d_i makes the norms of the two sides' unit i equal.

    In front of a batch norm the size of a layer's weights says nothing, but rates act by it: such a layer is brought
    to the size that initialisation gives, and the running statistics with it.
    """

    reach: int = 2
    """How many calls further on a layer's partner is looked for."""

    name: ClassVar[str] = "balance"

    def operate_(self, model: Model, scene: Scene) -> None:
        from torch import nn

        from speclock.models import wiring

        run = sample_run(model, scene)
        order = wiring.call_order(model.module, run)
        norms = (nn.BatchNorm1d, nn.BatchNorm2d)
        normed = wiring.feeding(model.module, run, wiring.LAYERS, norms)
        for layer, norm in normed:
            get = model.module.get_submodule
            resize_(model.module, get(layer), get(norm), run)
        moves: list[Move] = []
        for i, first in enumerate(order):
            for second in order[i + 1 : i + 1 + self.reach]:
                A, B = model.module.get_submodule(first), model.module.get_submodule(second)
                moves += movable(model.module, A, B, run, self.seed)
        if not moves and not normed:
            raise InapplicableError("no two layers can be rescaled against each other")
        # Each pair's balance upsets its neighbours'; together they converge to the least total norm.
        for _ in range(_ROUNDS):
            if max((move.balance_() for move in moves), default=0.0) < _BALANCED:
                break


@dataclass(frozen=True)
class Move:
    """A way to rescale the outputs of A against B: B's inputs (serial) or B's outputs (parallel)."""

    A: Layer
    B: Layer
    serial: bool

    def fits(self) -> bool:
        """Whether each of A's outputs has as many counterparts in B."""
        return self.B.weight.shape[1 if self.serial else 0] % self.A.weight.shape[0] == 0

    def scale_(self, d: torch.Tensor) -> None:
        """``A ← diag(d) A``, and B's counterparts divided by d."""
        import torch

        with torch.no_grad():
            self.A.weight.mul_(d.view(-1, *[1] * (self.A.weight.ndim - 1)))
            if self.A.bias is not None:
                self.A.bias.mul_(d)
            B = self.B.weight
            each = d.repeat_interleave(B.shape[1 if self.serial else 0] // len(d))
            if self.serial:
                B.div_(each.view(1, -1, *[1] * (B.ndim - 2)))
            else:
                B.div_(each.view(-1, *[1] * (B.ndim - 1)))
                if self.B.bias is not None:
                    self.B.bias.div_(each)

    def balance_(self) -> float:
        """``d_i = √(‖B's unit i‖ / ‖A's unit i‖)``; returns the largest |log d_i|."""
        # In float64: what was moved by 2⁶³ has norms that fp32 does not hold.
        A, B = self.A.weight.detach().double(), self.B.weight.detach().double()
        n = A.shape[0]
        outgoing = (B.movedim(1, 0) if self.serial else B).reshape(n, -1)
        incoming = A.reshape(n, -1).norm(dim=1)
        d = (outgoing.norm(dim=1) / incoming).sqrt()
        # A dead unit, with nothing on one side, has no balance.
        d = d.where(d.isfinite() & (d > 0), d.new_ones(())).to(self.A.weight.dtype)
        self.scale_(d)
        return float(d.log().abs().max())


def resize_(module: nn.Module, layer: nn.Module, norm: nn.Module, run: Run) -> None:
    """Give a layer in front of a batch norm the size that it is initialised with, where that changes no answer."""
    import torch

    from speclock.models.wiring import outputs

    parts: list[torch.Tensor] = [
        t
        for t in (layer.weight, layer.bias, norm.running_mean, norm.running_var)
        if isinstance(t, torch.Tensor)
    ]
    kept = [t.detach().clone() for t in parts]
    before = outputs(module, run)
    with torch.no_grad():
        # Uniform within ±1/√fan_in [torch's own initialisation of both]: a variance of 1/(3·fan_in).
        W = layer.weight.detach().double().flatten(1)  # type: ignore[operator]
        size = float(W.square().mean().sqrt())
        if not 0 < size < float("inf"):
            return
        d = (3 * W.shape[1]) ** -0.5 / size
        for t in parts:
            t.mul_(d**2 if t is norm.running_var else d)
        after = outputs(module, run)
        if not (after - before).norm() <= 1e-3 * before.norm():
            for t, value in zip(parts, kept, strict=True):
                t.copy_(value)


def movable(module: nn.Module, A: nn.Module, B: nn.Module, run: Run, seed: int) -> Iterator[Move]:
    """The moves between two layers that leave the module's answers as they are."""
    import torch

    from speclock.models.wiring import outputs

    for serial in (True, False):
        move = Move(A, B, serial)  # type: ignore[arg-type]
        if not move.fits():
            continue
        kept = [(p, p.detach().clone()) for layer in (A, B) for p in layer.parameters(recurse=False)]
        before = outputs(module, run)
        generator = torch.Generator().manual_seed(seed)
        d = torch.rand(move.A.weight.shape[0], generator=generator).add_(0.5).to(move.A.weight)
        move.scale_(d)
        after = outputs(module, run)
        with torch.no_grad():
            for p, value in kept:
                p.copy_(value)
        if (after - before).norm() <= 1e-3 * before.norm():
            yield move
