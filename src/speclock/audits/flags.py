"""When an audit must not be trusted as it stands: each flag with its cause and what to do next.

A flag is a function from the record to the cause, or None where there is none; its docstring is what to do
next, so that the docs and the report say the same.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace

from speclock.audits.metrics import strongest
from speclock.audits.record import TARGETS, Record, RunRecord

Flag = Callable[[Record], str | None]

# Differences of scores below this are noise at the test sizes that audits use.
_NOTABLE = 0.05


def raised(record: Record) -> list[dict[str, str]]:
    """Every flag that the record raises: `name`, `why` and `next`."""
    found = []
    for flag in FLAGS:
        why = flag(record)
        if why:
            found.append(
                {"name": flag.__name__, "why": why, "next": " ".join((inspect.getdoc(flag) or "").split())}
            )
    return found


def utility_broken(record: Record) -> str | None:
    """Lock more gently (higher alpha, smaller lr, fewer steps): a model that lost its job protects nothing."""
    base, locked = record.summary["utility_base"], record.summary["utility_locked"]
    if base - locked > _NOTABLE or locked < record.retain_task["chance"] + _NOTABLE:
        return f"utility fell from {base:.1%} to {locked:.1%} before any attack"
    return None


def attack_fails_on_base(record: Record) -> str | None:
    """Raise --steps or the number of training examples until the base learns: only then can a lock fail to."""
    best = record.summary["best_base"]
    if best is None:
        return "no attack on the unlocked base ended with a score"
    if best < record.summary["chance"] + 2 * _NOTABLE:
        return f"the best attack on the unlocked base reached {best:.1%}, chance being {record.summary['chance']:.1%}"
    return None


def nothing_to_protect(record: Record) -> str | None:
    """Choose an attack task or a number of examples at which the base is worth something over scratch."""
    base, scratch = record.summary["best_base"], record.summary["best_scratch"]
    if base is not None and scratch is not None and base - scratch < _NOTABLE:
        return f"the base reaches {base:.1%} and a freshly initialised model {scratch:.1%}"
    return None


def budget_too_small(record: Record) -> str | None:
    """Raise --steps: what is measured is the budget and not the model."""
    best = strongest(record.runs, "base")
    for run in best.runs if best else []:
        steps = record.suite["steps"]
        earlier = max((score for step, score in run.curve if step <= 0.75 * steps), default=0.0)
        if run.best is not None and run.best - earlier > _NOTABLE:
            return f"the best run on the base was still rising at its last step ({earlier:.1%} to {run.best:.1%})"
    return None


def edge_of_grid(record: Record) -> str | None:
    """Extend the grid beyond that rate (speclock attack --lr) before believing the score."""
    for target in ("locked", "base"):
        best = strongest(record.runs, target)
        if best is None or "lr" not in best.runs[0].config:
            continue
        run = best.runs[0]
        rates = {
            other.config["lr"]
            for other in record.runs
            if other.target == target and _differ_by_rate(other, run)
        }
        lr = run.config["lr"]
        if lr in (min(rates), max(rates)):
            edge = "only" if len(rates) == 1 else "lowest" if lr == min(rates) else "highest"
            return f"the strongest attack on the {target} model, {run.title}, is at the {edge} rate tried"
    return None


def only_divergence(record: Record) -> str | None:
    """Sweep lower learning rates and clip gradients: a run that blew up is no evidence that training is slow."""
    statuses = [run.status for run in record.runs if run.target == "locked"]
    if statuses and "ok" not in statuses:
        return f"all {len(statuses)} runs on the locked model diverged or failed; none failed to learn"
    return None


def only_in_half_precision(record: Record) -> str | None:
    """Count the runs in full precision: what only bf16 or fp16 cannot train is not locked."""
    runs = {run.key: run for run in record.runs}
    for run in record.runs:
        precision = run.config.get("precision", "no")
        if run.target != "locked" or run.status != "diverged" or precision == "no":
            continue

        def twin(target: str, precision: str, run: RunRecord = run) -> RunRecord | None:
            config = {**run.config, "precision": precision}
            return runs.get(replace(run, target=target, config=config).key)

        full, base = twin("locked", "no"), twin("base", precision)
        if full and full.status == "ok" and base and base.status == "ok":
            return (
                f"{run.title} diverges on the locked model in {precision} and neither in fp32 nor on the base"
            )
    return None


def gradients_blocked(record: Record) -> str | None:
    """Remove what blocks them (detached tensors, custom backward passes) and audit again: no loss landscape was
    changed, and a plain copy of the weights trains."""
    names = record.locked.get("blocked_gradients") or []
    if names:
        return (
            f"the loss depends on {names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''}, but the "
            f"gradient that the model gives is not the loss's"
        )
    return None


def repair_succeeds(record: Record) -> str | None:
    """Count the lock at what it is worth after the repair: its curvature was hidden, not locked."""
    return _beaten(record, "fine-tuning", _plain, "after", lambda run: run.kind == "surgery")


def knob_succeeds(record: Record) -> str | None:
    """Count the lock at what it is worth with that setting: an attacker turns every knob."""
    return _beaten(
        record, "plain fine-tuning", _plain, "with", lambda run: run.kind == "fine-tuning" and not _plain(run)
    )


def sigma_unconverged(record: Record) -> str | None:
    """Lock again with a current version, and quote the σ of this audit instead of the card's."""
    card, measured = record.locked.get("card"), record.locked.get("mean_top_sigma")
    if card and measured and abs(card["strength_locked"] - measured) > 0.01 * measured:
        return (
            f"the card says a mean top σ of {card['strength_locked']:.4g}, a converged solver {measured:.4g}: the "
            f"lock's basis had not converged, or the file was changed"
        )
    return None


def forgetting(record: Record) -> str | None:
    """Credit the lock only with what it adds to its control; the rest is what further training forgot."""
    base, control, locked = (record.summary[f"best_{name}"] for name in ("base", "control", "locked"))
    if base is None or control is None or locked is None or base - locked < _NOTABLE:
        return None
    if base - control >= 0.5 * (base - locked):
        return (
            f"the control, trained alike with no spectral term, already falls from {base:.1%} to {control:.1%}; "
            f"the lock falls to {locked:.1%}"
        )
    return None


def no_control(record: Record) -> str | None:
    """Audit a folder that still has its lock card (speclock.json), or say that forgetting was not ruled out."""
    if not any(run.target == "control" for run in record.runs):
        return "there is no lock card to repeat the lock's training from, so no control was run"
    return None


def lock_did_nothing(record: Record) -> str | None:
    """Allow a larger utility drop, or lock for longer with a smaller lr: no stronger state held its utility."""
    card = record.locked.get("card")
    if card and card["chosen_step"] == 0:
        return "the guard fell back to the model as it was before locking"
    return None


def not_the_cards_model(record: Record) -> str | None:
    """Fetch the files again from their publisher: what was audited is not what the card speaks of."""
    card = record.locked.get("card")
    if card and card["fingerprint"] != record.locked["fingerprint"]:
        return "the locked weights are not those that the lock card was written for"
    if card and card["base"]["fingerprint"] != record.base["fingerprint"]:
        return "the base is not the one that the lock card names"
    return None


def seeds_disagree(record: Record) -> str | None:
    """Run more seeds, and quote the interval rather than the mean."""
    for target in TARGETS:
        best = strongest(record.runs, target)
        scores = [run.best for run in best.runs if run.best is not None] if best else []
        if scores and max(scores) - min(scores) > 2 * _NOTABLE:
            return f"seeds range from {min(scores):.1%} to {max(scores):.1%} on the {target} model"
    return None


def few_seeds(record: Record) -> str | None:
    """Use --seeds 3 or more before quoting a number."""
    seeds = len(record.suite["seeds"])
    return f"{seeds} seed{'s' * (seeds > 1)} only" if seeds < 3 else None


def small_test_split(record: Record) -> str | None:
    """Score on more test examples before reading anything into a difference of a few points."""
    n = record.attack_task["test"]
    # Half the width of a 95% interval of a proportion near one half.
    half = 0.98 / n**0.5
    if half > _NOTABLE:
        return f"{n} test examples leave ±{half:.1%} of sampling error in every score"
    return None


def stand_in_data(record: Record) -> str | None:
    """Repeat with the data named here before comparing with published numbers."""
    named = []
    for task in (record.retain_task, record.attack_task):
        if task["source"]["stand_in"]:
            named.append(f"{task['name']}: {task['source']['stand_in']}")
    return "; ".join(named) or None


FLAGS: tuple[Flag, ...] = (
    utility_broken,
    attack_fails_on_base,
    nothing_to_protect,
    budget_too_small,
    edge_of_grid,
    only_divergence,
    only_in_half_precision,
    gradients_blocked,
    knob_succeeds,
    repair_succeeds,
    forgetting,
    no_control,
    lock_did_nothing,
    not_the_cards_model,
    sigma_unconverged,
    seeds_disagree,
    few_seeds,
    small_test_split,
    stand_in_data,
)


_USUAL = {
    "clip": (1.0, None),
    "parameters": ("all",),
    "layer_rates": ("uniform",),
    "temperature": (0.0,),
    "dropout": (True,),
    "batch_statistics": (True,),
}
"""What everybody's fine-tuning does; anything else is a knob that somebody turned."""


def _plain(run: RunRecord) -> bool:
    return run.kind == "fine-tuning" and all(
        run.config[name] in usual for name, usual in _USUAL.items() if name in run.config
    )


def _differ_by_rate(one: RunRecord, other: RunRecord) -> bool:
    configs = [{name: value for name, value in run.config.items() if name != "lr"} for run in (one, other)]
    return one.attack == other.attack and configs[0] == configs[1]


def _beaten(
    record: Record,
    usual: str,
    is_usual: Callable[[RunRecord], bool],
    how: str,
    is_other: Callable[[RunRecord], bool],
) -> str | None:
    """What is said when other runs on the locked model clearly beat the usual ones, and not so on the base."""
    plain, other = _best(record, "locked", is_usual), _best(record, "locked", is_other)
    if plain is None or other is None or other.best - plain.best <= _NOTABLE:  # type: ignore[operator]
        return None
    # A setting that is better everywhere says something of the attack, not of the lock.
    on_base = [_best(record, "base", which) for which in (is_usual, is_other)]
    if all(on_base) and on_base[1].best - on_base[0].best > (other.best - plain.best) / 2:  # type: ignore[union-attr,operator]
        return None
    return f"{usual} reached {plain.best:.1%} on the locked model, and {how} {other.label} {other.best:.1%}"


def _best(record: Record, target: str, which: Callable[[RunRecord], bool]) -> RunRecord | None:
    """The best run of the sweep on a target among these.

    Only under the sweep's own seed: the winner alone runs again under others, and the luckiest of its seeds
    would beat a rival that was run once.
    """
    first = record.suite["seeds"][0]
    runs = [
        run
        for run in record.runs
        if run.target == target and run.seed == first and run.best is not None and which(run)
    ]
    return max(runs, key=lambda run: run.best or 0.0, default=None)
