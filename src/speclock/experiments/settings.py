"""Settings of an experiment that locks a model and trains it for other tasks: the paper's, and how much is run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from speclock.attacks.finetune import FineTune
from speclock.tasks.base import Metric, Task

UNGUARDED = ",max_utility_drop=1,evaluations=1"
"""Of a lock as the paper has it: nothing watches its utility, and its last state is taken."""


@dataclass(frozen=True, kw_only=True)
class Other:
    """A task that the model was not released for: one column of the table."""

    column: str
    task: str
    base: float | None = None
    """What the paper has for the base, as a fraction."""
    locked: float | None = None
    """And for the locked model."""
    before: tuple[float, float] | None = None
    """Of a task that the model's own head answers, the paper's scores of base and locked model before any attack."""
    beside: tuple[float, float] | None = None
    """Of a task with others beside it, the paper's scores of those afterwards: a backdoored model's clean score."""
    remark: str | None = None
    """What the paper says of its number for the locked model."""
    searched: bool = True
    """Whether it is audited too, beside the printed attacks."""


@dataclass(frozen=True, kw_only=True)
class Printed:
    """One optimizer at the paper's rate, and where the search of its rate starts."""

    optimizer: str
    lr: float
    middle: float
    weight_decay: float = 0.0
    quoted: bool = False
    """Whether the paper's numbers are this one's."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The base is trained and locked once; seeds are those of the attacks, each with a fresh head and order of data."""

    name: ClassVar[str]
    model: str
    instead_of: str | None = None
    """The paper's model, where ``model`` is another."""
    retain: str
    utility: tuple[float, float]
    """The paper's utility of base and locked model."""
    training: dict[str, Any]
    """How the base is trained."""
    lock: str
    """The paper's lock, as `speclock lock --lock` has it, :data:`UNGUARDED`."""
    our_locks: tuple[str, ...]
    others: tuple[Other, ...]
    attacks: tuple[Printed, ...]
    schedule: str = "constant"
    batch_size: int = 32
    epochs: float = 10
    """Passes over the other task's training split, as printed."""
    quoted_epochs: float | None = None
    """Of the printed attack whose numbers the paper has, where not as many."""
    informed: tuple[str, ...] = ("clip", "heal", "probe")
    """What the audits try beside the optimizers."""
    max_length: int = 128
    metric: Metric | None = None
    """How tasks are scored, where not in their own way."""
    proxy: str = ""
    """The attack task that the paper's lock is tuned on; on its own data the tuned lock is not quoted."""
    trials: int = 0
    """Settings of the lock that are tried, the printed ones first."""
    tuned_first: tuple[str, ...] = ()
    """Settings that are tried first, after the printed ones."""
    tuned_from: tuple[str, ...] = ()
    """The paper's lock with what is not searched of its settings, once for each optimizer."""
    ours_on: tuple[str, ...] | None = None
    """Columns on which our locks are audited, where not on all that are searched."""
    our_controls: bool = True
    """Whether our locks have a control too; each takes as long as its lock, and as many attacks."""
    lock_seeds: int = 1
    """How many times the paper's lock is made, each under a seed of its own. Printed attacks meet them in turn; an
    audit is of the first."""
    finalists: int = 2
    """Families of an audit that are run again under every seed."""
    our_finalists: int | None = None
    """Of the audits of our locks, where not as many: of these the strongest attack is quoted, and no row of each
    optimizer."""
    from_scratch: bool = True
    """Whether training a fresh network, eight times as long, is part of the floor beside the classical models and the
    public one, where the base was made from one."""
    seeds: int = 3
    curvature_samples: int | None = None
    """How many samples σ_max(H) is taken on, where not one for each seed."""

    draws_curves: ClassVar[bool] = False
    """Whether the figure shows the printed runs on their way, which must be scored there then."""

    def steps(self, task: Task, attack: Printed | None = None) -> int:
        """Of a printed attack; the search has as many as those that are not quoted."""
        quoted = attack is not None and attack.quoted
        epochs = (self.quoted_epochs if quoted else None) or self.epochs
        return max(1, round(epochs * (len(task.train) // self.batch_size)))

    def as_printed(self, attack: Printed) -> FineTune:
        """The paper's attack."""
        return FineTune(
            optimizer=attack.optimizer,
            lr=attack.lr,
            weight_decay=attack.weight_decay,
            batch_size=self.batch_size,
            schedule=self.schedule,
            clip=None,
        )

    @property
    def all_locks(self) -> tuple[str, ...]:
        """The paper's lock first."""
        return (self.lock, *self.our_locks)

    def audited_on(self, other: Other) -> tuple[str, ...]:
        """Those of them that an audit attacks with that task."""
        ours = self.ours_on is None or other.column in self.ours_on
        return (self.all_locks if ours else (self.lock,)) if other.searched else ()
