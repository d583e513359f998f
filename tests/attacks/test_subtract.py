"""Noise whose seed can be guessed or is told is found and taken out; noise from the operating system is not."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

import speclock
from speclock.attacks.base import InapplicableError, Scene
from speclock.attacks.subtract import SubtractNoise, holds
from speclock.locks.undo import Undo
from speclock.models import Model
from speclock.models.initial import named_noise
from speclock.spectra import weight_matrices
from speclock.tasks.base import Task

TAUGHT = Undo(
    beta=0.6, bottleneck=1.0, steps=30, lr=1e-3, evaluations=1, max_utility_drop=1.0, insecure_noise_seed=77
)


def closeness(model: Model, base: Model) -> float:
    """The least cosine of a body matrix with the base's."""
    pairs = list(zip(weight_matrices(model.module), weight_matrices(base.module), strict=True))[:-1]
    return min(
        float(torch.nn.functional.cosine_similarity(w.matrix.flatten(), b.matrix.flatten(), dim=0).detach())
        for w, b in pairs
    )


def test_a_names_noise_begins_alike_however_long_it_is() -> None:
    short, long = (named_noise("w", torch.empty(n), 1.0, 5) for n in (4096, 50_000))
    assert torch.equal(short, long[:4096])
    assert not torch.equal(short, named_noise("v", torch.empty(4096), 1.0, 5))
    assert not torch.equal(short, named_noise("w", torch.empty(4096), 1.0, 6))


@pytest.mark.parametrize("byte", range(16))
def test_every_byte_of_a_128_bit_key_counts(byte: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream that read 32 bits of its key would be found by trying them all."""

    def under(key: bytearray) -> torch.Tensor:
        monkeypatch.setattr("hashlib.sha256", lambda _: SimpleNamespace(digest=lambda: bytes(key)))
        return named_noise("w", torch.empty(64), 1.0, 5)

    key = bytearray(32)
    first = under(key)
    key[byte] = 1
    assert not torch.equal(first, under(key))


@pytest.mark.parametrize("told", [False, True])
def test_noise_of_a_known_seed_is_found_and_taken_out(told: bool, base: Model, digits: Task) -> None:
    """77 is among the first thousand seeds; where only ten are tried, the card has to tell."""
    locked, card = speclock.lock(base, digits, TAUGHT)
    again = locked.copy()
    attack = SubtractNoise(seeds=10 if told else 1000)
    attack.operate_(again, Scene(locked, digits, 4, card=card if told else None))
    assert closeness(again, base) > closeness(locked, base) + 0.1
    if told:
        composed = {**card, "config": {}, "parts": [card, card]}
        attack.operate_(locked.copy(), Scene(locked, digits, 4, card=composed))
        with pytest.raises(InapplicableError, match="holds the noise of a seed that could be guessed"):
            attack.operate_(locked.copy(), Scene(locked, digits, 4))


def test_a_told_seed_is_looked_for_in_the_whole_of_a_matrix(base: Model) -> None:
    """So little of it that the first entries alone do not tell."""
    weight = max(weight_matrices(base.copy().module), key=lambda w: w.parameter.numel())
    with torch.no_grad():
        weight.parameter.copy_(named_noise("else", weight.parameter, 1.0, 1))
        weight.parameter.add_(named_noise(weight.name, weight.parameter, 0.04, 5))
    assert holds(weight, 5)
    assert not holds(weight, 5, entries=4096)


def test_noise_of_the_operating_system_is_not_found(base: Model, digits: Task) -> None:
    secret = Undo(beta=0.6, bottleneck=1.0, steps=5, lr=1e-3, evaluations=1, max_utility_drop=1.0)
    locked, card = speclock.lock(base, digits, secret)
    with pytest.raises(InapplicableError, match="holds the noise of a seed that could be guessed"):
        SubtractNoise().operate_(locked.copy(), Scene(locked, digits, 4, card=card))
    # Nor does a base that torch drew under the same seed hold it.
    assert not any(holds(weight, 0) for weight in weight_matrices(base.scratch(0).module))
