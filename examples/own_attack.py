"""An attack of your own: a frozen dataclass that operates on the weights; speclock copies, trains, scores, judges."""

from dataclasses import dataclass
from typing import ClassVar

import torch

import speclock
from speclock.attacks.base import Scene
from speclock.attacks.surgery import Surgery
from speclock.spectra import weight_matrices


@dataclass(frozen=True, kw_only=True)
class Smooth(Surgery):
    """Every weight matrix moved a little towards its own best approximation of low rank."""

    rank: int = 16
    """Singular values that the approximation keeps."""

    name: ClassVar[str] = "smooth"

    def operate_(self, model: speclock.Model, scene: Scene) -> None:
        for weight in weight_matrices(model.module):
            U, sigma, Vh = torch.linalg.svd(weight.matrix.detach(), full_matrices=False)
            sigma[self.rank :] *= 0.5
            weight.assign_((U * sigma) @ Vh)


def main(steps: int = 60) -> None:
    digits = speclock.tasks.load("mnist@500/1000")
    model = speclock.models.load("cnn-mlp", labels=digits.labels)
    for attack in (speclock.FineTune(lr=1e-3), Smooth(lr=1e-3)):
        outcome = attack(model, digits, steps, quoted=True).outcome
        print(f"{attack.title}: {outcome.test:.1%} on the test split, {outcome.passes} passes")


if __name__ == "__main__":
    main()
