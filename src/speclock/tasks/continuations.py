"""Next-token tasks from the user's own files: a text, prompts with completions, chats, multiple choice."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from speclock.errors import InputError
from speclock.sources import Source
from speclock.sources.cache import digest
from speclock.tasks.base import Examples
from speclock.tasks.causal_lm import CausalLM, MultipleChoice, Prompt

_CHARACTERS = 3
"""Of a text for each token that is asked for: English has four or more, code and other languages fewer."""


def column_of(row: Mapping[str, Any]) -> str | None:
    """Which column makes a row a causal language model's: messages (a list of {role, content}, of which the last is
    predicted), choices (beside a prompt and an answer) or completion (perhaps beside a prompt); None without any."""
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

    A column ``split`` that says train or test is followed; without it every fifth prompt's rows are tested. A row that
    comes again is left out, and so is one to train on whose prompt is tested, unless all rows have the same. Raises
    :class:`InputError` that names file, line and mend.
    """
    limit = _CHARACTERS * max_length
    found: dict[Any, tuple[Any, int]] = {}
    splits: dict[Any, str | None] = {}
    column: str | None = None
    for place, row in rows:
        column = column or column_of(row)
        where = f"{path}: {place}"
        if column is None or column not in row:
            raise InputError(f'{where} has no "{column}", which the first row has. Fix the line.')
        said = row.get("split")
        if said not in ("train", "test", None) or (found and (said is None) != (None in splits.values())):
            raise InputError(
                f'{where} has split {said!r}; it must be "train" or "test" in every row, or the column left out.'
            )
        key, label = _READ[column](row, where, limit)
        if key not in found:
            found[key], splits[key] = (key, label), said
    if len(found) < 2:
        raise InputError(
            f"{path}: {len(found)} different rows. Give at least two, one to train on and one to test."
        )
    # A question is not to be trained on and tested; one prompt for all rows is none.
    several = len({key[0] for key in found}) > 1
    groups = {key: key[0] if several and key[0] else key for key in found}
    number = {group: i for i, group in enumerate(dict.fromkeys(groups.values()))}
    tested = {
        groups[key]
        for key, split in splits.items()
        if (number[groups[key]] % 5 == 4 if split is None else split == "test")
    }
    train = [found[key] for key in found if groups[key] not in tested]
    test = [found[key] for key in found if groups[key] in tested and splits[key] in (None, "test")]
    for name, part in (("train", train), ("test", test)):
        if not part:
            raise InputError(
                f'{path}: no row to {name} on. Add rows, or say train and test in a column "split".'
            )
    if column == "choices":
        return _task(path, _labelled(train), _labelled(test), max_length, MultipleChoice)
    return _task(
        path, _completions([key for key, _ in train]), _completions([key for key, _ in test]), max_length
    )


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
    """The text in pieces of at most ``limit`` characters, cut at the last white space of each."""
    at = 0
    while at < len(text):
        end = min(at + limit, len(text))
        if end < len(text) and (spaces := list(re.finditer(r"\s", text[at:end]))):
            end = at + spaces[-1].start() or end
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
    *before, last = [(turn["role"], turn["content"]) for turn in turns]
    while len(before) > 1 and sum(len(content) for _, content in before) > limit:
        del before[1 if before[0][0] == "system" and len(before) > 2 else 0]
    completion = _completion(last[1], where, limit)
    return (tuple(before), completion, completion == last[1]), 0


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
    if len({c.strip() for c in choices}) < len(choices):  # a space is put in front of those without
        raise InputError(f"{where}: a choice comes twice. Fix the line.")
    if isinstance(answer, str) and answer in choices:
        answer = choices.index(answer)
    if not isinstance(answer, int) or isinstance(answer, bool) or not 0 <= answer < len(choices):
        raise InputError(
            f'{where}: "answer" is to be one of the choices, or its number from 0. Fix the line.'
        )
    # A choice continues the prompt as a word of its own.
    return (prompt[-limit:], tuple(c if c[0].isspace() else f" {c}" for c in choices)), answer


_READ = {"messages": _chat, "choices": _choice, "completion": _prompted}


def _completion(text: Any, where: str, limit: int) -> str:
    if not isinstance(text, str) or not text.strip():
        raise InputError(f"{where} has nothing to predict. Fill it in, or remove the line.")
    return text if len(text) <= limit else next(iter(_passages(text, limit)))
