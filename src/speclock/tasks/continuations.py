"""Next-token tasks from the user's own files: a text, prompts with completions, chats, multiple choice."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from speclock.errors import InputError
from speclock.sources import Source
from speclock.sources.cache import digest
from speclock.tasks.base import Examples
from speclock.tasks.causal_lm import CausalLM, MultipleChoice, Prompt, Turn, words

_CHARACTERS = 3
"""Of a text for each token that is asked for: English has four or more, code and other languages fewer."""


def column_of(row: Mapping[str, Any]) -> str | None:
    """Which column makes a row a causal language model's: messages (a list of {role, content}, of which the assistant's
    last is predicted), choices (beside a prompt and an answer) or completion (perhaps beside a prompt); or None."""
    return next((name for name in _READ if name in row), None)


def from_text(path: Path, max_length: int) -> CausalLM:
    """A text's passages in their order, each of ``max_length`` tokens or so: four fifths to train on, then the test.

    Passages that come again are left out. Raises :class:`InputError` for a text that is too short.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file.")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text (byte {error.start}). Save it as UTF-8.") from error
    passages = list(dict.fromkeys(_passages(text, _CHARACTERS * max_length)))
    if len(passages) < 10:
        raise InputError(
            f"{path}: {len(passages)} passages of {max_length} tokens are too few to train and test on. "
            f"Give a longer text, or shorter passages with --max-length."
        )
    rows = [("", passage) for passage in passages]
    at = len(rows) * 4 // 5
    return _task(path, _completions(rows[:at]), _completions(rows[at:]), max_length)


def from_rows(path: Path, rows: Iterable[tuple[str, Mapping[str, Any]]], max_length: int) -> CausalLM:
    """Rows of a file, each with the place that it stands at, that :func:`column_of` knows.

    A column ``split`` that says train or test is followed; without it a fifth of the prompts is tested, those whose
    hashes are the smallest: files have their rows in an order, every fifth of five languages for one. A row that comes
    again is left out, and so is one to train on whose prompt is tested, whatever its white space and case, unless all
    rows have the same. Raises :class:`InputError` that names file, line and mend.
    """
    limit = _CHARACTERS * max_length
    found: dict[Any, _Found] = {}
    column, says = None, False
    for place, row in rows:
        said = row.get("split")
        if not found:
            column, says = column_of(row), said is not None
        where = f"{path}: {place}"
        if column is None or column not in row:
            raise InputError(f'{where} has no "{column}", which the first row has. Fix the line.')
        if said not in ("train", "test", None) or (said is not None) != says:
            raise InputError(
                f'{where} has split {said!r}; it must be "train" or "test" in every row, or the column left out.'
            )
        key, label = _READ[column](row, where, limit)
        before = found.setdefault(key, _Found(label, said, place))
        if before.label != label:
            raise InputError(
                f"{where} answers the question of {before.place} otherwise. Fix one of them, or raise --max-length "
                f"if what tells them apart was cut off."
            )
        if said == "test":
            found[key] = before._replace(split="test")
    if len(found) < 2:
        raise InputError(
            f"{path}: {len(found)} different rows. Give at least two, one to train on and one to test."
        )
    groups = _groups(list(found))
    if says:
        tested = {groups[key] for key, row in found.items() if row.split == "test"}
    else:
        order = sorted(set(groups.values()), key=lambda group: hashlib.sha256(group.encode()).digest())
        tested = set(order[: max(1, len(order) // 5)])
    train = [key for key in found if groups[key] not in tested]
    test = [key for key, row in found.items() if groups[key] in tested and row.split != "train"]
    for name, part in (("train", train), ("test", test)):
        if not part:
            raise InputError(
                f'{path}: no row to {name} on. Add rows, or say train and test in a column "split".'
            )
    if column == "choices":
        asked = [_labelled([(key, found[key].label) for key in part]) for part in (train, test)]
        return _task(path, asked[0], asked[1], max_length, MultipleChoice)
    return _task(path, _completions(train), _completions(test), max_length)


class _Found(NamedTuple):
    """What there is of a row beside the row itself."""

    label: int
    split: str | None
    place: str


def _groups(rows: Sequence[tuple[Any, ...]]) -> dict[Any, str]:
    """What each row has in common with those that must stand on its side of a split: a question is not to be trained on
    and tested. One prompt for all rows is none."""
    prompts = {row: _spelt_alike(words(row[0])) for row in rows}
    several = len(set(prompts.values())) > 1
    return {
        row: prompt if prompt and several else f"{prompt}\n{_spelt_alike(str(row[1]))}"
        for row, prompt in prompts.items()
    }


def _spelt_alike(text: str) -> str:
    """A text whatever its white space and case.

    >>> _spelt_alike("What  is it? ") == _spelt_alike("what is it?")
    True
    """
    return " ".join(text.casefold().split())


def _task(
    path: Path, train: Examples, test: Examples, max_length: int, cls: type[CausalLM] = CausalLM
) -> CausalLM:
    return cls(str(path), train, test, (), Source("file", str(path), digest(path)), max_length=max_length)


def _completions(rows: Sequence[tuple[Any, ...]]) -> Examples:
    return Examples(_objects(rows), np.array([len(completion.encode()) for _, completion, *_ in rows]))


def _labelled(rows: Sequence[tuple[Any, int]]) -> Examples:
    return Examples(_objects([row for row, _ in rows]), np.array([label for _, label in rows]))


def _objects(rows: Sequence[Any]) -> np.ndarray:
    array = np.empty(len(rows), dtype=object)
    for i, row in enumerate(rows):
        array[i] = row
    return array


def _passages(text: str, limit: int) -> Iterable[str]:
    """The text in pieces of at most ``limit`` characters, cut at the last white space of each, or in a word without an
    end."""
    at = 0
    while at < len(text):
        end = min(at + limit, len(text))
        if end < len(text) and (spaces := list(re.finditer(r"\s", text[at:end]))):
            end = at + (spaces[-1].start() or limit)
        if text[at:end].strip():
            yield text[at:end]
        at = end


# -- one row -----------------------------------------------------------------------------------------------


def _chat(row: Mapping[str, Any], where: str, limit: int) -> tuple[tuple[Prompt, str, bool], int]:
    turns = row["messages"]
    well_formed = (
        isinstance(turns, list)
        and len(turns) >= 2
        and all(
            isinstance(turn, dict)
            and isinstance(turn.get("role"), str)
            and isinstance(turn.get("content"), str)
            for turn in turns
        )
    )
    if not well_formed:
        raise InputError(
            f'{where}: "messages" is to be a list of two or more {{"role": …, "content": …}}. Fix the line.'
        )
    said = [(turn["role"], turn["content"]) for turn in turns]
    # What follows the last answer is the user's, whose words nobody is to be taught.
    while said and said[-1][0] != "assistant":
        said.pop()
    if len(said) < 2:
        roles = ", ".join(turn["role"] for turn in turns)
        raise InputError(
            f'{where}: "messages" has no turn of the role "assistant" that answers another (its roles: {roles}). '
            f"Fix the line, or remove it."
        )
    *before, (_, answer) = said
    answer = answer.strip()  # as most templates do
    completion = _completion(answer, where, limit)
    return (_recent(before, limit), completion, completion == answer), 0


def _recent(turns: Sequence[Turn], limit: int) -> tuple[Turn, ...]:
    """A chat's last turns, ``limit`` characters of them: the oldest go first, but for the system's, which goes after
    them, and of the last turn its beginning. What is left of a longer chat does not begin with an answer."""
    alone = turns[0][0] != "system" or len(turns) == 1
    system, kept = ([], list(turns)) if alone else ([turns[0]], list(turns[1:]))
    first = kept[0]

    def too_long() -> bool:
        return sum(len(content) for _, content in (*system, *kept)) > limit

    while len(kept) > 1 and (too_long() or (kept[0] is not first and kept[0][0] == "assistant")):
        del kept[0]
    if too_long():
        system = []
    *before, (role, content) = kept
    return (*system, *before, (role, content[-limit:]))


def _prompted(row: Mapping[str, Any], where: str, limit: int) -> tuple[tuple[Prompt, str], int]:
    prompt = row.get("prompt") or ""
    if not isinstance(prompt, str):
        raise InputError(
            f'{where} has a {type(prompt).__name__} in "prompt", expected a string. Fix the line.'
        )
    return (prompt[-limit:], _completion(row["completion"], where, limit)), 0


def _choice(row: Mapping[str, Any], where: str, limit: int) -> tuple[tuple[Prompt, tuple[str, ...]], int]:
    prompt, choices, answer = row.get("prompt"), row["choices"], row.get("answer")
    choices = list(choices) if isinstance(choices, list | tuple | np.ndarray) else choices
    if not isinstance(prompt, str) or not prompt.strip():
        raise InputError(f'{where} has no "prompt" to choose for. Fix the line.')
    if (
        not isinstance(choices, list)
        or len(choices) < 2
        or not all(isinstance(c, str) and c.strip() for c in choices)
    ):
        raise InputError(f'{where}: "choices" is to be a list of two or more texts. Fix the line.')
    if isinstance(answer, str) and answer in choices:
        answer = choices.index(answer)
    if not isinstance(answer, int) or isinstance(answer, bool) or not 0 <= answer < len(choices):
        raise InputError(
            f'{where}: "answer" is to be one of the choices, or its number from 0. Fix the line.'
        )
    options = [_completion(choice, where, limit) for choice in choices]
    if len({option.strip() for option in options}) < len(options):  # a space is put in front of those without
        raise InputError(
            f"{where}: a choice comes twice, as far as it is read. Fix the line, or raise --max-length."
        )
    # A choice continues the prompt as a word of its own.
    space = "" if prompt[-1].isspace() else " "
    return (prompt[-limit:], tuple(c if c[0].isspace() else space + c for c in options)), answer


_READ = {"messages": _chat, "choices": _choice, "completion": _prompted}


def _completion(text: Any, where: str, limit: int) -> str:
    if not isinstance(text, str) or not text.strip():
        raise InputError(f"{where} has nothing to predict. Fill it in, or remove the line.")
    return text if len(text) <= limit else next(iter(_passages(text, limit)))
