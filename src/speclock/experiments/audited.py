"""What an audit found, as rows of a table: lock by lock, and each optimizer at its best."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import speclock
from speclock.attacks.finetune import FineTune
from speclock.audits.metrics import Pick, guess, pick
from speclock.audits.record import Record, RunRecord, read
from speclock.experiments.base import Row, row


def audited_in(place: Path, **asked: Any) -> Record:
    """The audit's record, kept in ``place``."""
    if not (place / "audit.json").exists():
        # Its lock was made by this very run: there is no card to be checked by making it once more.
        record = speclock.audit(**asked, repeat=False)
        place.mkdir(exist_ok=True)
        record.save(place)
    return read(place)


def searched_rows(record: Record, lock: str, targets: Sequence[str], **what: Any) -> Iterator[Row]:
    """What an audit found on each of the targets that there are, and the floor beside it.

    ``measured`` is the audit's score, in which a seed without one counts as what the attacker has anyway; a target on
    which no run came to a score stands at chance, and is marked. ``trained`` is the best of what trains, a seed
    without a score at chance: where the floor lies above the base, a seed that diverged must not pass for one that
    learnt.
    """
    summary = record.summary
    card = record.locked["card"]
    for target in targets:
        runs = [run for run in record.runs if run.target == target]
        if not runs:
            continue
        best, of = summary[f"best_{target}"], _anyway(record, target)
        found = row(
            [summary["chance"] if best is None else best],
            **what,
            block="searched",
            target=target,
            lock="" if target == "base" else lock,
            scored=best is not None,
            strongest_attack=summary["strongest_attacks"].get(target),
            floor=summary["floor"],
            floor_by=summary["floor_by"],
            steps=record.suite["budget"],
            chance=summary["chance"],
            trained=trained_on(record, target),
            statuses={
                stage: dict(Counter(run.status for run in runs if run.stage == stage))
                for stage in ("search", "final")
            },
            rates=_span(runs),
        )
        found["ci"] = summary["intervals"].get(f"best_{target}")
        found["seeds"] = [run.test for run in of.runs] if of else []
        found["beside"] = _beside(of.runs) if of else {}
        if target == "locked":
            found["fell_back"] = fell_back(card)
            found["idle_parts"] = idle_parts(card)
            found["uplift_ci"] = summary["intervals"]["uplift"]
            found["strongest_steps"] = of and of.runs[0].kind != "probe" and of.runs[0].steps
            # Its own base's, which another audit may have given another budget.
            found["base_trained"] = trained_on(record, "base")
            quoted = (
                "best_base",
                "best_control",
                "uplift",
                "uplift_uninformed",
                "worth",
                "slowdown",
                "utility_base",
                "utility_locked",
            )
            found |= {name: summary[name] for name in quoted}
            found["audit"] = in_short(record)
            found |= {"verdict": record.verdict, "flags": [flag.name for flag in record.flags]}
        yield found


def _beside(runs: Sequence[RunRecord]) -> dict[str, float]:
    """What stands beside the test scores of a pick's runs, by task: the mean over the seeds that have any."""
    names = {name for run in runs for name in run.beside}
    return {name: fmean(run.beside[name] for run in runs if name in run.beside) for name in sorted(names)}


def fell_back(card: Mapping[str, Any]) -> bool:
    """Whether a lock, in all of its parts, left the model as it was before."""
    return all(part["chosen_step"] == 0 for part in card.get("parts", [card]))


def idle_parts(card: Mapping[str, Any]) -> list[str]:
    """The parts of a composition that left the model as the part before had made it."""
    return [part["lock"] for part in card.get("parts", []) if part["chosen_step"] == 0]


def _anyway(
    record: Record, target: str, counts: Callable[[RunRecord], bool] = lambda run: True
) -> Pick | None:
    """The attacker's pick among the finalists that ``counts`` admits, as the audit reckons."""
    return pick(record.runs, target, (record.summary["floor"], record.summary["floor_validation"]), counts)


def trained_on(
    record: Record, target: str, counts: Callable[[RunRecord], bool] = lambda run: True
) -> dict[str, Any] | None:
    """The pick among what trains the model, a seed without a score at chance; None where none came to a score.

    A probe trains nothing, and reads an untrained network too.
    """
    least = guess(record)
    found = pick(record.runs, target, (least, least), lambda run: run.kind != "probe" and counts(run))
    if found is None:
        return None
    tests = [run.test for run in found.runs]
    return {
        "score": found.score,
        "by": found.runs[0].title,
        "seeds": tests,
        "missing": sum(test is None for test in tests),
    }


def rows_by_optimizer(record: Record, lock: str, optimizers: Sequence[str], **what: Any) -> Iterator[Row]:
    """Each optimizer at the best rate that its search found, on every target that it was tried on.

    Of those that came to the finals the test scores of every seed, and how many have none; of the others the search's
    own best, on validation under one seed, and said to be. Where no run has a score, that is the row.
    """
    for optimizer in dict.fromkeys(optimizers):

        def own(run: RunRecord, optimizer: str = optimizer) -> bool:
            return run.attack == FineTune.name and run.config["optimizer"] == optimizer

        for target in ("base", "control", "locked"):
            runs = [run for run in record.runs if run.target == target and own(run)]
            if not runs:
                continue
            searches = [run for run in runs if run.stage == "search"]
            best = max(
                (run for run in searches if run.best is not None), key=lambda r: r.best or 0.0, default=None
            )
            finals = pick(runs, target, (guess(record),) * 2)
            chosen = finals.runs if finals else [run for run in runs if run.stage == "final"]
            scores = [run.test for run in chosen if run.test is not None]
            if chosen:
                lr, measured = chosen[0].config["lr"], scores
            else:
                lr, measured = (best.config["lr"], [best.best or 0.0]) if best else (None, [])
            yield row(
                measured or [record.summary["chance"]],
                runs=len(chosen) or 1,
                diverged=len(chosen) - len(scores),
                scored=bool(measured),
                **what,
                block="at its best",
                target=target,
                lock=lock if target != "base" else "",
                optimizer=optimizer,
                lr=lr,
                split="test" if chosen else "validation",
                rates=_span(runs),
            )


def _span(runs: Sequence[RunRecord]) -> tuple[float, float] | None:
    """The lowest and the highest learning rate that a search tried."""
    rates = [run.config["lr"] for run in runs if run.stage == "search" and "lr" in run.config]
    return (min(rates), max(rates)) if rates else None


def in_short(record: Record) -> list[dict[str, Any]]:
    """Every run of an audit without its curve and answers: what an experiment's record keeps of it."""
    names = ("target", "family", "stage", "seed", "status", "best", "test", "steps", "pruned_at", "seconds")
    return [
        {name: getattr(run, name) for name in names} | {"lr": run.config.get("lr")} for run in record.runs
    ]
