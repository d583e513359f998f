"""The lock card: what a lock says of itself beside the locked checkpoint, and how far that can be taken.

Whoever publishes a model writes its card. So a card is a claim: it is read strictly, and what it says is never used
before it has been checked. Its JSON is nothing but the types below; keys beyond them are kept and not looked at.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, NotRequired

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict

from speclock.errors import InputError
from speclock.locks import LOCKS
from speclock.registry import unknown

if TYPE_CHECKING:
    from speclock.locks.base import Lock
    from speclock.models import Identity

NAME = "speclock.json"
"""The card's file in a locked model's folder."""

FORMAT: Literal["speclock-card/1"] = "speclock-card/1"

_LARGEST = 2**53
"""The largest whole number that every reader of JSON keeps."""
_MOST_PARTS = 8
_DEEPEST = 16
"""Levels of nesting; a record that holds the card has some more, and is written by recursion."""
_LONGEST = 4 << 20
"""Bytes; with a curve of ten thousand points a card has a tenth of that."""

_Name = Annotated[str, Field(max_length=500)]
_Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
_Fraction = Annotated[float, Field(ge=0, le=1)]
_Count = Annotated[int, Field(ge=0)]
_Amount = Annotated[float, Field(ge=0)]
_STRICT = with_config(ConfigDict(strict=True, extra="allow", allow_inf_nan=False))


class CardError(InputError):
    """A lock card that cannot be read, or a lock that it describes and that there is not: one line says why."""


@_STRICT
class Parts(TypedDict):
    """The digests of a model's parts; see :class:`speclock.models.Identity`."""

    weights: _Sha256
    configuration: _Sha256
    tokenizer: _Sha256
    preprocessing: _Sha256


@_STRICT
class BaseClaim(TypedDict):
    """What was locked."""

    name: str
    fingerprint: _Sha256
    """Over all parts; on cards without them, over the weights alone."""
    identity: NotRequired[Parts]
    source: dict[str, Any]


@_STRICT
class RetainClaim(TypedDict):
    """What the model must keep doing: a task as it describes itself."""

    name: _Name
    labels: list[str]
    digest: NotRequired[_Sha256]


@_STRICT
class PartClaim(TypedDict):
    """What one lock did."""

    lock: _Name
    config: dict[str, Any]
    """The lock's fields; :func:`stages` checks them."""
    seed: int
    unit: NotRequired[_Name]
    """What strength is measured in; on cards without it, the mean top σ."""
    strength_base: _Amount
    strength_locked: _Amount
    chosen_step: _Count
    """The step whose state was kept; 0: the base's."""
    steps: _Count
    curve: Annotated[list[tuple[_Count, _Fraction, _Amount]], Field(min_length=1)]
    """(step, utility on the validation split, strength) at each evaluation."""
    status: Literal["ok", "diverged"]
    diverged_at: _Count | None
    seconds: _Amount
    tflops: NotRequired[_Amount]
    """10¹² floating-point operations of the training, those of teachers included."""
    epochs_worth: NotRequired[_Amount | None]
    """The same, over those of one pass of plain fine-tuning over the retain task's training examples."""
    further_data: NotRequired[dict[str, _Sha256]]
    """Data beside the retain task's that it was made with, and the digest of their inputs."""
    given_up: NotRequired[list[dict[str, Any]]]
    """Earlier attempts with harsher settings, which left the model at chance; their cost is in the lock's own."""


@_STRICT
class Card(PartClaim):
    """The lock card, JSON-able. Of a composition, what one lock did is what the last of them did, ``lock`` is all
    names joined by +, and ``parts`` has each."""

    format: Literal["speclock-card/1"]
    base: BaseClaim
    fingerprint: _Sha256
    """The locked model's, as the base's."""
    identity: NotRequired[Parts]
    retain_task: RetainClaim
    utility_base: _Fraction
    """Scores on the test split."""
    utility_locked: _Fraction
    peak_memory_mb: _Amount
    environment: dict[str, Any]
    parts: NotRequired[Annotated[list[PartClaim], Field(min_length=2, max_length=_MOST_PARTS)]]
    request: NotRequired[dict[str, Any]]
    """The command that asked for the lock."""


class Stage(NamedTuple):
    """A lock, and for how many steps of it the model was kept."""

    lock: Lock
    steps: int


def read_card(folder: Path) -> Card | None:
    """The lock card in a locked model's folder, or None where there is none.

    Raises :class:`CardError` for a file that is not a card, with what is wrong with it.
    """
    path = folder / NAME
    if not path.exists():
        return None
    try:
        return parsed(_text_of(path))
    except CardError as error:
        raise CardError(f"{path} is no lock card: {error}") from error.__cause__


def parsed(text: str | bytes) -> Card:
    """The card that ``text`` holds. Raises :class:`CardError` that says where it does not fit."""
    try:
        found = json.loads(text, parse_constant=_number, parse_float=_number, parse_int=_number)
        if _deeper(found, _DEEPEST):
            raise CardError(f"it is nested deeper than {_DEEPEST} levels.")
        # Half a surrogate pair passes for a string until it is written to a file.
        json.dumps(found, ensure_ascii=False).encode()
    except CardError:
        raise
    except RecursionError as error:
        raise CardError(f"it is nested deeper than {_DEEPEST} levels.") from error
    except ValueError as error:
        raise CardError(f"it is not JSON ({str(error).splitlines()[0]}).") from error
    card: Card = _validated(TypeAdapter(Card), found)
    for claim in (card, *card.get("parts", ())):
        _check_curve(claim)
    if "parts" in card and card["lock"] != "+".join(part["lock"] for part in card["parts"]):
        raise CardError(f"lock is {card['lock']}, which its parts are not.")
    return card


def stages(card: Card) -> tuple[Stage, ...]:
    """The locks that a card describes, one after the other, checked as if a user had asked for them.

    Raises :class:`CardError` for a lock that there is not, and for fields that it does not have or allow.
    """
    return tuple(Stage(_lock_of(part), part["chosen_step"]) for part in card.get("parts", [card]))


def _check_curve(claim: PartClaim) -> None:
    steps = [step for step, *_ in claim["curve"]]
    if claim["chosen_step"] > claim["steps"]:
        raise CardError(f"chosen_step is {claim['chosen_step']}, beyond the {claim['steps']} steps taken.")
    if steps != sorted(set(steps)) or steps[-1] > claim["steps"]:
        raise CardError(f"the curve's steps do not rise from one to the next up to {claim['steps']}.")
    if claim["chosen_step"] not in steps:
        raise CardError(f"chosen_step is {claim['chosen_step']}, which the curve does not have.")


def _lock_of(claim: PartClaim) -> Lock:
    name, config = claim["lock"], claim["config"]
    if name not in LOCKS:
        raise CardError(unknown("lock", name, LOCKS))
    cls = LOCKS[name]
    fields = [field.name for field in dataclasses.fields(cls)]
    for field in config:
        if field not in fields:
            raise CardError(unknown(f"field of {name}", field, fields))
    lock: Lock = _validated(TypeAdapter(cls), config)
    return lock


def describes(claim: Card | BaseClaim, identity: Identity) -> bool:
    """Whether a card's fingerprint, or that of the base on it, is this model's.

    Cards without the parts' digests are older, and have a fingerprint of the weights alone.
    """
    parts = claim.get("identity")
    if parts is None:
        return claim["fingerprint"] == identity.weights
    return claim["fingerprint"] == identity.fingerprint and parts == identity._asdict()


def _text_of(path: Path) -> bytes:
    if not path.is_file():
        raise CardError("it is not a file.")  # to read a pipe would wait for ever
    try:
        if path.stat().st_size > _LONGEST:
            raise CardError(f"it is larger than {_LONGEST >> 20} MiB.")
        return path.read_bytes()
    except OSError as error:
        raise CardError(f"it cannot be read ({error.strerror}).") from error


def _number(text: str) -> int | float:
    whole, value = text.lstrip("-").isdigit(), float(text)
    if not math.isfinite(value) or (whole and abs(value) > _LARGEST):
        raise CardError(f"{text[:20]} is not a number that JSON can hold.")
    return int(text) if whole else value


def _deeper(value: Any, most: int) -> bool:
    """Whether ``value`` is nested deeper than ``most``, found without recursion."""
    level = [value]
    for _ in range(most):
        level = [
            child
            for it in level
            if isinstance(it, dict | list)
            for child in (it.values() if isinstance(it, dict) else it)
        ]
    return bool(level)


def _validated(adapter: TypeAdapter[Any], value: Mapping[str, Any]) -> Any:
    try:
        # As JSON: a list may stand for a tuple there, and a whole number for a fractional one, and nothing else.
        return adapter.validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        what = first["msg"].removeprefix("Value error, ").rstrip(".")
        raise CardError(f"{where}: {what}." if where else f"{what}.") from error
