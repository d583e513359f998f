"""Locks applied one after the other, each to what the one before it left."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from speclock.errors import InputError
from speclock.locks import LOCKS
from speclock.locks.base import Lock, Locked
from speclock.registry import unknown
from speclock.workspace import kept_in, write_text

if TYPE_CHECKING:
    from speclock.locks.card import Card
    from speclock.models import Model
    from speclock.tasks.base import Task


@dataclass(frozen=True)
class Composition:
    """Several locks, left to right.

    What utility each may cost is counted from the base that the first one is given. The card has every part, and the
    control is all of their training with none of their own terms.
    """

    parts: tuple[Lock, ...]

    def __post_init__(self) -> None:
        if len(self.parts) < 2:
            raise InputError("a composition is of two locks or more.")

    @property
    def name(self) -> str:
        """The parts' names, joined by +."""
        return "+".join(part.name for part in self.parts)

    def digests_of_its_own(self, task: Task) -> dict[str, str]:
        """Of all parts."""
        return {name: sha for part in self.parts for name, sha in part.digests_of_its_own(task).items()}

    def __call__(self, model: Model, task: Task, *, folder: Path | None = None) -> Locked:
        """Lock a copy of ``model``; with ``folder``, a killed run goes on from what is kept there."""
        task = task.divided().fitted_to(model)
        base = model
        cards: list[Card] = []
        with kept_in(folder) as kept:
            for i, part in enumerate(self.parts):
                place = kept / f"part-{i}"
                place.mkdir(exist_ok=True)
                least = cards[0]["curve"][0][1] - part.max_utility_drop if cards else None
                model, card = _once(part, model, task, place, least)
                cards.append(card)
        return Locked(model, self._card(cards, base))

    def _card(self, cards: list[Card], base: Model) -> Card:
        from speclock.locks.card import PartClaim

        first, last = cards[0], cards[-1]
        return cast(
            "Card",
            {
                **last,
                "lock": self.name,
                "config": {},
                "base": first["base"],
                "utility_base": first["utility_base"],
                # Of the base that there was, not of what the parts before made of it.
                "strength_base": self.parts[-1].strength(base, base),
                **{
                    key: sum(card.get(key) or 0.0 for card in cards)
                    for key in ("seconds", "tflops", "epochs_worth")
                },
                "peak_memory_mb": max(card["peak_memory_mb"] for card in cards),
                "parts": [
                    {key: value for key, value in card.items() if key in PartClaim.__annotations__}
                    for card in cards
                ],
            },
        )


def _once(part: Lock, model: Model, task: Task, place: Path, least: float | None) -> Locked:
    """A part's result, kept under ``place`` once it is there."""
    from safetensors.torch import load_model, save_model

    weights, said = place / "model.safetensors", place / "card.json"
    if said.exists():
        locked = model.copy()
        load_model(locked.module, weights)
        return Locked(locked, json.loads(said.read_text(encoding="utf-8")))
    result = part(model, task, folder=place, least=least)
    save_model(result.model.module, str(weights))
    write_text(said, json.dumps(result.card))
    return result


def lock_named(spec: str, options: Mapping[str, Any] | None = None) -> Lock | Composition:
    """The lock that ``spec`` asks for: ``NAME``, ``NAME:FIELD=VALUE,FIELD=VALUE``, or several of these joined by +.

    ``options`` are fields of every part that has them; what a part says itself goes before.

    >>> lock_named("rescale:factor=3,top_k=1").factor
    3.0
    >>> lock_named("undo+specdef:alpha=0.02,retain=task+kl", {"top_k": 4}).parts[1].top_k
    4

    Raises :class:`InputError` for a lock, a field or a value that there is not, and for an option that no part has.
    """
    parts, options = [], options or {}
    for text in parts_of(spec):
        name, _, rest = text.partition(":")
        if name not in LOCKS:
            raise InputError(unknown("lock", next(n for n in name.split("+") if n not in LOCKS), LOCKS))
        cls = LOCKS[name]
        known = {field.name for field in fields(cls)}
        given = {key: value for key, value in options.items() if key in known}
        given |= dict(_setting(part, name, known) for part in rest.split(",") if part)
        parts.append(_made(cls, given, text))
    for option in options:
        if not any(hasattr(part, option) for part in parts):
            raise InputError(f"--{option.replace('_', '-')} is not an option of --lock {spec}. Leave it out.")
    return parts[0] if len(parts) == 1 else Composition(tuple(parts))


def parts_of(spec: str) -> list[str]:
    """The single locks of which ``spec`` is composed, each with its settings.

    >>> parts_of("undo:beta=0.8+specdef:retain=task+kl,top_k=4")
    ['undo:beta=0.8', 'specdef:retain=task+kl,top_k=4']
    """
    # A value may hold a + too; one that joins locks has a lock's name after it.
    return re.split(rf"\+(?=(?:{'|'.join(LOCKS)})(?:[:+]|$))", spec)


def _setting(text: str, name: str, known: set[str]) -> tuple[str, str]:
    field, equals, value = text.partition("=")
    field = field.strip().replace("-", "_")
    if not equals:
        raise InputError(f"{text!r} is no setting of {name}. Write FIELD=VALUE.")
    if field not in known:
        raise InputError(unknown(f"field of {name}", field, sorted(known)))
    return field, value.strip()


def _made(cls: type[Lock], given: dict[str, Any], text: str) -> Lock:
    """The lock with these fields, texts among them read as the fields' types."""
    from pydantic import TypeAdapter, ValidationError

    several = {field.name for field in fields(cls) if isinstance(field.default, tuple)}
    try:
        return TypeAdapter(cls).validate_python(
            {
                key: None
                if value == "none"
                else (value,)
                if key in several and isinstance(value, str)
                else value
                for key, value in given.items()
            }
        )
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        what = first["msg"].removeprefix("Value error, ").rstrip(".")
        raise InputError(f"--lock {text}: {where + ': ' if where else ''}{what}.") from error
