"""What every lock shares: the copy, the utility guard, the lock card. A subclass only steps."""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self, cast

from speclock.environment import Flops, Meter, Operations, environment
from speclock.errors import InputError
from speclock.workspace import kept_in

if TYPE_CHECKING:
    from torch import Tensor, nn

    from speclock.locks.card import Card
    from speclock.locks.composition import Composition
    from speclock.models import Model
    from speclock.spectra import SpectralPenalty
    from speclock.tasks.base import Task
    from speclock.training import Checkpoint, Stateful, Step

# A model this close to answering by chance does not do its task, and there is nothing to retain.
_ABOVE_CHANCE = 0.05
_GIVEN_UP = 3
"""Evaluations in a row, from the first after the start on, all nearer to chance than to where utility began."""
_BEGUN_AGAIN = 3
"""How often a control's training begins again: its rate is a card's, which may claim any."""


class Locked(NamedTuple):
    """What a lock returns."""

    model: Model
    card: Card
    """The lock card, JSON-able."""


class Control(NamedTuple):
    """What a lock's training gives by itself."""

    model: Model
    lock: Lock
    """As it was trained in the end."""
    given_up: int
    """How many times it began again, gentler."""


class Span(NamedTuple):
    """Where a search looks for a setting."""

    low: float
    high: float
    log: bool = False
    whole: bool = False
    odds: bool = False
    """Of a share, whose odds are searched by their logarithm: as closely towards 1 as towards 0."""


@dataclass(frozen=True, kw_only=True)
class Lock(ABC):
    """A procedure that makes a model harder to train while utility holds.

    Calling a lock copies the model, steps through :meth:`trajectory` and keeps the strongest state whose utility
    on the validation split is at most ``max_utility_drop`` below where it began. What strength is a lock says itself
    (:meth:`strength`). The state before the first step counts too, so a lock never ends worse than asked; a card
    whose ``chosen_step`` is 0 says that nothing stronger held.
    """

    include: tuple[str, ...] = ()
    """Patterns of parameter names to lock; none means every weight matrix."""
    exclude: tuple[str, ...] = ()
    """Patterns of parameter names to leave alone."""
    max_utility_drop: float = 0.01
    """Utility that may be lost on the validation split, as a fraction (0.01 is one point of accuracy). With 1 nothing
    is guarded: the last finite state is kept, stronger or not, as the paper has it."""
    evaluations: int = 10
    """How often utility is checked on the way."""
    seed: int = 0
    """Order of the data, dropout, starting bases."""

    name: ClassVar[str]
    unit: ClassVar[str]
    """What strength is measured in."""
    tuned: ClassVar[Mapping[str, Span]] = {}
    """The settings that `speclock tune` searches, each with where."""
    resolution: ClassVar[float] = 0.0
    """Difference of strength up to which the guard goes by utility."""

    def __post_init__(self) -> None:
        if not 0 <= self.max_utility_drop <= 1:
            raise InputError(f"max_utility_drop is {self.max_utility_drop}; it is a fraction from 0 to 1.")
        if not 0 <= self.seed < 2**32:
            raise InputError(f"seed is {self.seed}; it must be from 0 to 2³² − 1.")
        if self.evaluations < 1:
            raise InputError(f"evaluations is {self.evaluations}; it must be at least 1.")

    @abstractmethod
    def trajectory(self, model: Model, task: Task, *, spectral: bool, run: Run) -> Iterator[Step]:
        """Move ``model.module`` in place, yielding before the first step and after each.

        With ``spectral`` off this is the control: the same training without the lock's own term.
        """

    @abstractmethod
    def strength(self, model: Model, base: Model) -> float:
        """How far the lock has gone on ``model``, in :attr:`unit`; more is stronger."""

    @abstractmethod
    def total_steps(self, task: Task) -> int:
        """How many steps :meth:`trajectory` takes after the first yield."""

    @property
    def draws_in_secret(self) -> bool:
        """Whether it draws noise that no card holds: made again, it is another of its kind."""
        return False

    def training(self, steps: int) -> tuple[int, int]:
        """The (steps, examples) that ``steps`` of its trajectory take, those before its first step included."""
        return steps, steps * getattr(self, "batch_size", 1) * getattr(self, "accumulate", 1)

    def gentler(self) -> Self | None:
        """What to try where the lock's training has brought the model to chance; nothing by default."""
        return None

    def data_of_its_own(self) -> tuple[str, ...]:
        """Files or tasks that it opens beside the retain task's; nothing by default."""
        return ()

    def digests_of_its_own(self, task: Task) -> dict[str, str]:
        """SHA-256 of the inputs in each of these, as they are read beside ``task``."""
        from speclock.tasks.unlabelled import digest, inputs_of

        return {name: digest(inputs_of(name, task)) for name in self.data_of_its_own()}

    def __call__(
        self, model: Model, task: Task, *, folder: Path | None = None, least: float | None = None
    ) -> Locked:
        """Lock a copy of ``model``. With ``folder``, a killed run goes on from what is kept there.

        The copy is trained in fp32 whatever the checkpoint's dtypes, in which it is judged and returned. ``least`` is
        the validation utility that a state must have where that is not counted from this model's own.

        Where its training brings the model to chance and leaves it there, a :meth:`gentler` lock takes over; the card
        is then that one's, with what was given up.

        Raises :class:`InputError` when the model does not do the retain task: there would be nothing to keep.
        """
        task = task.divided().fitted_to(model)
        with kept_in(folder) as kept:
            locked, collapsed = self._attempt(model, task, kept, least)
            gentler = self.gentler() if collapsed else None
            if gentler is None:
                return locked
            again = kept / "gentler"
            again.mkdir(exist_ok=True)
            return _after(locked.card, gentler(model, task, folder=again, least=least))

    def _attempt(self, model: Model, task: Task, folder: Path, least: float | None) -> tuple[Locked, bool]:
        """What the lock comes to, and whether its training left the model at chance."""
        with Meter() as meter:
            trained = model.in_fp32()
            guard = _Guard(self, trained, model, task, folder, least)
            steps = self.trajectory(trained, task, spectral=True, run=guard.run)
            while (step := guard.operations.next(steps)) is not None:
                guard.passes = step.passes
                if not guard.consider(step) or guard.collapsed:
                    break
            guard.restore_()
            locked = guard.released()
        return Locked(locked, self._card(model, locked, task, guard, meter)), guard.collapsed

    def control(
        self,
        model: Model,
        task: Task,
        *,
        stop_at: int,
        spectral: bool = False,
        begin_again: bool = True,
        folder: Path | None = None,
    ) -> Control:
        """A copy trained as the lock trains, with its spectral term off, for ``stop_at`` steps.

        With ``spectral`` it stays on: what the lock gives where the guard keeps that step. As of the lock itself, a
        training that brings the model to chance is given up for a :meth:`gentler` one, three times at most: what cannot
        do the retain task any more is no measure of what training on it forgets. Not so without ``begin_again``.
        """
        task, lock = task.divided().fitted_to(model), self
        with kept_in(folder) as kept:
            for given_up in range(_BEGUN_AGAIN + 1):
                place = kept / f"attempt-{given_up}"
                place.mkdir(exist_ok=True)
                gentler = lock.gentler() if begin_again and given_up < _BEGUN_AGAIN else None
                control, collapsed = lock._controlled(
                    model, task, stop_at, spectral, place, last=gentler is None
                )
                if gentler is None or not collapsed:
                    break
                lock = gentler
        return Control(control, lock, given_up)

    def _controlled(
        self, model: Model, task: Task, stop_at: int, spectral: bool, folder: Path, *, last: bool
    ) -> tuple[Model, bool]:
        """One attempt at a control, and whether it brought the model to chance; the last one goes to its end anyway."""
        seen = _Seen(self, model, task)
        control = model.in_fp32()
        for step in self.trajectory(control, task, spectral=spectral, run=Run.in_folder(folder, seen)):
            if step.diverged:
                what = self.name if spectral else f"the control of {self.name}"
                raise InputError(f"{what} diverged at step {step.index}: its lr is too high.")
            if not last and seen.at_chance(step.index, control):
                return control, True
            if step.index >= stop_at:
                break
        # Where nothing was removed, what ends at chance has been ruined, and is not yet to be taught.
        return control.in_dtypes_of(model), not last and not spectral and seen.ruined(control)

    def _card(self, base: Model, locked: Model, task: Task, guard: _Guard, meter: Meter) -> Card:
        from speclock.locks.card import FORMAT
        from speclock.models import identity

        before, after = identity(base), identity(locked)
        card = {
            "format": FORMAT,
            "lock": self.name,
            "config": dataclasses.asdict(self),
            "seed": self.seed,
            "base": {
                "name": base.name,
                "fingerprint": before.fingerprint,
                "identity": before._asdict(),
                "source": dataclasses.asdict(base.source),
            },
            "fingerprint": after.fingerprint,
            "identity": after._asdict(),
            "retain_task": task.describe(),
            **({"further_data": own} if (own := self.digests_of_its_own(task)) else {}),
            "utility_base": task.score(base),
            "utility_locked": task.score(locked),
            "unit": self.unit,
            "strength_base": guard.curve[0][2],
            "strength_locked": guard.best_strength,
            "chosen_step": guard.best_step,
            "steps": self.total_steps(task),
            "curve": guard.curve,
            "status": "diverged" if guard.diverged_at is not None else "ok",
            "diverged_at": guard.diverged_at,
            "seconds": meter.seconds,
            "tflops": guard.operations.total(guard.passes) / 1e12,
            "epochs_worth": guard.operations.total(guard.passes) / epoch_flops(base, task),
            "peak_memory_mb": meter.peak_memory_mb,
            "environment": environment(),
        }
        return cast("Card", card)


@dataclass
class Run:
    """What a resumable run carries from one process to the next."""

    checkpoint: Checkpoint
    carried: tuple[Stateful, ...] = ()

    @classmethod
    def in_folder(cls, folder: Path, *carried: Stateful) -> Run:
        """A run whose states are kept under ``folder``."""
        from speclock.training import Checkpoint

        states = folder / "states"
        states.mkdir(exist_ok=True)
        return cls(Checkpoint(states), carried)


class _Guard:
    """Watches utility and strength along a lock's path and keeps the strongest state that holds."""

    def __init__(
        self, lock: Lock, trained: Model, base: Model, task: Task, folder: Path, least: float | None
    ) -> None:
        self.lock = lock
        self.least = least
        self.trained = trained
        self.base = base
        self.task = task
        self.run = Run.in_folder(folder, self)
        self.due = _due(lock, task)
        self.curve: list[tuple[int, float, float]] = []
        """(step, utility on the validation split, strength) at each evaluation."""
        self.best_state: dict[str, Tensor] = {}
        self.best_step = 0
        self.best_utility = math.nan
        self.best_strength = -math.inf
        self.diverged_at: int | None = None
        self.operations = Operations()
        """Those of teachers included."""
        self.passes = 0

    def consider(self, step: Step) -> bool:
        """Take one step into account; False when there is no use in going on."""
        if step.diverged:
            self.diverged_at = step.index
            return False
        if step.index not in self.due:
            return True
        released = self.released()
        utility = self.task.score(released, "validation")
        # A base whose answers are not finite does not do its task either.
        if step.index == 0 and not utility >= self.task.chance + _ABOVE_CHANCE:
            raise InputError(
                f"{self.base.name} does not do {self.task.name}: it scores {utility:.1%} where chance is "
                f"{self.task.chance:.1%}. Make a base that does with: "
                f"speclock train {self.base.name} --task {self.task.name} --out DIR"
            )
        if math.isnan(utility):
            self.diverged_at = step.index
            return False
        strength = self.lock.strength(released, self.base)
        self.curve.append((step.index, utility, strength))
        least = self.curve[0][1] - self.lock.max_utility_drop if self.least is None else self.least
        # From the greatest strength that held, lest a state a little weaker replace one a little weaker, and so on.
        greatest = max((s for _, u, s in self.curve if u >= least), default=strength)
        better = strength > self.best_strength + self.lock.resolution or (
            strength >= greatest - self.lock.resolution and utility > self.best_utility
        )
        better = better or self.lock.max_utility_drop == 1
        # What the run began with is always there to fall back to.
        if step.index == 0 or (utility >= least and better):
            # On the host: a second copy on the device would halve the model that can be locked there.
            state = released.module.state_dict()
            self.best_state = {name: value.detach().to("cpu", copy=True) for name, value in state.items()}
            self.best_step, self.best_utility, self.best_strength = step.index, utility, strength
        return True

    @property
    def collapsed(self) -> bool:
        """Whether the training brought the model to chance, and kept it there or broke off."""
        (_, began, _), *rest = self.curve or [(0, math.nan, 0.0)]
        if self.diverged_at is None and len(rest) < min(_GIVEN_UP, self.lock.evaluations):
            return False
        return self.lock.gentler() is not None and all(u < _halfway(began, self.task) for _, u, _ in rest)

    def released(self) -> Model:
        """The trained model in the checkpoint's own dtypes: what would be published, so what is judged."""
        return self.trained.in_dtypes_of(self.base)

    def restore_(self) -> None:
        """Put the kept state into the model."""
        self.trained.module.load_state_dict(self.best_state)
        self.trained.module.eval()

    def state_dict(self) -> dict[str, Any]:
        best = [self.best_step, self.best_utility, self.best_strength]
        return {
            "curve": self.curve,
            "best": best,
            "best_state": self.best_state,
            "operations": vars(self.operations),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.curve, self.best_state = state["curve"], state["best_state"]
        vars(self.operations).update(state["operations"])
        self.best_step, self.best_utility, self.best_strength = state["best"]


class _Seen:
    """What a control's training keeps of the retain task, looked at where the lock itself was."""

    def __init__(self, lock: Lock, base: Model, task: Task) -> None:
        self.lock, self.base, self.task = lock, base, task
        self.due = _due(lock, task) if lock.gentler() else set()
        self.utilities: list[float] = []

    def at_chance(self, step: int, trained: Model) -> bool:
        """Whether the lock would be given up here."""
        if step not in self.due:
            return False
        self.utilities.append(self._utility(trained))
        began, *rest = self.utilities
        if len(rest) < min(_GIVEN_UP, self.lock.evaluations):
            return False
        return not any(utility >= _halfway(began, self.task) for utility in rest)

    def ruined(self, trained: Model) -> bool:
        """Whether it ends nearer to chance than to where it began."""
        return bool(self.due) and not self._utility(trained) >= _halfway(self.utilities[0], self.task)

    def _utility(self, trained: Model) -> float:
        return self.task.score(trained.in_dtypes_of(self.base), "validation")

    def state_dict(self) -> dict[str, Any]:
        return {"utilities": self.utilities}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.utilities = state["utilities"]


def _due(lock: Lock, task: Task) -> set[int]:
    """The steps after which utility is looked at."""
    total = lock.total_steps(task)
    return {round(total * i / lock.evaluations) for i in range(lock.evaluations + 1)}


def _halfway(began: float, task: Task) -> float:
    """Utility halfway from where it began to chance."""
    return (began + task.chance) / 2


def _after(given_up: Card, locked: Locked) -> Locked:
    """The later attempt's result, whose card has the earlier one and its cost."""
    before, card = cast("dict[str, Any]", given_up), cast("dict[str, Any]", dict(locked.card))
    for cost in ("seconds", "tflops", "epochs_worth"):
        card[cost] = (before[cost] or 0.0) + (card[cost] or 0.0)
    card["peak_memory_mb"] = max(before["peak_memory_mb"], card["peak_memory_mb"])
    attempt = {key: before[key] for key in ("config", "curve", "status", "diverged_at")}
    card["given_up"] = [attempt, *card.get("given_up", [])]
    return Locked(locked.model, cast("Card", card))


def epoch_flops(model: Model, task: Task) -> float:
    """Floating-point operations of one pass of plain fine-tuning over the training split."""
    import numpy as np

    trained = model.copy()
    trained.module.requires_grad_(True)
    rows = np.arange(min(16, len(task.train)))
    batch = {n: v.to(trained.device) for n, v in task.encode(task.train.take(rows), trained).items()}
    with Flops(enabled=True) as flops:
        task.loss(trained.module, batch).backward()
    return flops.total / len(rows) * len(task.train)


@dataclass(frozen=True, kw_only=True)
class SpectralLock(Lock):
    """A lock that raises singular values: its strength is the mean of the top ``top_k`` over all locked matrices."""

    top_k: int = 2
    """Singular values raised in each weight matrix."""

    unit: ClassVar[str] = "mean top σ"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.top_k < 1:
            raise InputError(f"top_k is {self.top_k}; it must be at least 1.")

    def strength(self, model: Model, base: Model) -> float:
        return mean_top_sigma(model.module, self)


def mean_top_sigma(module: nn.Module, lock: SpectralLock) -> float:
    """(1/n) Σ σ over the top ``top_k`` singular values of every weight matrix the lock moves."""
    values = [value for sigma in penalty_of(module, lock).sigma().values() for value in sigma.tolist()]
    return sum(values) / len(values)


def penalty_of(module: nn.Module, lock: SpectralLock) -> SpectralPenalty:
    """The spectral penalty over the weight matrices that the lock's patterns choose."""
    from speclock.spectra import SpectralPenalty

    return SpectralPenalty(
        module, top_k=lock.top_k, include=lock.include, exclude=lock.exclude, seed=lock.seed
    )


def lock(
    model: Model | nn.Module, task: Task, how: Lock | Composition, *, folder: Path | None = None
) -> Locked:
    """Lock a copy of ``model`` with ``how``, keeping what it does on ``task``; see :class:`Lock`."""
    from speclock.models import adopted

    return how(adopted(model, task), task, folder=folder)
