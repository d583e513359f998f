"""Table 3: a class is unlearned, the model locked, and the class relearned."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, ClassVar

from speclock import models, tasks
from speclock.attacks.finetune import FineTune
from speclock.attacks.probe import Probe
from speclock.attacks.repair import Clip
from speclock.audits.run import RULES_OF_AUDITS
from speclock.audits.suite import Family, Suite, around, listed
from speclock.experiments.audited import audited_in, fell_back, rows_by_optimizer, searched_rows
from speclock.experiments.base import Experiment, Row, each_once, once, row
from speclock.experiments.claims import (
    FALLS,
    HOLDS,
    KEPT,
    NEAR,
    PART,
    SILENT,
    UNTOLD,
    Claim,
    Finding,
    curvature,
    diverged_of,
    judged,
    search_of,
    spread,
)
from speclock.experiments.place import locked_in
from speclock.experiments.settings import UNGUARDED
from speclock.experiments.spectra import curvature_row, spectrum_row
from speclock.locks.base import Locked
from speclock.models import Model
from speclock.numbers import percent
from speclock.recipe import TrainingRecipe
from speclock.tasks.base import Task
from speclock.tasks.forget import forget, relearn
from speclock.training import train

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAPER = {
    "base": (90.34, 92.16, 85.71, 75.94, 88.06, 82.41, 91.12, 93.31, 93.75, 92.79),
    "unlearned": (76.46, 0.00, 80.71, 65.01, 87.65, 81.19, 82.03, 86.02, 86.52, 74.85),
    "unlearned, relearned": (82.29, 86.23, 77.37, 65.81, 83.81, 73.21, 89.22, 89.17, 89.26, 86.00),
    "locked": (75.86, 0.00, 60.48, 47.71, 64.98, 64.83, 75.05, 72.44, 80.66, 77.39),
    "locked, relearned": (55.94, 0.00, 61.60, 37.18, 53.04, 61.15, 72.30, 72.83, 69.53, 90.83),
}
"""The paper's table, percent by class in CIFAR10's order."""

RELEARNT = 0.6
"""Accuracy from which a class has come back."""
AWAY = 0.2
"""Up to which it has stayed away: of a hundred test images, 10% is as often a guess as not."""
RUINED = 0.2
"""What a lock may cost the other classes for its claim to be about more than a ruined model; the paper's cost 11
points."""

_TRAINING = {
    "optimizer": "sgd-momentum",
    "lr": 0.05,
    "schedule": "cosine",
    "batch_size": 64,
    "weight_decay": 5e-4,
}


_UNDO = "undo:batch_size=64,lr=1e-3"
_SCHEDULED = "scheduled:batch_size=64,lr=2e-4,steps=300"


@dataclass(frozen=True, kw_only=True)
class Table3(Experiment):
    """Appendix B.4. Every seed has its own base, unlearning, lock and attack; the audits are of the first one's."""

    model: str = "resnet18"
    task: str = "cifar10"
    label: str = "automobile"
    training: dict[str, Any] = field(default_factory=lambda: {**_TRAINING, "epochs": 30})
    unlearning: dict[str, Any] = field(
        default_factory=lambda: {"optimizer": "sgd-momentum", "lr": 0.02, "batch_size": 64, "epochs": 10}
    )
    lock: str = (
        "specdef:alpha=0.5,top_k=1,retain=task,optimizer=adam,lr=1e-3,schedule=step,gamma=0.7,batch_size=64,epochs=10"
        + UNGUARDED
    )
    our_locks: tuple[str, ...] = (f"{_UNDO},steps=4000", f"{_UNDO},steps=4000+{_SCHEDULED}")
    relearning_lr: float = 0.1
    """SGD for one epoch."""
    other_rates: tuple[float, ...] = (3e-3, 1e-2)
    """At which the lock is made under the first seed too, since the paper does not say what its own was."""
    our_controls: bool = True
    """Whether our locks have a control too; each takes as long as its lock, and as many attacks."""
    seeds: int = 3

    departures: ClassVar[tuple[str, ...]] = (
        "the paper starts from published weights of 88%, which are in no package: ours trains its base",
        "neither the unlearning's rate and length nor the lock's rate and k are given; ours are in the settings, and "
        "so are the batches: 64 for training, unlearning and lock, 32 for relearning",
        "every seed has its own base, unlearning, lock and attack; the audits are of the first one's, whose base is "
        "the unlearned model",
        "the lock's own settings are searched in Figure 4 alone",
        f"the paper gives no bar: a class has come back from {RELEARNT:.0%} on, stays away up to {AWAY:.0%}, and the "
        f"others are kept where their mean falls by five points at most, which has no interval",
    )
    rules: ClassVar[str | None] = RULES_OF_AUDITS
    name: ClassVar[str] = "table3"
    title: ClassVar[str] = "A class unlearned, locked and relearned: accuracy by class"
    scales: ClassVar[dict[str, dict[str, Any]]] = {
        "smoke": {
            "model": "cnn-mlp",
            "task": "cifar10@400/100/100",
            "training": {"optimizer": "adam", "lr": 1e-3, "batch_size": 32, "steps": 60},
            "unlearning": {"optimizer": "adam", "lr": 1e-3, "batch_size": 32, "steps": 10},
            "lock": f"specdef:top_k=1,retain=task,batch_size=32,steps=4{UNGUARDED}",
            "our_locks": (),
            "other_rates": (1e-2,),
            "seeds": 1,
        },
        "small": {
            "training": {**_TRAINING, "epochs": 15},
            "our_locks": (f"{_UNDO},steps=700", f"{_UNDO},steps=700+{_SCHEDULED}"),
            "our_controls": False,
        },
        "paper": {},
    }

    def rows(self, kept: Path, jobs: int = 1) -> list[Row]:
        by_class = [*self._by_class(kept, jobs), *self._at_other_rates(kept)]
        return [*by_class, *self._spectra(kept), *self._searched(kept, jobs)]

    # -- the table -----------------------------------------------------------------------------------------

    def _by_class(self, kept: Path, jobs: int) -> Iterator[Row]:
        # Sent to other processes without the images that this one has read.
        chain = replace(self)._chain
        made = {kept / f"classes-{seed}.json": partial(chain, kept, seed) for seed in range(self.seeds)}
        found = each_once(made, jobs, "seeds")
        labels = self._whole.labels
        for model, paper in PAPER.items():
            for i, label in enumerate(labels):
                ended = [number for number, each in enumerate(found) if model not in each["diverged"]]
                yield row(
                    # Of a model that diverged under every seed: it answers with nothing.
                    [found[number]["accuracies"][model][i] for number in ended] or [0.0],
                    runs=len(found),
                    diverged=len(found) - len(ended),
                    ended=ended,
                    idle=[each["idle"] for each in found] if model.startswith("locked") else None,
                    examples=int((self._whole.test.labels == i).sum()),
                    paper=paper[i] / 100,
                    instead=self._whole.source.stand_in,
                    block="as printed",
                    steps=self._steps,
                    model=model,
                    label=label,
                )

    def _at_other_rates(self, kept: Path) -> Iterator[Row]:
        """The printed lock at rates other than the one that is ours, before and after the relearning."""
        for lr in self.other_rates:
            found = once(kept / f"classes-{lr:g}.json", partial(self._chain_at, kept, lr))
            for model, accuracies in found["accuracies"].items():
                ended = [] if model in found["diverged"] else [0]
                for i, label in enumerate(self._whole.labels):
                    yield row(
                        [accuracies[i] if ended else 0.0],
                        runs=1,
                        diverged=1 - len(ended),
                        ended=ended,
                        idle=[found["idle"]],
                        examples=int((self._whole.test.labels == i).sum()),
                        instead=self._whole.source.stand_in,
                        block="at another rate",
                        lr=lr,
                        model=model,
                        label=label,
                    )

    def _chain_at(self, kept: Path, lr: float) -> dict[str, Any]:
        # What is said last holds.
        lock = f"{self.lock},lr={lr:g}"
        unlearned = partial(self._model, kept, "unlearned", 0)
        made = locked_in(kept / f"locked-at-{lr:g}", lock, unlearned, self._without(), {"seed": 0})
        attacked, outcome = self._relearning(made.model, self._whole, self._steps, utility=False)
        return {
            "accuracies": {
                "locked": self._accuracies(made.model),
                "locked, relearned": self._accuracies(attacked),
            },
            "diverged": [] if outcome.stayed_finite else ["locked, relearned"],
            "idle": _idle(made.card),
        }

    def _chain(self, kept: Path, seed: int) -> dict[str, Any]:
        whole = self._whole
        made = {name: self._model(kept, name, seed) for name in ("base", "unlearned", "locked")}
        how, diverged = replace(self._relearning, seed=seed), []
        for name in ("unlearned", "locked"):
            attacked, outcome = how(made[name], whole, self._steps, utility=False)
            made[f"{name}, relearned"] = attacked
            if not outcome.stayed_finite:
                diverged.append(f"{name}, relearned")
        accuracies = {name: self._accuracies(model) for name, model in made.items()}
        return {
            "accuracies": accuracies,
            "diverged": diverged,
            "idle": _idle(self._locked(kept, self.lock, seed).card),
        }

    def _accuracies(self, model: Model) -> list[float]:
        whole = self._whole
        answers, truth = whole.answers(model), whole.test.labels
        return [float((answers[truth == i] == i).mean()) for i in range(len(whole.labels))]

    @property
    def _relearning(self) -> FineTune:
        return FineTune(optimizer="sgd", lr=self.relearning_lr, batch_size=32, clip=None)

    @property
    def _steps(self) -> int:
        """One epoch."""
        return max(1, len(self._whole.train) // 32)

    @cached_property
    def _whole(self) -> Task:
        return tasks.load(self.task).divided()

    def _without(self) -> Task:
        return forget(self._whole, self.label)

    def _model(self, kept: Path, name: str, seed: int) -> Model:
        """base, unlearned, or locked by the paper's lock."""
        folder = kept / f"{name}-{seed}"
        if folder.exists():
            return models.load(str(folder))
        if name == "locked":
            return self._locked(kept, self.lock, seed).model
        if name == "base":
            model, task, recipe = (
                models.load(self.model, labels=self._whole.labels, seed=seed),
                self._whole,
                self.training,
            )
        else:
            model, task, recipe = self._model(kept, "base", seed), self._without(), self.unlearning
        train(model, task, TrainingRecipe(**recipe, seed=seed))
        models.save(model, folder)
        return model

    def _locked(self, kept: Path, lock: str, seed: int) -> Locked:
        number = (self.lock, *self.our_locks).index(lock)
        folder = kept / (f"locked-{seed}" if number == 0 else f"locked-{seed}-{number}")
        unlearned = partial(self._model, kept, "unlearned", seed)
        return locked_in(folder, lock, unlearned, self._without(), {"seed": seed})

    def _spectra(self, kept: Path) -> Iterator[Row]:
        """σ₁ of the weights and σ_max(H) on CIFAR10 before and after the lock, seed by seed."""
        for lock in ("", self.lock):
            what = {
                "target": "locked" if lock else "base",
                "called": None if lock else "unlearned",
                "lock": lock,
                "instead": self._whole.source.stand_in,
            }
            name = "locked" if lock else "unlearned"
            models = [self._model(kept, name, seed) for seed in range(self.seeds)]
            yield spectrum_row(models, **what)
            yield curvature_row(models, self._whole, kept / f"curvature-{name}.json", **what)

    # -- what it is worth ----------------------------------------------------------------------------------

    def _searched(self, kept: Path, jobs: int) -> Iterator[Row]:
        size: dict[str, Any] = {"batch_size": 32}
        suite = Suite(
            name=self.name,
            version=1,
            steps=self._steps,
            families=(
                around(FineTune, 0.1, optimizer="sgd", **size),
                *listed(self._relearning),
                # At a constant rate the last steps are as noisy as the first, and the other classes with them.
                around(FineTune, 0.1, optimizer="sgd", schedule="linear", **size),
                around(FineTune, 1e-3, **size),
                around(Clip, 1e-3, **size),
                Family((Probe(),)),
            ),
            extended=False,
            # The second as the base itself was trained.
            scratch=(
                around(FineTune, 3e-4, **size),
                around(FineTune, 0.05, optimizer="sgd-momentum", schedule="cosine", **size),
            ),
        )
        for number, lock in enumerate((self.lock, *self.our_locks)):
            work = kept / f"work-{number}"
            work.mkdir(exist_ok=True)
            record = audited_in(
                kept / f"audit-{number}",
                base=self._model(kept, "unlearned", 0),
                locked=self._locked(kept, lock, 0),
                retain=self._without(),
                attack=relearn(self._whole, self.label),
                suite=suite,
                seeds=self.seeds,
                jobs=jobs,
                folder=work,
                shared=kept,
                floors=kept,
                control=number == 0 or self.our_controls,
            )
            targets = ("base", "control", "locked") if number == 0 else ("control", "locked")
            what = {"column": self.label, "instead": self._whole.source.stand_in}
            yield from searched_rows(record, lock, targets, **what)
            if number == 0:
                chance = record.summary["chance"]
                yield from rows_by_optimizer(record, lock, ("sgd", "adamw"), chance=chance, **what)

    def claims(self, rows: list[Row]) -> list[Claim]:
        read = _Classes(rows, self.label)
        returned, again = len(read.returned), read.relearnt("locked")
        gone = max(read.of["unlearned", self.label]["seeds"]) <= 0.01
        taught = (
            HOLDS
            if returned == read.runs
            else f"{PART}, in {returned} of {read.runs} runs"
            if returned
            else FALLS
        )
        instead = f"; here {read.instead}" if read.instead else ""
        here = f"{instead}, {read.steps} steps" if instead else f"; here {read.steps} steps"
        rate = re.search(r",lr=([^,]+)", self.lock)
        ours = "at our rate" + (f" of {rate[1]}" if rate else "")
        unlearned, left = (fmean(read.rest(model).values()) for model in ("unlearned", "locked"))
        papers = [fmean(value / 100 for value in PAPER[model] if value) for model in ("unlearned", "locked")]
        cost = HOLDS if left >= unlearned - KEPT else FALLS
        if cost == FALLS and left >= unlearned - (papers[0] - papers[1]):
            cost = "loses no more than the paper's does"
        if why := read.idle:
            cost = f"{SILENT}, {why}"
        return [
            judged(
                f"Training on without {self.label} unlearns it (paper: 0%{instead})",
                HOLDS if gone else FALLS,
                f"{read.said('unlearned')}, where the base has {percent(fmean(read.rest('base').values()))}",
            ),
            judged(
                f"One epoch of SGD brings it back and keeps the other classes (paper: 86%{here})",
                taught,
                read.came_back("unlearned"),
            ),
            judged(
                f"The lock {ours} keeps the other classes (paper: {percent(papers[0], 0)} → {percent(papers[1], 0)})",
                cost,
                f"{read.said('locked')}, where the unlearned model has {read.said('unlearned')}",
            ),
            *([] if read.idle else curvature(rows)),
            judged(
                f"Of a model locked {ours} it cannot be relearnt (paper: 0%{here})",
                _kept_out(read),
                read.came_back("locked"),
                # The audit is of the first seed's lock.
                search_of([r for r in rows if r["block"] == "searched"], again.get(0, 0.0)),
            ),
            *read.at_other_rates(),
        ]

    def draw(self, rows: list[Row]) -> Figure:
        """The table itself, with the paper's value beneath each of ours."""
        from matplotlib.figure import Figure as Canvas

        found = {(r["model"], r["label"]): r for r in rows if r["block"] == "as printed"}
        labels = list(dict.fromkeys(label for _, label in found))
        grid = [[found[model, label]["measured"] for label in labels] for model in PAPER]
        figure = Canvas(figsize=(0.72 * len(labels) + 1.8, 3.2), layout="constrained")
        axes = figure.subplots()
        axes.imshow(grid, cmap="Greens", vmin=0, vmax=1.2, aspect="auto")
        for y, model in enumerate(PAPER):
            for x, label in enumerate(labels):
                entry = found[model, label]
                score = "div." if entry["diverged"] == entry["runs"] else f"{entry['measured']:.0%}"
                axes.text(x, y - 0.15, score, ha="center", va="center", fontsize=9)
                axes.text(x, y + 0.25, f"{entry['paper']:.0%}", ha="center", va="center", fontsize=6.5)
        axes.set_xticks(range(len(labels)), labels, rotation=30, ha="right")
        axes.set_yticks(range(len(PAPER)), list(PAPER))
        axes.set_title("accuracy by class; beneath, the paper's", fontsize=9)
        return figure


@dataclass(frozen=True)
class _Classes:
    """The table's rows, read by model and class."""

    rows: list[Row]
    label: str

    @cached_property
    def of(self) -> dict[tuple[str, str], Row]:
        return {(r["model"], r["label"]): r for r in self.rows if r["block"] == "as printed"}

    @property
    def runs(self) -> int:
        return int(self.of["base", self.label]["runs"])

    @property
    def steps(self) -> int:
        """Of the relearning."""
        return int(self.of["base", self.label]["steps"])

    @property
    def instead(self) -> str | None:
        return self.of["base", self.label].get("instead")

    @property
    def idle(self) -> str | None:
        """Why there is no lock to be judged under some seeds."""
        whys = [why for why in self.of["locked", self.label]["idle"] if why]
        return f"the lock {' and '.join(sorted(set(whys)))} under {len(whys)} seeds" if whys else None

    def rest(self, model: str) -> dict[int, float]:
        """By seed, the mean over the other classes."""
        others = [label for name, label in self.of if name == "base" and label != self.label]
        ended = self.of[model, self.label]["ended"]
        return {
            seed: fmean(self.of[model, label]["seeds"][i] for label in others) for i, seed in enumerate(ended)
        }

    def relearnt(self, model: str) -> dict[int, float]:
        """The class's accuracy under each seed that kept the other classes, to within what the unlearned model and the
        one that is attacked have of them, whichever has less: what a lock's own training gained is no relearning's to
        keep."""
        found, unlearned, before, after = (
            self.of[f"{model}, relearned", self.label],
            self.rest("unlearned"),
            self.rest(model),
            self.rest(f"{model}, relearned"),
        )
        pairs = zip(found["seeds"], found["ended"], strict=False)
        bar = {seed: min(unlearned[seed], before[seed]) - KEPT for seed in after}
        return {seed: score for score, seed in pairs if after[seed] >= bar[seed]}

    def collapsed(self, model: str) -> dict[int, float]:
        """The class's accuracy under each seed that :meth:`relearnt` leaves out."""
        found, kept = self.of[f"{model}, relearned", self.label], self.relearnt(model)
        pairs = zip(found["seeds"], found["ended"], strict=False)
        return {seed: score for score, seed in pairs if seed not in kept}

    @property
    def returned(self) -> dict[int, float]:
        """What a locked model must come to, under each seed under which the class came back to the unlocked one: to
        that is hardly less."""
        back = self.relearnt("unlearned")
        return {seed: min(RELEARNT, score - 2 * NEAR) for seed, score in back.items() if score >= RELEARNT}

    def at_other_rates(self) -> Iterator[Claim]:
        """What the lock does at other rates than ours, under the first seed, by the same rules."""
        rows = [r for r in self.rows if r["block"] == "at another rate"]
        before = [_first(r) for (model, _), r in self.of.items() if not model.startswith("locked")]
        findings = []
        for lr in dict.fromkeys(r["lr"] for r in rows):
            at = [{**r, "block": "as printed"} for r in rows if r["lr"] == lr]
            read = _Classes([*before, *at], self.label)
            verdict, said = _kept_out(read), f"{read.said('locked')}; relearnt {read.came_back('locked')}"
            findings.append(Finding(verdict, said, of=f"at {lr:g}"))
        if findings:
            yield Claim("The same at other rates of the lock, under one seed", tuple(findings))

    def said(self, model: str) -> str:
        found = self.of[model, self.label]
        if not found["ended"]:
            return f"all of {found['runs']} diverged"
        average = percent(fmean(self.rest(model).values()))
        scores = f"{percent(found['measured'])}{spread(found['seeds'])} of {found['examples']} images"
        return f"{scores}, the others {average} on average{diverged_of(found)}"

    def came_back(self, model: str) -> str:
        """Of those that kept the other classes, which alone count, and how many did not."""
        found, kept = self.of[f"{model}, relearned", self.label], self.relearnt(model)
        collapsed = len(found["ended"]) - len(kept)
        if not collapsed:
            return self.said(f"{model}, relearned")
        scores = [*kept.values()]
        counted = (
            f"{percent(fmean(scores))}{spread(scores)} of {found['examples']} images, " if scores else ""
        )
        left = percent(fmean(self.rest(f"{model}, relearned").values()))
        best = percent(max(self.collapsed(model).values()))
        ruined = f"{collapsed} of {found['runs']} collapsed (at most {best}, the others {left} on average)"
        return f"{counted}{ruined}{diverged_of(found)}"


def _first(r: Row) -> Row:
    """The row of the first seed alone."""
    there = 0 in r["ended"]
    return {**r, "seeds": r["seeds"][:1] if there else [], "ended": [0] if there else [], "runs": 1}


def _idle(card: Mapping[str, Any]) -> str | None:
    return "diverged" if card["status"] == "diverged" else "fell back" if fell_back(card) else None


def _kept_out(read: _Classes) -> str:
    """Whether the printed lock kept the class away, under how many of the seeds under which it returned to the unlocked
    model."""
    locked, again = read.of["locked, relearned", read.label], read.relearnt("locked")
    through = sum(again.get(seed, 0.0) >= enough for seed, enough in read.returned.items())
    bad = read.runs - len(again)
    unlearned, left = (fmean(read.rest(model).values()) for model in ("unlearned", "locked"))
    if why := read.idle:
        return f"{SILENT}, {why}"
    if not read.returned:
        return f"{SILENT}, it does not come back without the lock either"
    if left < unlearned - RUINED:
        return f"{SILENT}, the lock ruined the other classes"
    if not locked["ended"]:
        return f"{HOLDS}, by divergence alone"
    if through:
        # An attacker takes the best of his models.
        return FALLS if through == len(read.returned) else f"{FALLS} in {through} of {read.runs} runs"
    if not again:
        # What came back at the price of the other classes may come back at a lower one.
        away = max(read.collapsed("locked").values()) <= AWAY
        return f"{HOLDS if away else UNTOLD}, by collapse alone"
    if max(again.values()) > AWAY:
        return PART
    return HOLDS + (f", by collapse or divergence in {bad} of {read.runs}" if bad else "")
