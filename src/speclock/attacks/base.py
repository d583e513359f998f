"""What every attack shares: the copy, the fresh head, the curve, the verdict on a run. A subclass only steps."""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from speclock.environment import Meter, Operations
from speclock.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from speclock.models import Model
    from speclock.tasks.base import Split, Task
    from speclock.training import Step

Watch = Callable[[int, float], bool]
"""Hears (step, score) of every evaluation; True ends the run."""


class Status(StrEnum):
    """How a run ended. Only ``ok`` runs have a score."""

    OK = "ok"
    DIVERGED = "diverged"
    """Loss, gradient or weights stopped being finite before the run had learnt anything."""
    COLLAPSED = "collapsed"
    """The score was reached by ruining the model: the tasks beside it fell."""
    FAILED = "failed"
    """The attack could not be carried out on this model; the reason is kept."""


@dataclass
class Outcome:
    """What one attack run leaves."""

    status: Status
    curve: list[tuple[int, float]]
    """(step, score on the validation split) at each evaluation; from step 0 on where the model came with a head
    for the task."""
    best: float | None
    """Best score on the curve that counts; None unless the run is ok."""
    best_step: int | None = None
    """Where on the curve that was, the earliest of equals."""
    test: float | None = None
    """The test split's score of the state at ``best_step``; only of runs that are to be quoted."""
    answers: list[int] | None = None
    """The labels given to the test examples, from which ``test`` and its interval follow."""
    utility_after: float | None = None
    """The retain task's score of the model as the run leaves it, with the retain head where the attack had a
    fresh one."""
    samples: list[tuple[str, str]] = field(default_factory=list)
    """Of a quoted run on a language model: (what was asked, what it wrote) for a few test examples."""
    beside: dict[str, float] = field(default_factory=dict)
    """Scores of the tasks beside the attack task, of the same state and split as ``test`` where there is one, else
    as ``best``: the clean score of a poisoned task."""
    beside_curves: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    """Their scores on the validation split at each evaluation."""
    uncounted: list[int] = field(default_factory=list)
    """Steps of the evaluations that do not count, since what stands beside the task had fallen."""
    first_label: int = 0
    """Steps taken before the run saw a label: healing, imitation. Budgets are counted from there."""
    pruned_at: int | None = None
    """Step at which a losing run was given up, its best so far being its score."""
    broke_at: int | None = None
    """Step at which a run that had learnt stopped being finite, its best before being its score: an attacker stops
    there."""
    reason: str | None = None
    """Why the run failed, or where it diverged or collapsed."""
    seconds: float = 0.0
    peak_memory_mb: float = 0.0
    passes: int = 0
    """Evaluations of the loss or its gradient on a batch, those of line searches and repairs included."""
    tflops: float | None = None
    """Floating-point operations of the training steps, in 10¹²: the first step's, counted, times the passes."""

    @property
    def stayed_finite(self) -> bool:
        """Whether the run's last step left a model that can be used; a quoted run leaves its best one anyway."""
        return self.status is Status.OK and self.broke_at is None


class InapplicableError(Exception):
    """An attack that cannot be carried out on a model or without what it needs; the message says why."""


class Scene(NamedTuple):
    """What an attacker has to work with."""

    released: Model
    """The model as it was released; never changed."""
    task: Task
    """What the attacker wants."""
    steps: int
    """Budget in optimizer steps from the first label on; healing and imitation, which see none, come before."""
    public: Model | None = None
    """A public model of the same architecture that the released one was made from, where there is one."""
    retain: Task | None = None
    """A task of the kind of data that the released model was made for, with its labels."""
    siblings: tuple[Model, ...] = ()
    """Other releases of the same base."""
    card: Mapping[str, Any] | None = None
    """The lock card, where the released model has one."""


class Attacked(NamedTuple):
    """What an attack returns."""

    model: Model
    """The model as the attack left it."""
    outcome: Outcome


@dataclass(frozen=True, kw_only=True)
class Attack(ABC):
    """A procedure with a budget of steps that tries to make a model do the attack task.

    Calling an attack copies the model, gives it a fresh head where the task has other labels, lets
    :meth:`prepare_` operate on the weights, steps through :meth:`trajectory` while scoring the validation split on
    the way, and has :meth:`finish_` put the architecture back. One run serves every budget up to its own: the
    curve holds the score at each.
    """

    name: ClassVar[str]
    kind: ClassVar[str] = "fine-tuning"
    """The family that a report lists it under."""
    seed: int = 0
    """Order of the data, dropout, fresh heads."""

    @property
    def label(self) -> str:
        """The attack in a few words, but for the learning rate: what a report's rows are called."""
        return self.name

    @property
    def title(self) -> str:
        """The attack in a few words, for people."""
        return self.label

    @property
    def needs_public(self) -> bool:
        """Whether the attack can only be carried out by those who know a public base."""
        return False

    @property
    def needs_siblings(self) -> bool:
        """Whether the attack can only be carried out by those who have several releases of one base."""
        return False

    @property
    def needs_retain(self) -> bool:
        """Whether the attack takes data of the kind that the released model was made for."""
        return False

    @property
    def needs_labels(self) -> bool:
        """Whether the attack answers with labels itself, so that next-token tasks are none of its."""
        return False

    def unlabelled(self, steps: int) -> int:
        """Optimizer steps before the first label is seen, where ``steps`` are to follow."""
        return 0

    def requires(self) -> None:
        """Raise :class:`InputError` naming the package where one is missing that the attack needs."""

    def prepare_(self, model: Model, scene: Scene) -> None:
        """Surgery on the weights before the first step; none by default.

        Raises :class:`InapplicableError` where the model or the scene lacks what the attack needs.
        """

    @abstractmethod
    def trajectory(self, model: Model, scene: Scene) -> Iterator[Step]:
        """Train ``model.module`` in place, yielding before the first step and after each."""

    def finish_(self, model: Model) -> None:
        """Bring a changed architecture back to the released one's; nothing by default."""

    def __call__(
        self,
        model: Model,
        task: Task,
        steps: int,
        *,
        retain: Task | None = None,
        public: Model | None = None,
        siblings: tuple[Model, ...] = (),
        card: Mapping[str, Any] | None = None,
        due: Sequence[int] | None = None,
        watch: Watch | None = None,
        keep: float | None = None,
        quoted: bool = False,
        utility: bool = True,
    ) -> Attacked:
        """Attack a copy of ``model`` in fp32 and judge it.

        ``steps`` are counted from the first label on, and so is ``due``, at which the validation split is scored
        (default: 1, 2, 4, …, ``steps``). ``watch(step, score)`` hears of every evaluation, and ends the run by
        answering True: that is how a sweep prunes. ``keep`` is what the tasks beside must score for an evaluation to
        count, where the task asks for that; a run of which none after the start counts has collapsed. A ``quoted`` run
        is brought back to its best evaluation and scored on the test split, once. ``utility`` asks for the retain
        task's score after the attack. Raises :class:`InapplicableError` for an attack that does not fit.
        """
        if steps < 1:
            raise InputError(f"steps is {steps}; an attack needs a budget of at least 1.")
        from speclock.tasks.base import broken

        task = task.divided()
        with Meter() as meter:
            own = model.labels == task.head
            attacked = model.copy() if own else model.with_head(task.head, self.seed)
            # In a pure half precision, steps below 2⁻⁹ of a weight are lost, which any attacker avoids.
            attacked = attacked.in_fp32()
            scene = Scene(model, task, steps, public, retain, siblings, card)
            first = self.unlabelled(steps)
            self.prepare_(attacked, scene)
            # Before its first step a fresh head answers at random; there is nothing to score yet.
            points = {first + step for step in due or log_spaced(steps)} | ({0} if own else set())
            judge = _Judge(attacked, task, points, watch, keep, keeps_state=quoted)
            outcome = judge(self.trajectory(attacked, scene), first, first + steps)
            self.finish_(attacked)
            if outcome.status is Status.OK:
                if quoted:
                    answers = task.answers(attacked)
                    if not broken(answers):
                        outcome.answers, outcome.test = answers.tolist(), task.measured(answers)
                        outcome.samples = task.samples(attacked)
                    outcome.beside = {name: other.score(attacked) for name, other in task.beside.items()}
                if utility and retain is not None and (quoted or outcome.stayed_finite):
                    split: Split = "test" if quoted else "validation"
                    after = self.released_(attacked, model)
                    outcome.utility_after = retain.measured(retain.answers(after, split), split)
        outcome.seconds, outcome.peak_memory_mb = meter.seconds, meter.peak_memory_mb
        return Attacked(attacked, outcome)

    def released_(self, attacked: Model, released: Model) -> Model:
        """The attacked model as it would do its former job: under the head that it was released with."""
        return attacked.with_head_of(released)

    def config(self) -> dict[str, Any]:
        """The fields as a record holds them, without the seed, which a record holds beside them."""
        fields = dataclasses.asdict(self)
        del fields["seed"]
        return fields


def start_of(curve: Sequence[tuple[int, float]]) -> float | None:
    """The score before the first step, of a model that came with a head for the task."""
    return curve[0][1] if curve and curve[0][0] == 0 else None


def log_spaced(steps: int) -> list[int]:
    """1, 2, 4, 8, … and ``steps``: a slowdown of 8× or 30× needs scores from early on.

    >>> log_spaced(24)
    [1, 2, 4, 8, 16, 24]
    """
    return [*(2**i for i in range(steps.bit_length()) if 2**i < steps), steps]


class _Judge:
    """Scores a run on the way, and says how it ended."""

    def __init__(
        self,
        model: Model,
        task: Task,
        points: Collection[int],
        watch: Watch | None,
        keep: float | None,
        *,
        keeps_state: bool,
    ) -> None:
        self.model = model
        self.task = task
        self.points = points
        self.watch = watch
        self.keep = keep if task.collapses else None
        self.keeps_state = keeps_state
        self.outcome = Outcome(Status.OK, [], None)
        self.state: dict[str, Tensor] | None = None

    def __call__(self, trajectory: Iterator[Step], first: int, last: int) -> Outcome:
        outcome, operations, index = self.outcome, Operations(), 0
        outcome.first_label = first
        while (step := operations.next(trajectory)) is not None:
            outcome.passes, outcome.tflops = step.passes, operations.total(step.passes) / 1e12
            index = step.index
            if step.diverged:
                self._broke(index, f"at step {index}")
                break
            if index in self.points:
                stop = self._evaluate(index)
                if self._is_over:
                    break
                if stop and index < last:
                    outcome.pruned_at = index
                    break
        if not self._is_over and (not outcome.curve or outcome.curve[-1][0] != index):
            self._evaluate(index)
        if outcome.status is Status.OK and self._kept_nothing:
            self._ended(Status.COLLAPSED, f"no evaluation kept what stands beside it at {self.keep:.1%}")
        if outcome.status is Status.OK and self.state is not None:
            self.model.module.load_state_dict(self.state)
        return outcome

    def _evaluate(self, index: int) -> bool:
        """Score the model as it is; whether the watch asks for the run's end."""
        outcome = self.outcome
        score = self.task.score(self.model, "validation")
        if math.isnan(score):
            self._broke(index, f"more than a tenth of the answers are not finite after step {index}")
            return True
        outcome.curve.append((index, score))
        beside = {name: other.score(self.model, "validation") for name, other in self.task.beside.items()}
        for name, value in beside.items():
            outcome.beside_curves.setdefault(name, []).append((index, value))
        counts = self.keep is None or all(value >= self.keep for value in beside.values())
        if not counts:
            outcome.uncounted.append(index)
        if counts and (outcome.best is None or score > outcome.best):
            outcome.best, outcome.best_step, outcome.beside = score, index, beside
            if self.keeps_state:
                # On the host: a second copy on the device would halve the model that can be attacked there.
                state = self.model.module.state_dict()
                self.state = {name: value.detach().to("cpu", copy=True) for name, value in state.items()}
        return self.watch is not None and self.watch(index, score if counts else 0.0)

    @property
    def _kept_nothing(self) -> bool:
        """Whether no evaluation counts, but for that of a model before the first step, which no run ruined."""
        outcome = self.outcome
        if outcome.best is None:
            return True
        taught = [index for index, _ in outcome.curve if index > 0]
        return self.keep is not None and bool(taught) and set(taught) <= set(outcome.uncounted)

    @property
    def _is_over(self) -> bool:
        return self.outcome.status is not Status.OK or self.outcome.broke_at is not None

    def _broke(self, index: int, reason: str) -> None:
        """End a run that is no longer finite: without a score, unless it had learnt before."""
        from speclock.tasks.base import LEAST_VISIBLE

        best = self.outcome.best
        # What a model that came with a head scored before the first step is no achievement of the run's.
        untaught = max(self.task.chance, start_of(self.outcome.curve) or 0.0)
        if best is None or best <= untaught + LEAST_VISIBLE[self.task.metric]:
            self._ended(Status.DIVERGED, reason)
            return
        self.outcome.broke_at = index
        self.outcome.reason = f"diverged ({reason}) after its best evaluation, which counts"

    def _ended(self, status: Status, reason: str) -> None:
        self.outcome.status, self.outcome.reason, self.outcome.best = status, reason, None
