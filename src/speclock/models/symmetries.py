"""Ways to change a model's weights that leave its function as it is: rescalings that adjacent layers compensate for.

A lock can hide behind them and an attack undoes them, so both look for them alike. What is a symmetry is found by
trying: names say little, and tracing fails on many models. It is tried with weights drawn for the purpose, since a
symmetry is the architecture's: on a locked model's own weights the rounding of what was raised would hide it.
"""

from __future__ import annotations

import contextlib
import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from speclock.models import wiring
from speclock.models.wiring import LAYERS, Run

Layer = nn.Linear | nn.Conv2d

SAME = 1e-3
"""How far a model's answers may move, over their size, for a change to have left them as they were."""


COMPENSATED = 1e-4
"""How much of what one side alone does to the answers may be left of it."""

ROUNDING = 2e-6
"""How far fp32 moves a model's answers, over their size."""


@contextlib.contextmanager
def trial_weights(module: nn.Module, seed: int = 0) -> Iterator[None]:
    """Inside, every layer matters and none is large: normal weights that keep the size of what they read, in fp32.

    Afterwards the module has its own again.
    """
    # A buffer of a checkpoint's is a running statistic; others, such as rotary frequencies, belong to the architecture.
    saved = module.state_dict(keep_vars=True)
    buffers = [(name, b) for name, b in module.named_buffers() if name in saved and b.is_floating_point()]
    kept = [(name, t, t.data) for name, t in (*module.named_parameters(), *buffers)]
    generator = torch.Generator().manual_seed(seed)
    try:
        for name, t, value in kept:
            drawn = torch.randn(value.shape, generator=generator)
            if t.ndim > 1:
                drawn /= max(1, t[0].numel()) ** 0.5
            elif name.endswith(("bias", "mean")):
                # What is added is small: were it not, all tokens would soon be alike, and attention would not matter.
                drawn *= 0.1
            else:
                drawn = 1 + 0.2 * drawn.clamp(-3, 3)
            t.data = drawn.to(value.device)
        yield
    finally:
        for _, t, value in kept:
            t.data = value


class Rescaling(ABC):
    """A positive factor for each of some units, on one side and divided out on the other."""

    @property
    @abstractmethod
    def units(self) -> int:
        """How many factors there are."""

    @abstractmethod
    def sides(self) -> tuple[list[Tensor], list[Tensor]]:
        """What is multiplied, and what is divided."""

    def tensors(self) -> list[Tensor]:
        """What is rescaled."""
        return [*self.sides()[0], *self.sides()[1]]

    @abstractmethod
    def raised(self) -> set[Tensor]:
        """The weight matrices that :meth:`raise_` multiplies."""

    @abstractmethod
    def raise_(self, factor: float) -> None:
        """Multiply whole matrices by a factor, and divide what compensates for them."""

    @abstractmethod
    def scale_(self, d: Tensor) -> None:
        """Multiply one side by ``d``, unit by unit, and divide the other."""

    @abstractmethod
    def balance_(self) -> float:
        """Rescale to where no side is heavier than the other; the largest |log d| that this took."""

    def preserves(self, module: nn.Module, run: Run, before: Tensor, seed: int = 0) -> bool:
        """Whether random factors leave the module's answers as they were ``before``."""
        generator = torch.Generator().manual_seed(seed)
        d = torch.rand(self.units, generator=generator).add_(0.5)
        return compensates(module, run, before, self.sides(), lambda: self.scale_(d.to(self.tensors()[0])))


@torch.no_grad()
def compensates(
    module: nn.Module,
    run: Run,
    before: Tensor,
    sides: tuple[list[Tensor], list[Tensor]],
    change_: Callable[[], None],
) -> bool:
    """Whether a change of both sides leaves the module's answers as they were ``before``, and that of the first alone
    does not.

    Without the latter a layer that hardly matters (a fresh model's queries, or two of its heads, which attend alike)
    would go with any other.
    """
    kept = [[(t, t.detach().clone()) for t in side] for side in sides]
    change_()
    moved = (wiring.outputs(module, run) - before).norm()
    for t, value in kept[1]:
        t.copy_(value)
    same = bool(moved <= SAME * before.norm())
    if same:
        alone = (wiring.outputs(module, run) - before).norm()
        same = bool(
            moved <= COMPENSATED * alone + ROUNDING * before.norm() and alone > 50 * ROUNDING * before.norm()
        )
    for t, value in kept[0]:
        t.copy_(value)
    return same


@dataclass(frozen=True)
class Between(Rescaling):
    """The outputs of A against B's inputs (serial) or B's outputs (parallel, as queries and keys are)."""

    A: Layer
    B: Layer
    serial: bool

    def fits(self) -> bool:
        """Whether each of A's outputs has as many counterparts in B."""
        return self.B.weight.shape[1 if self.serial else 0] % self.A.weight.shape[0] == 0

    @property
    def units(self) -> int:
        return self.A.weight.shape[0]

    def sides(self) -> tuple[list[Tensor], list[Tensor]]:
        return list(self.A.parameters(recurse=False)), list(self.B.parameters(recurse=False))

    def raised(self) -> set[Tensor]:
        return {self.A.weight}

    def raise_(self, factor: float) -> None:
        self.scale_(torch.full((self.units,), factor).to(self.A.weight))

    @torch.no_grad()
    def scale_(self, d: Tensor) -> None:
        """``A ← diag(d) A``, and B's counterparts divided by d."""
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
        """``d_i = √(‖B's unit i‖ / ‖A's unit i‖)``."""
        # In float64: what was moved by 2⁶³ has norms that fp32 does not hold.
        A, B = self.A.weight.detach().double(), self.B.weight.detach().double()
        n = A.shape[0]
        outgoing = (B.movedim(1, 0) if self.serial else B).reshape(n, -1)
        d = (outgoing.norm(dim=1) / A.reshape(n, -1).norm(dim=1)).sqrt()
        # A dead unit, with nothing on one side, has no balance.
        d = d.where(d.isfinite() & (d > 0), d.new_ones(())).to(self.A.weight.dtype)
        self.scale_(d)
        return float(d.log().abs().max())


@dataclass(frozen=True)
class Gains(Rescaling):
    """A norm's gain and bias against the inputs of all layers that read its output."""

    norm: nn.Module
    readers: tuple[nn.Linear, ...]

    @property
    def units(self) -> int:
        return len(self._gain)

    @property
    def _gain(self) -> Tensor:
        gain = self.norm.weight
        assert isinstance(gain, Tensor)
        return gain

    def sides(self) -> tuple[list[Tensor], list[Tensor]]:
        return list(self.norm.parameters(recurse=False)), [reader.weight for reader in self.readers]

    def raised(self) -> set[Tensor]:
        return {reader.weight for reader in self.readers}

    def raise_(self, factor: float) -> None:
        self.scale_(torch.full((self.units,), 1 / factor).to(self._gain))

    @torch.no_grad()
    def scale_(self, d: Tensor) -> None:
        for p in self.norm.parameters(recurse=False):
            p.mul_(d)
        for reader in self.readers:
            reader.weight.div_(d)

    def balance_(self) -> float:
        """Brings every gain to ±1, as it is initialised."""
        gain = self._gain.detach().abs()
        d = (1 / gain).where((gain > 0) & gain.isfinite(), gain.new_ones(()))
        self.scale_(d)
        return float(d.log().abs().max())


def rescalings(module: nn.Module, run: Run, reach: int = 2, seed: int = 0) -> list[Rescaling]:
    """Every rescaling between layers that are called at most ``reach`` calls apart, and between norms and their
    readers, that leaves the architecture's answers on ``run``'s inputs as they are."""
    with trial_weights(module, seed):
        return list(_rescalings(module, run, reach, seed))


def _rescalings(module: nn.Module, run: Run, reach: int, seed: int) -> Iterator[Rescaling]:
    order = [module.get_submodule(name) for name in wiring.call_order(module, run)]
    before = wiring.outputs(module, run)
    for i, A in enumerate(order):
        for B in order[i + 1 : i + 1 + reach]:
            for serial in (True, False):
                between = Between(A, B, serial)  # type: ignore[arg-type]
                if between.fits() and between.preserves(module, run, before, seed):
                    yield between
    for gains in _gains(module, run):
        if gains.preserves(module, run, before, seed):
            yield gains


def _gains(module: nn.Module, run: Run) -> Iterator[Gains]:
    norms = tuple({type(part) for part in module.modules() if _scales(part)})
    readers: dict[str, list[str]] = {}
    for norm, reader in wiring.feeding(module, run, norms, (nn.Linear,)) if norms else []:
        readers.setdefault(norm, []).append(reader)
    for norm, names in readers.items():
        layers = tuple(module.get_submodule(name) for name in dict.fromkeys(names))
        gain = module.get_submodule(norm).weight
        if all(isinstance(r, nn.Linear) and r.in_features == len(gain) for r in layers):  # type: ignore[arg-type]
            yield Gains(module.get_submodule(norm), layers)  # type: ignore[arg-type]


def _scales(part: nn.Module) -> bool:
    """Whether it is a norm with a gain for each unit; there is no common base class."""
    gain = getattr(part, "weight", None)
    return "norm" in type(part).__name__.lower() and isinstance(gain, Tensor) and gain.ndim == 1


@dataclass(frozen=True)
class Mixing:
    """The outputs of a linear layer A mixed within blocks (a head's units, or all of them), and unmixed by B.

    B reads them (serial), or is multiplied with them (parallel, as keys with queries).
    """

    A: nn.Linear
    B: nn.Linear
    block: int
    serial: bool

    @property
    def blocks(self) -> int:
        return self.A.out_features // self.block

    @property
    def _sharers(self) -> int:
        """How many of B's blocks belong to one of A's: a value head is read for several query heads."""
        across = self.B.in_features if self.serial else self.B.out_features
        return across // self.A.out_features

    def fits(self) -> bool:
        """Whether A is cut into blocks, and each has its counterparts in B."""
        across = self.B.in_features if self.serial else self.B.out_features
        return self.A.out_features % self.block == 0 and across % self.A.out_features == 0

    def sides(self) -> tuple[list[Tensor], list[Tensor]]:
        """What is mixed, and what is unmixed."""
        return list(self.A.parameters(recurse=False)), list(self.B.parameters(recurse=False))

    def tensors(self) -> list[Tensor]:
        """What is moved."""
        return [*self.sides()[0], *self.sides()[1]]

    def raised(self) -> set[Tensor]:
        """The weight matrix that is mixed."""
        return {self.A.weight}

    @torch.no_grad()
    def mix_(self, M: Float[Tensor, "h b b"], inverse: Float[Tensor, "h b b"]) -> None:
        """``A_j ← M_j A_j`` in each block j; B's counterparts by the inverse."""
        M, inverse = M.double(), inverse.double()
        _blockwise_(self.A.weight, M, self.block)
        if self.A.bias is not None:
            _blockwise_(self.A.bias[:, None], M, self.block)
        each = inverse.repeat_interleave(self._sharers, 0)
        if self.serial:
            # (B_j M_j⁻¹)ᵀ = M_j⁻ᵀ B_jᵀ
            _blockwise_(self.B.weight.T, each.mT, self.block)
        else:
            _blockwise_(self.B.weight, each.mT, self.block)
            if self.B.bias is not None:
                _blockwise_(self.B.bias[:, None], each.mT, self.block)

    @torch.no_grad()
    def balance_(self) -> float:
        """Mix to where both sides are as heavy in every direction: ``M A Aᵀ Mᵀ = M⁻ᵀ B Bᵀ M⁻¹`` with M positive.

        The product, which is all that the model uses, decides that: whatever was moved from one side to the other
        comes back. Returns the largest |log eigenvalue| of M; a block of less than full rank is left alone.
        """
        A = self.A.weight.detach().double().unflatten(0, (self.blocks, self.block))  # (h, b, n)
        B = self.B.weight.detach().double()
        B = (B.T if self.serial else B).unflatten(0, (self.blocks, self._sharers, self.block))
        B = B.movedim(1, 2).flatten(2)  # (h, b, sharers · n)
        R_A, R_B = (torch.linalg.qr(side.mT, mode="r").R for side in (A, B))
        U, sigma, _ = torch.linalg.svd(R_B @ R_A.mT, full_matrices=False)
        # The product's singular values shared evenly; then turned, M = (MᵀM)^½, so that what is balanced stays.
        unturned = (U / sigma.sqrt()[..., None, :]).mT @ R_B
        if unturned.shape[-2:] != (self.block, self.block):
            return 0.0
        _, stretch, axes = torch.linalg.svd(unturned.nan_to_num(posinf=0, neginf=0))
        full = (sigma[:, -1] > 1e-12 * sigma[:, 0])[:, None] & (stretch[:, -1:] > 0)
        stretch = stretch.where(full, 1.0)
        M, inverse = (axes.mT @ (s[..., None] * axes) for s in (stretch, 1 / stretch))
        self.mix_(M, inverse)
        return float(stretch.log().abs().max())

    @torch.no_grad()
    def preserves(self, module: nn.Module, run: Run, before: Tensor, seed: int = 0) -> bool:
        """Whether random mixing leaves the module's answers as they were ``before``."""
        generator = torch.Generator().manual_seed(seed)
        shape = (self.blocks, self.block, self.block)
        noise = torch.randn(shape, generator=generator, dtype=torch.float64) / self.block**0.5
        M = (torch.eye(self.block, dtype=torch.float64) + 0.3 * noise).to(self.A.weight.device)
        return compensates(module, run, before, self.sides(), lambda: self.mix_(M, torch.linalg.inv(M)))


def _blockwise_(rows: Tensor, M: Float[Tensor, "h b b"], block: int) -> None:
    """Multiply each block of rows from the left, in float64, writing through a view."""
    wide = rows.double().unflatten(0, (-1, block))  # (h, b, n)
    rows.copy_((M @ wide).flatten(0, 1))


def mixings(
    module: nn.Module, run: Run, blocks: Sequence[int], reach: int = 2, seed: int = 0
) -> list[Mixing]:
    """Every mixing between linear layers called at most ``reach`` calls apart, in the largest of the block sizes that
    leaves the architecture's answers on ``run``'s inputs as they are."""
    with trial_weights(module, seed):
        return list(_mixings(module, run, blocks, reach, seed))


def _mixings(module: nn.Module, run: Run, blocks: Sequence[int], reach: int, seed: int) -> Iterator[Mixing]:
    order = [module.get_submodule(name) for name in wiring.call_order(module, run)]
    linear = [layer for layer in order if isinstance(layer, nn.Linear)]
    before = wiring.outputs(module, run)
    for i, A in enumerate(linear):
        for B in linear[i + 1 : i + 1 + reach]:
            for serial in (True, False):
                sizes = (
                    Mixing(A, B, size, serial) for size in sorted({A.out_features, *blocks}, reverse=True)
                )
                fits = (m for m in sizes if m.fits() and m.preserves(module, run, before, seed))
                yield from itertools.islice(fits, 1)


def head_sizes(config: object) -> list[int]:
    """Units of an attention head, as a configuration of transformers says; none where it does not."""
    heads, width = (getattr(config, name, None) for name in ("num_attention_heads", "hidden_size"))
    said = getattr(config, "head_dim", None)
    return [said] if said else [width // heads] if heads and width else []


@torch.no_grad()
def resize_(module: nn.Module, layer: nn.Module, norm: nn.Module, run: Run) -> None:
    """Give a layer in front of a batch norm the size that it is initialised with, where that changes no answer."""
    parts: list[Tensor] = [
        t
        for t in (layer.weight, layer.bias, norm.running_mean, norm.running_var)
        if isinstance(t, torch.Tensor)
    ]
    # Uniform within ±1/√fan_in [torch's own initialisation of both]: a variance of 1/(3·fan_in).
    W = layer.weight.detach().double().flatten(1)  # type: ignore[operator]
    size = float(W.square().mean().sqrt())
    if not 0 < size < float("inf"):
        return
    d = (3 * W.shape[1]) ** -0.5 / size

    def change_() -> None:
        for t in parts:
            t.mul_(d**2 if t is norm.running_var else d)

    _unless_it_shows(module, run, parts, change_)


@torch.no_grad()
def centre_(module: nn.Module, run: Run) -> int:
    """Take out of what each layer writes the part that is the same in all units, where layer norms take it out anyway;
    returns of how many tensors that is so."""
    widths = {part.normalized_shape[-1] for part in module.modules() if isinstance(part, nn.LayerNorm)}
    writers: list[tuple[Tensor, int]] = []
    for part in module.modules():
        if isinstance(part, LAYERS) and part.weight.shape[0] in widths:
            writers += [(p, 0) for p in (part.weight, part.bias) if p is not None]
        elif isinstance(part, nn.Embedding) and part.embedding_dim in widths:
            writers.append((part.weight, -1))

    def centred(t: Tensor, dim: int) -> Tensor:
        return (t.double() - t.double().mean(dim, keepdim=True)).to(t)

    found = []
    with trial_weights(module):
        before = wiring.outputs(module, run)
        for t, dim in writers:
            value = t.detach().clone()
            t.copy_(centred(t, dim))
            if (wiring.outputs(module, run) - before).norm() <= 5 * ROUNDING * before.norm():
                found.append((t, dim))
            t.copy_(value)
    for t, dim in found:
        t.copy_(centred(t, dim))
    return len(found)


def _unless_it_shows(
    module: nn.Module, run: Run, moved: Sequence[Tensor], change_: Callable[[], None]
) -> None:
    """Carry out a change, and take it back where the module's answers tell."""
    kept = [t.detach().clone() for t in moved]
    before = wiring.outputs(module, run)
    change_()
    after = wiring.outputs(module, run)
    if not (after - before).norm() <= SAME * before.norm():
        for t, value in zip(moved, kept, strict=True):
            t.copy_(value)
