"""The loop: determinism, resume, divergence, accumulation, schedules."""

from __future__ import annotations

import itertools
import math
import time
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from speclock.errors import InputError
from speclock.models import Model, fingerprint
from speclock.models.cnn_mlp import CnnMlp
from speclock.optimizers import OPTIMIZERS, Needs
from speclock.recipe import Recipe, TrainingRecipe
from speclock.spectra import SpectralPenalty
from speclock.tasks.base import Task
from speclock.training import Checkpoint, _Progress, _Shuffled, fit


def _trained(model: Model, task: Task, recipe: Recipe, steps: int) -> Model:
    copy = model.copy()
    for _ in fit(copy, task, recipe, steps=steps):
        pass
    return copy


class Dropping(nn.Module):
    """A net with dropout, so that the random state matters."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 28 * 28, 16), nn.Dropout(0.5), nn.Linear(16, 10))

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.net(pixel_values)


@pytest.fixture
def dropping() -> Model:
    from speclock import wrap

    torch.manual_seed(0)
    model = wrap(Dropping(), modality="image")
    model.image_size = 28
    return model


def test_same_seed_same_weights_and_another_seed_others(dropping: Model, digits: Task) -> None:
    one, two = (_trained(dropping, digits, Recipe(seed=3), 8) for _ in range(2))
    other = _trained(dropping, digits, Recipe(seed=4), 8)
    assert fingerprint(one) == fingerprint(two) != fingerprint(other)


@pytest.mark.parametrize("stop", [1, 5, 11])
def test_a_resumed_run_computes_what_an_uninterrupted_one_does(
    dropping: Model, digits: Task, tmp_path: Path, stop: int
) -> None:
    recipe = Recipe(optimizer="adam", schedule="step", accumulate=2, batch_size=128, seed=1)
    whole = _trained(dropping, digits, recipe, 12)

    def run(model: Model) -> tuple:  # type: ignore[type-arg]
        penalty = SpectralPenalty(model.module, top_k=1)
        checkpoint = Checkpoint(tmp_path, every_seconds=0.0, most_of_the_time=math.inf)
        return fit(
            model,
            digits,
            recipe,
            steps=12,
            carried=(penalty,),
            checkpoint=checkpoint,
            add_gradient_=lambda: penalty.add_gradient_(-0.0),
        )

    killed = dropping.copy()
    for step in itertools.islice(run(killed), stop + 2):
        last = step.index
    assert last == stop + 1
    resumed = dropping.copy()
    indices = [step.index for step in run(resumed)]
    # The state is saved once the consumer asks for the next step, so the last step seen is run again.
    assert indices == list(range(stop + 1, 13))
    assert fingerprint(resumed) == fingerprint(whole)


def test_a_half_written_state_is_not_loaded(dropping: Model, digits: Task, tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path, every_seconds=0.0, most_of_the_time=math.inf)
    model = dropping.copy()
    for _ in itertools.islice(fit(model, digits, Recipe(), steps=9, checkpoint=checkpoint), 4):
        pass
    newest = checkpoint.newest()
    assert newest is not None
    assert [path.name for path in tmp_path.iterdir()] == [newest.name]
    (tmp_path / "step-00000099.partial").mkdir()
    assert checkpoint.newest() == newest


def test_divergence_is_a_status_and_leaves_the_weights_before_it(dropping: Model, digits: Task) -> None:
    model = dropping.copy()
    steps = list(fit(model, digits, Recipe(optimizer="sgd", lr=1e30), steps=50))
    assert steps[-1].diverged
    assert steps[-1].index < 50
    assert not any(step.diverged for step in steps[:-1])


def test_a_batch_that_overflows_is_skipped_where_that_is_asked_for(dropping: Model, digits: Task) -> None:
    """One in nine batches holds an example that no gradient can be taken of."""
    calls = 0

    def loss(module: torch.nn.Module, batch: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return digits.loss(module, batch) * (math.inf if calls % 9 == 2 else 1)

    ends = {}
    for skips in (False, True):
        calls, model = 0, dropping.copy()
        steps = list(fit(model, digits, Recipe(lr=1e-3), steps=20, loss=loss, skips=skips))
        ends[skips] = (steps[-1].index, steps[-1].diverged)
        assert all(p.isfinite().all() for p in model.module.parameters())
    assert ends == {False: (2, True), True: (20, False)}
    blown = list(fit(dropping.copy(), digits, Recipe(optimizer="sgd", lr=1e30), steps=50, skips=True))
    assert blown[-1].diverged


def test_a_line_search_that_finds_nothing_finite_has_diverged(dropping: Model, digits: Task) -> None:
    """Finite where a step begins, and nowhere else that the search looks."""
    for after in range(1, 12):
        calls, model = 0, dropping.copy()

        def loss(module: torch.nn.Module, batch: Any, after: int = after) -> torch.Tensor:
            nonlocal calls
            calls += 1
            return digits.loss(module, batch) * (math.nan if calls > after else 1)

        for skips in (False, True):
            calls = 0
            recipe = Recipe(optimizer="lbfgs", lr=1.0)
            steps = list(fit(model, digits, recipe, steps=6, loss=loss, skips=skips))
            assert steps[-1].diverged


def test_accumulation_is_one_larger_batch(digits: Task) -> None:
    from speclock import wrap

    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 28 * 28, 10))
    model = wrap(net, modality="image")
    small = _trained(model, digits, Recipe(optimizer="sgd", lr=0.1, batch_size=8, accumulate=4), 5)
    large = _trained(model, digits, Recipe(optimizer="sgd", lr=0.1, batch_size=32), 5)
    for one, two in zip(small.module.parameters(), large.module.parameters(), strict=True):
        torch.testing.assert_close(one, two)


def test_clipping_bounds_the_step(dropping: Model, digits: Task) -> None:
    clipped = _trained(dropping, digits, Recipe(optimizer="sgd", lr=1.0, clip=1e-3), 1)
    moved = torch.cat(
        [
            (a - b).flatten()
            for a, b in zip(clipped.module.parameters(), dropping.module.parameters(), strict=True)
        ]
    )
    assert moved.norm().item() == pytest.approx(1e-3, rel=1e-3)


def _rates(model: Model, task: Task, recipe: Recipe, steps: int) -> list[float]:
    """Learning rates taken, read off plain SGD on a loss whose gradient is one."""
    rates = []
    for _ in fit(model, task, recipe, steps=steps, loss=lambda module, _: module.w.sum()):
        rates.append(-model.module.w.item())
    return [b - a for a, b in itertools.pairwise(rates)]


class One(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(1, dtype=torch.float64))


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [1, 1, 1, 1, 1, 1]),
        ("linear", [1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]),
        ("step", [1, 1, 0.5, 0.5, 0.25, 0.25]),
        ("cosine", [(1 + math.cos(math.pi * i / 6)) / 2 for i in range(6)]),
    ],
)
def test_schedules(schedule: str, expected: list[float], digits: Task, base: Model) -> None:
    from dataclasses import replace

    recipe = Recipe(optimizer="sgd", lr=1.0, schedule=schedule, gamma=0.5, batch_size=400)
    assert _rates(replace(base, module=One()), digits, recipe, 6) == pytest.approx(expected)


def test_warm_up_rises_linearly(digits: Task, base: Model) -> None:
    from dataclasses import replace

    recipe = Recipe(optimizer="sgd", lr=1.0, warmup=3)
    assert _rates(replace(base, module=One()), digits, recipe, 5) == pytest.approx([0.25, 0.5, 0.75, 1, 1])


def test_every_optimizer_of_torch_has_a_name() -> None:
    ours = {optimizer.target for optimizer in OPTIMIZERS.values()}
    theirs = {
        f"torch.optim:{name}"
        for name, cls in vars(torch.optim).items()
        if isinstance(cls, type) and issubclass(cls, torch.optim.Optimizer)
    }
    # An abstract class, one for sparse gradients only, and one that takes no biases (heavyball's does).
    assert theirs - ours == {f"torch.optim:{name}" for name in ("Optimizer", "SparseAdam", "Muon")}


@pytest.mark.parametrize("needs", list(Needs))
def test_what_an_optimizer_needs_it_is_given(needs: Needs, dropping: Model, digits: Task) -> None:
    name, rate = {
        Needs.GRADIENT: ("adamw", 1e-3),
        Needs.CLOSURE: ("sam", 1e-3),
        Needs.GRAPH: ("adahessian", 1e-1),
        Needs.LOSS: ("zeroth-order", 1e-4),
    }[needs]
    assert OPTIMIZERS[name].needs is needs
    recipe = Recipe(optimizer=name, lr=rate, batch_size=64, clip=1.0)
    model = dropping.copy()
    *_, last = fit(model, digits, recipe, steps=12)
    # The gradient for all, again at the weights nearby for SAM, and twice per probe for differences.
    assert last.passes == 12 * {Needs.GRADIENT: 1, Needs.CLOSURE: 2, Needs.GRAPH: 1, Needs.LOSS: 17}[needs]
    if needs is not Needs.LOSS:
        assert trained_score(model, digits) > trained_score(dropping, digits) + 0.1


def test_rates_multiply_the_learning_rate_by_name(dropping: Model, digits: Task) -> None:
    names = [name for name, _ in dropping.module.named_parameters()]
    model = dropping.copy()
    for _ in fit(
        model,
        digits,
        Recipe(optimizer="sgd", lr=0.1),
        steps=1,
        rates={names[0]: 0.0, names[1]: 2.0},
    ):
        pass
    plain = dropping.copy()
    for _ in fit(plain, digits, Recipe(optimizer="sgd", lr=0.1), steps=1):
        pass
    start, fast, one = (dict(m.module.named_parameters()) for m in (dropping, model, plain))
    assert torch.equal(fast[names[0]], start[names[0]])
    torch.testing.assert_close(fast[names[1]] - start[names[1]], 2 * (one[names[1]] - start[names[1]]))
    assert torch.equal(fast[names[2]], one[names[2]])


def test_dropout_and_batch_statistics_can_be_turned_off(digits: Task, base: Model) -> None:
    from dataclasses import replace

    class Modes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.dropout, self.head = nn.BatchNorm2d(3), nn.Dropout(0.5), nn.Linear(3, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append((self.norm.training, self.dropout.training))
            return self.head(self.dropout(self.norm(x)).mean((2, 3)))

    for dropout in (True, False):
        for batch in (True, False):
            seen: list[tuple[bool, bool]] = []
            module = Modes()
            recipe = Recipe(dropout=dropout, batch_statistics=batch)
            for _ in fit(replace(base, module=module), digits, recipe, steps=2):
                pass
            assert seen == [(batch, dropout)] * 2


def test_l_bfgs_asks_for_the_gradient_as_often_as_it_likes(digits: Task) -> None:
    from speclock import wrap

    torch.manual_seed(0)
    model = wrap(nn.Sequential(nn.Flatten(), nn.Linear(3 * 28 * 28, 10)), modality="image")
    trained = _trained(model, digits, Recipe(optimizer="lbfgs", lr=1.0, batch_size=800), 2)
    descent = _trained(model, digits, Recipe(optimizer="sgd", lr=1e-3, batch_size=800), 2)
    assert trained_score(trained, digits) > max(0.6, trained_score(descent, digits))


def trained_score(model: Model, task: Task) -> float:
    return task.score(model)


def test_mixed_precision_leaves_the_module_as_it_was(dropping: Model, digits: Task) -> None:
    model = dropping.copy()
    before = model.module.forward
    for _ in fit(model, digits, Recipe(precision="bf16"), steps=3):
        pass
    assert model.module.forward == before
    assert {p.dtype for p in model.module.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"optimizer": "adamm"}, "Did you mean 'adam'"),
        ({"schedule": "cosin"}, "Did you mean 'cosine'"),
        ({"precision": "fp8"}, "Known: no, bf16, fp16"),
        ({"lr": 0.0}, "lr is 0.0"),
        ({"lr": math.nan}, "lr is nan"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"steps": 0}, "steps is 0"),
        ({"epochs": -1.0}, "epochs is -1.0"),
        ({"warmup": -1}, "warmup is -1"),
    ],
)
def test_bad_recipes_say_what_is_wrong(fields: dict, words: str) -> None:  # type: ignore[type-arg]
    with pytest.raises(InputError, match=words):
        TrainingRecipe(**fields)


def test_memory_that_runs_out_halves_the_batch_and_gives_the_same_gradient(digits: Task, base: Model) -> None:
    class Small(CnnMlp):
        def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
            if self.training and len(pixel_values) > most:
                raise torch.OutOfMemoryError("out of memory")
            seen.append(len(pixel_values))
            return super().forward(pixel_values)

    recipe, ends = Recipe(optimizer="sgd", lr=0.1, batch_size=32), []
    for most in (32, 10):
        seen: list[int] = []
        model = base.copy()
        model.module.__class__ = Small
        *_, last = fit(model, digits, recipe, steps=2)
        ends.append([p.detach() for p in model.module.parameters()])
        assert max(seen) == min(32, most - most % 8), "halved twice, and not tried whole again"
        assert (last.index, last.passes) == (2, 2)
    for whole, parts in zip(*ends, strict=True):
        torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-6)
    most = 0
    with pytest.raises(torch.OutOfMemoryError):
        list(fit(model, digits, recipe, steps=1))


def test_states_are_further_apart_where_a_save_takes_long(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path, every_seconds=0.0, most_of_the_time=0.05)
    assert checkpoint.due()

    def slow(folder: str) -> None:
        time.sleep(0.2)
        Path(folder).mkdir()

    accelerator = Accelerator(cpu=True)
    accelerator.save_state = slow  # type: ignore[method-assign, assignment]
    checkpoint.save(accelerator, 1)
    assert not checkpoint.due(), "the next save is four seconds away: a twentieth of the time"


def test_rows_of_one_length_come_in_the_order_drawn() -> None:
    def batches(lengths: list[int]) -> list[list[int]]:
        recipe, progress = TrainingRecipe(batch_size=4), _Progress()
        sampler = _Shuffled(len(lengths), lambda rows: [lengths[row] for row in rows], recipe, progress)
        return list(itertools.islice(iter(sampler), len(lengths) // 4))

    drawn = torch.randperm(64, generator=torch.Generator().manual_seed(0)).view(-1, 4).tolist()
    assert batches([16] * 64) == drawn
    assert batches([15 + row % 2 for row in range(64)]) == drawn, "what sorting spares pays for nothing"
    mixed = batches([4 + 8 * (row % 5) for row in range(64)])
    assert mixed != drawn
    assert sorted(row for batch in mixed for row in batch) == list(range(64))
