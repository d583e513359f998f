"""Which parameters of a module are weight matrices, and how each is seen as one."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.parameter import is_lazy

from speclock.errors import InputError


@dataclass(frozen=True, eq=False)
class WeightMatrix:
    """A parameter with two or more dimensions, seen as a matrix.

    One matrix per parameter: fused QKV, stacked experts and the gates of a recurrent cell stay whole.

    >>> conv = weight_matrices(nn.Conv2d(3, 8, 5))[0]
    >>> conv.name, conv.shape
    ('weight', (8, 75))
    """

    name: str
    """The parameter's name in the module, the first one if it is tied."""
    parameter: nn.Parameter
    lead: int = 0
    """Leading dimensions of size 1 that are dropped (a position embedding of shape (1, N, D))."""
    transposed_groups: int = 0
    """Groups of a transposed convolution, whose weight is stored (in, out/groups, …); 0 for all else."""

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns) of the matrix."""
        size = self.parameter.shape
        rows = size[1] * self.transposed_groups if self.transposed_groups else size[self.lead]
        return rows, self.parameter.numel() // rows

    @property
    def matrix(self) -> Float[Tensor, "m n"]:
        """The parameter as a matrix, differentiable.

        A view, so that writes under ``torch.no_grad()`` reach the parameter, except for transposed
        convolutions with more than one tap and for memory layouts that do not unfold: these
        are copies. :meth:`assign_` writes either kind.
        """
        return self.unfold(self.parameter)

    def unfold(self, tensor: Float[Tensor, ...]) -> Float[Tensor, "m n"]:
        """``tensor``, of the parameter's shape, as a matrix: a view where strides allow, else a copy.

        A convolution unfolds to (out, in·kh·kw); a transposed one, stored (in, out/groups, kh, kw), to
        (out, in/groups·kh·kw).
        """
        if g := self.transposed_groups:
            fan_in, fan_out, *taps = tensor.shape
            grouped = tensor.reshape(g, fan_in // g, fan_out, *taps).transpose(1, 2)
            return grouped.reshape(self.shape)
        return tensor.reshape(self.shape)

    def fold(self, matrix: Float[Tensor, "m n"]) -> Float[Tensor, ...]:
        """The inverse of :meth:`unfold`: ``matrix`` in the parameter's shape."""
        size = self.parameter.shape
        if g := self.transposed_groups:
            fan_in, fan_out, *taps = size
            return matrix.reshape(g, fan_out, fan_in // g, *taps).transpose(1, 2).reshape(size)
        return matrix.reshape(size)

    @torch.no_grad()
    def assign_(self, W: Float[Tensor, "m n"]) -> None:
        """Writes ``W`` into the parameter, in its dtype and on its device."""
        self.parameter.copy_(self.fold(W))


def weight_matrices(
    module: nn.Module, include: Sequence[str] = (), exclude: Sequence[str] = ()
) -> list[WeightMatrix]:
    """Every floating-point parameter of ``module`` with two or more dimensions, tied ones once.

    ``include`` keeps only, and ``exclude`` then drops, the names that match one of its patterns
    (``fnmatch``: ``"encoder.*.weight"``); a tied parameter answers to each of its names. Parameters
    without elements are left out.

    Raises:
        InputError: a pattern that matches no weight matrix, or a lazy parameter without a shape yet.
    """
    found: dict[nn.Parameter, tuple[WeightMatrix, list[str]]] = {}
    for owner, name, parameter in _owned_parameters(module):
        if parameter in found:
            found[parameter][1].append(name)
        elif (seen := _as_matrix(owner, name, parameter)) is not None:
            found[parameter] = seen, [name]

    names = [name for _, aliases in found.values() for name in aliases]
    for option, patterns in (("include", include), ("exclude", exclude)):
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in names):
                raise InputError(_no_match(option, pattern, names))

    def matches(aliases: list[str], patterns: Sequence[str]) -> bool:
        return any(fnmatchcase(name, pattern) for name in aliases for pattern in patterns)

    return [
        matrix
        for matrix, aliases in found.values()
        if (not include or matches(aliases, include)) and not matches(aliases, exclude)
    ]


def _owned_parameters(module: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Parameter]]:
    """(owner, full name, parameter), a tied parameter under each of its names."""
    for prefix, owner in module.named_modules(remove_duplicate=False):
        for name, parameter in owner.named_parameters(recurse=False, remove_duplicate=False):
            yield owner, f"{prefix}.{name}" if prefix else name, parameter


def _as_matrix(owner: nn.Module, name: str, parameter: nn.Parameter) -> WeightMatrix | None:
    if is_lazy(parameter):
        raise InputError(f"parameter {name!r} has no shape yet. Run one batch through the model first.")
    if parameter.ndim < 2 or parameter.numel() == 0 or not parameter.is_floating_point():
        return None
    if isinstance(owner, _ConvTransposeNd):
        return WeightMatrix(name, parameter, transposed_groups=owner.groups)
    lead = 0
    if not isinstance(owner, _ConvNd):  # a convolution with one output channel keeps its row
        while parameter.ndim - lead > 2 and parameter.shape[lead] == 1:
            lead += 1
    return WeightMatrix(name, parameter, lead=lead)


def _no_match(option: str, pattern: str, names: list[str]) -> str:
    if not names:
        return f"{option} {pattern!r} matches nothing: the model has no weight matrix."
    near = difflib.get_close_matches(pattern, names, n=1, cutoff=0.0)[0]
    return f"{option} {pattern!r} matches no weight matrix. Did you mean {near!r}?"
