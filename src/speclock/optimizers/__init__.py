"""Optimizers by name: whose they are, how they are called, and what they need of the training loop.

Nothing here imports torch: a recipe checks its optimizer's name before anything is loaded.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from speclock.errors import InputError
from speclock.registry import unknown


class Needs(Enum):
    """What an optimizer's ``step`` wants of the loop beside the gradient in ``.grad``."""

    GRADIENT = "nothing"
    CLOSURE = "a closure that computes the gradient anew, at weights that the optimizer chooses"
    GRAPH = "a gradient that can be differentiated again, for Hessian-vector products"
    LOSS = "a closure that computes the loss alone: no gradient is ever taken"


@dataclass(frozen=True)
class Optimizer:
    """An optimizer that a recipe can name."""

    target: str
    """``module:Class``."""
    about: str
    """One line for people."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Settings that make it what its name says; the recipe gives the rest."""
    needs: Needs = Needs.GRADIENT

    def load(self) -> Any:
        """The class; :class:`InputError` that says what to install where its package is missing."""
        module, attribute = self.target.split(":")
        try:
            return getattr(importlib.import_module(module), attribute)
        except ModuleNotFoundError as error:
            raise InputError(
                f"{attribute} comes with {error.name}, which is not installed: pip install 'speclock[attacks]'."
            ) from error


def _torch(cls: str, about: str, needs: Needs = Needs.GRADIENT, **arguments: Any) -> Optimizer:
    return Optimizer(f"torch.optim:{cls}", about, arguments, needs)


def _pytorch_optimizer(cls: str, about: str, needs: Needs = Needs.GRADIENT, **arguments: Any) -> Optimizer:
    return Optimizer(f"pytorch_optimizer:{cls}", about, arguments, needs)


OPTIMIZERS: Mapping[str, Optimizer] = {
    # First order, torch.optim.
    "sgd": _torch("SGD", "plain gradient descent"),
    "sgd-momentum": _torch("SGD", "heavy ball, momentum 0.9", momentum=0.9),
    "sgd-nesterov": _torch("SGD", "Nesterov's momentum 0.9", momentum=0.9, nesterov=True),
    "asgd": _torch("ASGD", "averaged SGD"),
    "rprop": _torch("Rprop", "resilient backpropagation: signs with step sizes of their own"),
    "adagrad": _torch("Adagrad", "AdaGrad"),
    "adadelta": _torch("Adadelta", "AdaDelta"),
    "rmsprop": _torch("RMSprop", "RMSprop"),
    "adam": _torch("Adam", "Adam"),
    "adamw": _torch("AdamW", "Adam with decoupled weight decay"),
    "adamax": _torch("Adamax", "Adam in the infinity norm"),
    "nadam": _torch("NAdam", "Adam with Nesterov's momentum"),
    "radam": _torch("RAdam", "rectified Adam"),
    "adafactor": _torch("Adafactor", "Adam with factored second moments"),
    # First order, elsewhere.
    "lion": _pytorch_optimizer("Lion", "signs of an interpolated momentum"),
    "lamb": _pytorch_optimizer("Lamb", "Adam with a trust ratio ‖W‖/‖ΔW‖ for each layer"),
    # The published coefficient of 0.001 is folded into the learning rate of its recipes; ours gives it plainly.
    "lars": _pytorch_optimizer(
        "LARS", "momentum with a trust ratio ‖W‖/‖g‖ for each layer", trust_coefficient=1.0
    ),
    "muon": Optimizer(
        "speclock.optimizers.adapters:Muon", "orthogonalised momentum for matrices, AdamW for the rest"
    ),
    "sam": Optimizer(
        "speclock.optimizers.adapters:SharpnessAware",
        "AdamW at the worst weights nearby",
        needs=Needs.CLOSURE,
    ),
    "zeroth-order": Optimizer(
        "speclock.optimizers.zeroth_order:ZerothOrder",
        "differences of the loss in random directions, no gradient",
        needs=Needs.LOSS,
    ),
    # Preconditioned and second order.
    # In blocks: the full roots of one wide layer take a second a step.
    "shampoo": _pytorch_optimizer(
        "ScalableShampoo",
        "Kronecker-factored AdaGrad, inverse roots in blocks of 128",
        block_size=128,
        start_preconditioning_step=2,
        preconditioning_compute_steps=5,
    ),
    "soap": _pytorch_optimizer(
        "SOAP",
        "Adam in Shampoo's eigenbasis, sides beyond 1024 left alone",
        precondition_frequency=5,
        max_precondition_dim=1024,
    ),
    "sophia": _pytorch_optimizer(
        "SophiaH", "momentum over Hutchinson's Hessian diagonal, clipped", Needs.GRAPH, update_period=2
    ),
    "adahessian": _pytorch_optimizer("AdaHessian", "Adam over Hutchinson's Hessian diagonal", Needs.GRAPH),
    "kron": Optimizer(
        "speclock.optimizers.adapters:Kron",
        "PSGD: Kronecker factors that whiten gradients, of vectors fitted to Hessian-vector products",
        needs=Needs.CLOSURE,
    ),
    "xmat": Optimizer(
        "speclock.optimizers.xmat:XMat",
        "PSGD: diagonal plus anti-diagonal inverse Hessian fitted by Hessian-vector products",
        needs=Needs.GRAPH,
    ),
    "lbfgs": _torch(
        "LBFGS",
        "limited-memory BFGS, strong Wolfe line search, four iterations a batch",
        Needs.CLOSURE,
        line_search_fn="strong_wolfe",
        max_iter=4,
    ),
    "natural-gradient": _pytorch_optimizer("FAdam", "natural gradient under the diagonal empirical Fisher"),
}


def optimizer_named(name: str) -> Optimizer:
    """The optimizer behind a name; :class:`InputError` with the nearest for a typo."""
    if name not in OPTIMIZERS:
        raise InputError(unknown("optimizer", name, list(OPTIMIZERS)))
    return OPTIMIZERS[name]
