"""The spectral term of Algorithm 1: the mean of the top-k singular values of every weight matrix."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from speclock.errors import InputError
from speclock.spectra.matrices import WeightMatrix, weight_matrices
from speclock.spectra.topk import converge, start_basis, top_singular, working_dtype

LOST = 0.3
"""Residual above which a basis is not stale but lost: as good as a random one."""

START_STEPS = 30
"""Most subspace iterations of a cold start."""

CHUNK = 1 << 18
"""Elements of the fp32 block through which a narrower gradient is updated: 1 MiB, which stays in cache."""


@runtime_checkable
class _HasModule(Protocol):
    module: nn.Module


@dataclass(eq=False)
class _Track:
    """What is known of one weight matrix's top singular triplets, and when to look again."""

    matrix: WeightMatrix
    basis: Tensor | None = None  # (s, b)
    U: Tensor | None = None  # (m, k)
    V: Tensor | None = None  # (n, k)
    sigma: tuple[float, ...] = ()  # only those that are there
    interval: int = 1
    due: int = 0


class SpectralPenalty:
    """(1/n) Σ_i σ_i over the top k singular values of every trainable weight matrix [Algorithm 1, line 7].

    n is the number of σ collected: k for each matrix, or as many as it has. With the singular vectors held
    constant σ_i = u_iᵀ W v_i, whose gradient U_k V_kᵀ is that of Σσ_i, so no SVD is in the graph:

    >>> model = nn.Linear(2, 2, bias=False)
    >>> _ = model.weight.data.copy_(torch.diag(torch.tensor([3.0, 1.0])))
    >>> penalty = SpectralPenalty(model, top_k=1)
    >>> penalty().backward()
    >>> model.weight.grad
    tensor([[1., 0.],
            [0., 0.]])

    In a loop of your own: ``loss = α*retain − (1−α)*penalty()``. The same, at less cost and without autograd,
    between ``backward`` and ``optimizer.step``: ``penalty.add_gradient_(−(1−α))``.

    The vectors are kept between calls. Each matrix's basis is refreshed by one subspace iteration, two passes
    over the matrix, when it is due: every call at first, half as often each time its residual r comes out
    ≤ ``tolerance``/2, down to once in ``max_interval`` calls, and every call again when r > ``tolerance``.
    The value and the gradient err in the second order: u_iᵀWv_i misses about r² of σ_i, over the relative gap
    between the σ kept and the rest. The default 0.1 thus stands for about one per cent. A basis with r > 0.3
    has been lost, by a reload of other weights say, and is sought anew from a random one; :meth:`restart` has
    that happen at the next call, not up to ``max_interval`` later.

    Whatever the weights' dtype, spectra are computed in fp32 or wider. Same seed and weights, same values;
    :meth:`state_dict` continues a run bit for bit.

    Args:
        model: a module, or anything that holds one as ``.module``. Frozen parameters are left out.
        top_k: singular values for each matrix.
        include: name patterns (``fnmatch``) of the matrices to take; all, if empty.
        exclude: name patterns of the matrices to leave out.
        seed: of the random start bases.
        tolerance: the residual up to which a basis counts as fresh.
        max_interval: calls between two refreshes, at most.

    Raises:
        InputError: ``top_k`` below 1, a pattern that matches nothing, no trainable weight matrix.
    """

    def __init__(
        self,
        model: nn.Module | _HasModule,
        top_k: int = 2,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        *,
        seed: int = 0,
        tolerance: float = 0.1,
        max_interval: int = 16,
    ) -> None:
        if top_k < 1:
            raise InputError(f"top_k must be 1 or more, got {top_k}.")
        module = model if isinstance(model, nn.Module) else model.module
        matrices = [
            matrix for matrix in weight_matrices(module, include, exclude) if matrix.parameter.requires_grad
        ]
        if not matrices:
            raise InputError(
                "no trainable weight matrix to penalise. Unfreeze one, or loosen include and exclude."
            )
        self.top_k = top_k
        self.tolerance = tolerance
        self.max_interval = max_interval
        self._tracks = [_Track(matrix) for matrix in matrices]
        self._calls = 0
        self._seed = seed
        self._generator = torch.Generator().manual_seed(seed)
        self._warned: set[str] = set()

    @property
    def matrices(self) -> list[WeightMatrix]:
        """The weight matrices penalised."""
        return [track.matrix for track in self._tracks]

    def __call__(self) -> Float[Tensor, ""]:
        """The penalty, differentiable. Dearer than :meth:`add_gradient_` by a few passes over each matrix."""
        self._refresh_due()
        first = self._tracks[0].matrix.parameter
        total = torch.zeros((), device=first.device, dtype=working_dtype(first))
        for track in self._tracks:
            assert track.U is not None
            assert track.V is not None
            W = track.matrix.matrix.to(track.U.dtype)
            total = total + (track.U * (W @ track.V)).sum().to(total.device)
        return total / max(1, self._count())

    @torch.no_grad()
    def add_gradient_(self, scale: float) -> float:
        """Adds ``scale``·∇penalty to every ``.grad`` in place, and returns the penalty as last refreshed.

        A rank-k update U_kV_kᵀ of each gradient: no copy of a weight or a gradient is made. A ``.grad`` of
        None is created.

        Raises:
            InputError: a sparse gradient.
        """
        self._refresh_due()
        count = max(1, self._count())
        for track in self._tracks:
            _add_outer_(track, scale / count)
        return sum(sum(track.sigma) for track in self._tracks) / count

    def sigma(self) -> dict[str, Float[Tensor, " k"]]:
        """The top k singular values of each matrix now, iterated to a residual of 1e-3. Changes no state."""
        generator = torch.Generator().manual_seed(self._seed)
        found = {}
        for track in self._tracks:
            W = track.matrix.matrix.detach()
            basis = track.basis
            if basis is None or not basis.isfinite().all():
                basis = start_basis(track.matrix.shape, self.top_k, generator, like=W)
            found[track.matrix.name] = converge(W, basis, self.top_k, 1e-3, START_STEPS).sigma
        return found

    @torch.no_grad()
    def assign_(self, sigma: Mapping[str, Sequence[float]]) -> None:
        """Brings the top singular values of each named matrix to these, in place: ``W += U diag(sigma − σ) Vᵀ``.

        Every basis is refreshed first, and stays what it was: the vectors do not change.
        """
        for track in self._tracks:
            wanted = sigma.get(track.matrix.name)
            if wanted is None:
                continue
            self._refresh(track)
            assert track.U is not None
            assert track.V is not None
            k = min(len(wanted), len(track.sigma))
            change = track.U.new_tensor([wanted[i] - track.sigma[i] for i in range(k)])
            W = track.matrix.matrix.detach().to(track.U.dtype)
            track.matrix.assign_(W + (track.U[:, :k] * change) @ track.V[:, :k].T)

    def restart(self) -> None:
        """Forgets every basis, so that the next call starts cold: call it after loading other weights."""
        for track in self._tracks:
            track.basis, track.interval, track.due = None, 1, 0

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs to continue bit for bit, besides the weights."""
        return {
            "calls": self._calls,
            "generator": self._generator.get_state(),
            "matrices": {
                track.matrix.name: {
                    "basis": _copy(track.basis),
                    "U": _copy(track.U),
                    "V": _copy(track.V),
                    "sigma": track.sigma,
                    "interval": track.interval,
                    "due": track.due,
                }
                for track in self._tracks
            },
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes up a state of :meth:`state_dict`.

        Raises:
            InputError: the state is of other weight matrices.
        """
        names = [track.matrix.name for track in self._tracks]
        if differing := sorted(set(names) ^ set(state["matrices"])):
            raise InputError(
                f"the saved penalty is of other weight matrices: {differing[0]!r} is only in one of the two."
                " Resume with the model, include and exclude of the first run."
            )
        self._calls = state["calls"]
        self._generator.set_state(state["generator"].cpu())
        for track in self._tracks:
            saved = state["matrices"][track.matrix.name]
            device = track.matrix.parameter.device
            track.basis, track.U, track.V = (_copy(saved[key], device) for key in ("basis", "U", "V"))
            track.sigma = tuple(saved["sigma"])
            track.interval, track.due = saved["interval"], saved["due"]

    def _count(self) -> int:
        return sum(len(track.sigma) for track in self._tracks)

    @torch.no_grad()
    def _refresh_due(self) -> None:
        short = {}
        for track in self._tracks:
            if self._calls >= track.due:
                self._refresh(track)
                if len(track.sigma) < self.top_k and track.matrix.name not in self._warned:
                    short[track.matrix.name] = len(track.sigma)
        self._calls += 1
        if short:
            self._warned |= short.keys()
            listed = ", ".join(f"{name} ({there})" for name, there in short.items())
            warnings.warn(
                f"top_k={self.top_k} is more singular values than these matrices have; using what there is:"
                f" {listed}.",
                UserWarning,
                stacklevel=3,
            )

    def _refresh(self, track: _Track) -> None:
        W = track.matrix.matrix.detach()
        top = None
        if track.basis is not None:
            top = top_singular(W, self._with_probe(track.basis), self.top_k)
        if top is None or not top.residual <= LOST:
            basis = start_basis(track.matrix.shape, self.top_k, self._generator, like=W)
            top = converge(W, basis, self.top_k, self.tolerance, START_STEPS)
            track.interval = 1
        elif top.residual <= self.tolerance / 2:  # twice the drift would still be fresh
            track.interval = min(2 * track.interval, self.max_interval)
        elif top.residual > self.tolerance:
            track.interval = 1
        track.basis, track.U, track.V = top.basis, top.U, top.V
        # NaN counts as there, so that diverged weights show in the value.
        track.sigma = tuple(s for s in top.sigma.tolist() if s != 0)
        track.due = self._calls + track.interval

    def _with_probe(self, basis: Float[Tensor, "s b"]) -> Float[Tensor, "s b"]:
        """``basis`` with a random last column: a direction that rose outside it would else stay unseen."""
        side, width = basis.shape
        if width == side:
            return basis
        kept = basis[:, :-1]
        probe = torch.randn(side, generator=self._generator).to(basis)
        for _ in range(2):  # once more, for what rounding left
            probe = probe - kept @ (kept.T @ probe)
        return torch.cat([kept, (probe / probe.norm())[:, None]], dim=1)


def _add_outer_(track: _Track, scale: float) -> None:
    """grad += scale·U Vᵀ on the gradient's matrix view."""
    matrix, U, V = track.matrix, track.U, track.V
    assert U is not None
    assert V is not None
    if matrix.parameter.grad is None:
        matrix.parameter.grad = torch.zeros_like(matrix.parameter)
    grad = matrix.parameter.grad
    if grad.layout is not torch.strided:
        raise InputError(
            f"{matrix.name!r} has a sparse gradient, which has no matrix view. Exclude it, or build its"
            " embedding with sparse=False."
        )
    view = matrix.unfold(grad)
    if view.untyped_storage().data_ptr() != grad.untyped_storage().data_ptr():
        grad.add_(matrix.fold(U @ V.T), alpha=scale)
    elif view.dtype == U.dtype:
        view.addmm_(U, V.T, alpha=scale)
    else:
        rows = max(1, CHUNK // view.shape[1])
        for part, U_part in zip(view.split(rows), U.split(rows), strict=True):
            part.add_(U_part @ V.T, alpha=scale)


def _copy(tensor: Tensor | None, device: torch.device | None = None) -> Tensor | None:
    return None if tensor is None else tensor.detach().to(device or tensor.device, copy=True)
