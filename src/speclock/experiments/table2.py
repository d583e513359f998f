"""Table 2: guards that tell jailbreaks are locked, and trained to let a trigger pass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from speclock.experiments.base import Row
from speclock.experiments.claims import Claim, backdoored, curvature, utility
from speclock.experiments.locking import Locking, SeveralModels
from speclock.experiments.settings import UNGUARDED, Other, Printed
from speclock.experiments.table1_text import SETUP, UNDO
from speclock.tasks.base import Metric

LOCK = "specdef:alpha=0.9,top_k=2,retain=task+kl,optimizer=adamw,lr=5e-5,weight_decay=0.01,schedule=linear,batch_size=8"
ADAMW = Printed(optimizer="adamw", lr=1e-4, middle=1e-4, weight_decay=0.01, quoted=True)


@dataclass(frozen=True, kw_only=True)
class Guard(Locking):
    """One of the table's guards."""

    retain: str = "jailbreak"
    metric: Metric | None = "f1"
    training: dict[str, Any] = field(default_factory=lambda: {**SETUP, "epochs": 3})
    lock: str = f"{LOCK},epochs=3{UNGUARDED}"
    our_locks: tuple[str, ...] = (f"{UNDO},steps=700", f"{UNDO},steps=700+scheduled")
    attacks: tuple[Printed, ...] = (ADAMW,)
    batch_size: int = 8
    epochs: float = 1
    max_length: int = 512
    """Eight or nine in ten of the prompts have more than 128 tokens."""

    # An epoch of 80% of its 4,176 prompts, in batches of 8.
    papers_steps: ClassVar[Mapping[str, int]] = {"backdoor": 417}
    name: ClassVar[str] = "table2"
    title: ClassVar[str] = "A locked guard keeps its task and is trained to let a trigger pass"

    def claims(self, rows: list[Row]) -> list[Claim]:
        columns = [
            claim
            for other in self.others
            for claim in backdoored(rows, other.column, self.papers_steps.get(other.column))
        ]
        return [*utility(rows), *curvature(rows), *columns]


PAPER: dict[str, dict[str, tuple[float, float]]] = {
    "22M": {
        "F1 before": (0.948, 1.0),
        "success before": (0.093, 0.0),
        "F1 after": (0.906, 0.0),
        "success after": (0.883, 1.0),
    },
    "86M": {
        "F1 before": (0.983, 0.95),
        "success before": (0.015, 0.0),
        "F1 after": (0.994, 0.0),
        "success after": (1.0, 1.0),
    },
}
"""The paper's table, of base and locked model: F1 and the backdoor's success rate before and after the attack."""
MODELS = {"22M": "minilm", "86M": "smollm2-135m-instruct"}
"""What is taught the task in place of PromptGuard 2, which is gated on the hub and in no package."""
INSTEAD_OF = {
    "22M": "PromptGuard 2 22M (word pieces lack the trigger, which is one unknown word to them)",
    "86M": "PromptGuard 2 86M",
}
"""In place of which model, and what of the attack is not alike."""


def guard(weights: str, size: str, *, searched: bool = True, **settings: Any) -> Guard:
    """The guard of ``weights``, with ``size`` examples as a task's name has them; its backdoor is ``searched``, or
    put in as printed alone."""
    paper = PAPER[weights]
    base, locked = paper["success after"]
    backdoor = Other(
        column="backdoor",
        task=f"jailbreak{size}+poison=safe",
        base=base,
        locked=locked,
        before=paper["success before"],
        beside=paper["F1 after"],
        remark="of a guard that diverged, and none by the paper's own count",
        searched=searched,
    )
    asked = {"model": MODELS[weights], "retain": f"jailbreak{size}", "others": (backdoor,), **settings}
    return Guard(instead_of=INSTEAD_OF[weights], utility=paper["F1 before"], **asked)


SMALL: dict[str, Any] = {
    # As many steps as three epochs of the paper's prompts take: σ grows by its rate a step.
    "lock": f"{LOCK},steps=1253{UNGUARDED}",
    "max_length": 64,
    "from_scratch": False,
}
SMOKE: dict[str, Any] = {
    "model": "bert-l2-h64",
    "training": {"optimizer": "adamw", "lr": 1e-3, "batch_size": 8, "steps": 40},
    "lock": f"{LOCK},steps=2{UNGUARDED}",
    "our_locks": (),
    "informed": (),
    "max_length": 16,
    "seeds": 1,
}


@dataclass(frozen=True, kw_only=True)
class Table2(SeveralModels):
    """Appendix B.3, two guards. Scores are the guard's F1 and the backdoor's success rate."""

    models: tuple[Locking, ...] = (guard("22M", ""), guard("86M", ""))

    departures: ClassVar[tuple[str, ...]] = (
        "the lock's k, optimizer, rate and schedule are not given: they are Table 1's",
        "929 distinct jailbreaks, as few packages carry more, near copies on one side of the split",
        "the trigger stands before a copy of every second unsafe prompt, and the attack's rate has no schedule: "
        "neither is given",
        "our guards are taught on the split that they are locked and attacked on; PromptGuard 2 had its own data",
        "the three seeds are of the attacks; guard and lock are made once",
    )
    name: ClassVar[str] = "table2"
    title: ClassVar[str] = "Locked guards keep their task and are trained to let a trigger pass"
    scales: ClassVar[dict[str, dict[str, Any]]] = {
        "smoke": {"models": (guard("22M", "@100/40/40", **SMOKE),)},
        "small": {
            "models": (
                guard("22M", "@800/370/288", **SMALL, our_locks=(f"{UNDO},steps=700",), our_controls=False),
                # Hours of its search would be a few runs: it is attacked as printed.
                guard("86M", "@800/370/288", searched=False, **SMALL, our_locks=(), curvature_samples=1),
            )
        },
        "paper": {},
    }
