"""Descent with no gradient at all: differences of the loss in random directions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor


class ZerothOrder(torch.optim.Optimizer):
    """``W ← W − lr · mean_j [(ℓ(W + εz_j) − ℓ(W − εz_j)) / 2ε] z_j`` with z_j ~ N(0, I).

    Simultaneous perturbation [Spall 1992]; directions are drawn again from their seeds rather than stored, so
    that the memory is that of inference [Malladi et al. 2023, MeZO, arXiv 2305.17333]. Each step costs
    2·``probes`` evaluations of the loss.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-6,
        weight_decay: float = 0.0,
        epsilon: float = 1e-3,
        probes: int = 8,
        seed: int = 0,
    ) -> None:
        super().__init__(
            params,
            {"lr": lr, "weight_decay": weight_decay, "epsilon": epsilon, "probes": probes, "seed": seed},
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], float]) -> None:  # type: ignore[override]
        """One descent step; ``closure`` returns the loss at the weights as they are."""
        settings = self.param_groups[0]
        state = self.state[settings["params"][0]]
        taken = state["taken"] = state.get("taken", 0) + 1
        epsilon, probes = settings["epsilon"], settings["probes"]
        seeds = [(settings["seed"] * 1_000_003 + taken) * probes + j for j in range(probes)]
        slopes = []
        for seed in seeds:
            self._move(seed, epsilon)
            above = closure()
            self._move(seed, -2 * epsilon)
            below = closure()
            self._move(seed, epsilon)
            slopes.append((above - below) / (2 * epsilon))
        for group in self.param_groups:
            for p in group["params"]:
                p.mul_(1 - group["lr"] * group["weight_decay"])
        for seed, slope in zip(seeds, slopes, strict=True):
            self._move(seed, -slope / probes, by_rate=True)

    def _move(self, seed: int, size: float, *, by_rate: bool = False) -> None:
        generator = torch.Generator().manual_seed(seed)
        for p, lr in self._trained():
            z = torch.randn(p.shape, generator=generator).to(p.device, p.dtype)
            p.add_(z, alpha=size * (lr if by_rate else 1.0))

    def _trained(self) -> Iterator[tuple[Tensor, float]]:
        for group in self.param_groups:
            for p in group["params"]:
                yield p, group["lr"]
