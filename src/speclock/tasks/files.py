"""Text classification from the user's own ``.jsonl``, ``.csv`` or ``.parquet`` file."""

from __future__ import annotations

import csv
import difflib
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from speclock.errors import InputError
from speclock.sources import Source
from speclock.sources.cache import digest
from speclock.tasks.base import Examples
from speclock.tasks.splits import stratified_split
from speclock.tasks.text import Text, TextClassification, texts

SUFFIXES = (".jsonl", ".csv", ".parquet")

DEFAULT_COLUMNS = {"text": "text", "label": "label", "pair": "text_pair"}

Row = Mapping[str, Any]

_FOR_A_WRITER = 'Rows for a language model have "completion" or "messages", and no "label".'


def read_rows(path: Path) -> Iterator[tuple[str, Row]]:
    """A file's rows, each with the place that it stands at. Raises :class:`InputError` for what cannot be read."""
    if not path.is_file():
        raise InputError(f"{path}: {_missing(path)}")
    readers = {".jsonl": _read_jsonl, ".csv": _read_csv, ".parquet": _read_parquet}
    if path.suffix.lower() not in readers:
        raise InputError(
            f"{path}: a text task is read from {', '.join(readers)}, not {path.suffix or 'this'}."
        )
    return readers[path.suffix.lower()](path)


def from_file(
    path: Path,
    *,
    name: str | None = None,
    max_length: int = 128,
    text_column: str = "text",
    label_column: str = "label",
    pair_column: str = "text_pair",
) -> TextClassification:
    """A task from a file with a text, perhaps a second text, and a label in each row.

    Labels are strings or integers; integers are put in numerical, strings in alphabetical order. A column
    ``split`` that says ``train`` or ``test`` in each row is followed; without it the rows are split 80/20,
    stratified, the same way every time. A text that comes again is left out, and so is a training text that is in
    the test split: nothing is to be scored on what it was trained on. Raises :class:`InputError`, one line that
    names file, line and mend.
    """
    found = read_rows(path)
    columns = {"text": text_column, "label": label_column, "pair": pair_column}

    rows: list[Text] = []
    labels: list[str] = []
    splits: list[str] = []
    places: list[str] = []
    has_pair: bool | None = None
    has_split: bool | None = None
    for place, row in found:
        where = f"{path}: {place}"
        text = _text(row, columns, "text", where)
        label = _label(row, columns, where)
        if has_pair is None:
            # A pair column that was asked for must be there; the default one is optional.
            has_pair = pair_column in row or pair_column != DEFAULT_COLUMNS["pair"]
            has_split = "split" in row
        if has_split:
            if row.get("split") not in ("train", "test"):
                raise InputError(
                    f'{where} has split {row.get("split")!r}; it must be "train" or "test" in every row, '
                    "or the column left out."
                )
            splits.append(row["split"])
        rows.append((text, _text(row, columns, "pair", where)) if has_pair else text)
        labels.append(label)
        places.append(place)
    if not rows:
        raise InputError(f"{path}: no rows. Give it a {text_column} and a {label_column} in each row.")

    firsts: dict[tuple[Text, str], int] = {}
    for i, key in enumerate(zip(rows, splits or [""] * len(rows), strict=True)):
        firsts.setdefault(key, i)
    kept = list(firsts.values())
    rows, labels, places = [rows[i] for i in kept], [labels[i] for i in kept], [places[i] for i in kept]
    splits = [splits[i] for i in kept] if has_split else []
    names = _order(labels)
    if len(names) < 2:
        raise InputError(f"{path}: every row has the label {names[0]!r}; a task needs at least two labels.")
    number = {label: i for i, label in enumerate(names)}
    examples = Examples(texts(rows), np.array([number[label] for label in labels]))
    if has_split:
        test_rows = np.array(splits) == "test"
        train, test = np.flatnonzero(~test_rows), np.flatnonzero(test_rows)
        tested = {rows[row] for row in test}
        train = np.array([i for i in train.tolist() if rows[i] not in tested], dtype=np.int64)
        for split, part in (("train", train), ("test", test)):
            if len(part) == 0:
                raise InputError(f'{path}: the column "split" never says {split}. Add rows, or leave it out.')
        unseen = np.setdiff1d(examples.labels[test], examples.labels[train])
        if len(unseen):
            raise InputError(f"{path}: label {names[unseen[0]]!r} is in test but not in train.")
    else:
        counts = np.bincount(examples.labels)
        for i in np.flatnonzero(counts == 1).tolist():
            raise InputError(
                f"{path}: label {names[i]!r} has a single example ({places[labels.index(names[i])]}); "
                "a label needs two, one to train and one to test. Add examples, or remove it."
            )
        train, test = stratified_split(examples.labels)
    return TextClassification(
        name or str(path),
        examples.take(train),
        examples.take(test),
        tuple(names),
        Source("file", str(path), digest(path)),
        max_length=max_length,
    )


def labelled(path: Path) -> bool:
    """Whether a file's first row has a label; raises as :func:`read_rows` does."""
    return DEFAULT_COLUMNS["label"] in next(read_rows(path), ("", {}))[1]


def rows_of(path: Path, *, pairs: bool) -> list[Text]:
    """The text, or texts, of each row of a file without labels; rows whose ``split`` says test are left out.

    Raises :class:`InputError` as :func:`from_file` does.
    """
    found: list[Text] = []
    for place, row in read_rows(path):
        if row.get("split") == "test":
            continue
        where = f"{path}: {place}"
        text = _text(row, DEFAULT_COLUMNS, "text", where)
        found.append((text, _text(row, DEFAULT_COLUMNS, "pair", where)) if pairs else text)
    if not found:
        raise InputError(f"{path}: no rows. Give it a text in each row.")
    return found


def _missing(path: Path) -> str:
    parent = path.parent
    near = (
        difflib.get_close_matches(path.name, [p.name for p in parent.iterdir()], 1) if parent.is_dir() else []
    )
    return f"no such file.{f' Did you mean {parent / near[0]}?' if near else ''}"


# -- one row ---------------------------------------------------------------------------------------------


def _cell(row: Row, columns: Mapping[str, str], role: str, where: str) -> Any:
    """The value of a column, which must be there and not empty."""
    column = columns[role]
    option = f"--{role}-column"
    if column not in row:
        # A column that already serves another role is no misspelling of this one.
        free = [name for name in row if name not in columns.values()]
        near = difflib.get_close_matches(column, free, n=1)
        mend = f"Did you mean {near[0]!r}? Fix the line" if near else "Fix the line"
        # A pair is asked for by whoever has labels; a text alone may be meant for a language model.
        others = "" if near or role == "pair" else f" {_FOR_A_WRITER}"
        raise InputError(
            f'{where} has no "{column}" (found: {", ".join(map(str, row)) or "nothing"}). {mend}, '
            f"or name the column with {option}{' ' + near[0] if near else ''}.{others}"
        )
    value = row[column]
    if value is None or (isinstance(value, str) and not value.strip()) or value != value:
        raise InputError(f'{where} has an empty "{column}". Fill it in, or remove the line.')
    return value


def _text(row: Row, columns: Mapping[str, str], role: str, where: str) -> str:
    value = _cell(row, columns, role, where)
    if not isinstance(value, str):
        raise InputError(
            f'{where} has a {type(value).__name__} in "{columns[role]}", expected a string. Fix the line, '
            f"or name the column with --{role}-column."
        )
    return value


def _label(row: Row, columns: Mapping[str, str], where: str) -> str:
    value = _cell(row, columns, "label", where)
    if isinstance(value, float) and math.isfinite(value) and value == int(value):
        value = int(value)  # A column of integers with gaps is read as floats by many writers.
    if not isinstance(value, str | int):
        raise InputError(
            f'{where} has {value!r} in "{columns["label"]}"; a label is a string or an integer. '
            "Fix the line, or name the column with --label-column."
        )
    return str(value).strip()


def _order(labels: list[str]) -> list[str]:
    """The distinct labels: in numerical order where all are integers, or else alphabetical."""
    names = sorted(set(labels))
    try:
        return sorted(names, key=int)
    except ValueError:
        return names


# -- formats ---------------------------------------------------------------------------------------------


def _read_jsonl(path: Path) -> Iterator[tuple[str, Row]]:
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(
                f"{path}: line {number} is not JSON ({error.msg} at character {error.pos + 1}). Fix the line."
            ) from error
        if not isinstance(row, dict):
            raise InputError(
                f"{path}: line {number} is a {type(row).__name__}, expected an object such as "
                '{"text": …, "label": …}.'
            )
        try:
            json.dumps(row, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            half = ascii(error.object[error.start])
            raise InputError(
                f"{path}: line {number} holds {half}, which is half of a character. Fix the line."
            ) from error
        yield f"line {number}", row


def _read_csv(path: Path) -> Iterator[tuple[str, Row]]:
    csv.field_size_limit(1 << 30)  # The default refuses texts over 128 KiB.
    reader = csv.DictReader(_lines(path), strict=True)
    last = 1
    try:
        for row in reader:
            first, last = last + 1, reader.line_num
            place = f"line {last}" if first == last else f"lines {first}–{last}"
            if None in row or None in row.values():
                cells = sum(value is not None for key, value in row.items() if key is not None)
                cells += len(row.get(None) or [])
                raise InputError(
                    f"{path}: {place} has {cells} cells, the header {len(reader.fieldnames or [])}. "
                    "Quote commas and line breaks inside a text."
                )
            yield place, row
    except csv.Error as error:
        raise InputError(
            f"{path}: line {reader.reader.line_num} is not CSV ({error}). Fix the line."
        ) from error


def _lines(path: Path) -> Iterator[str]:
    """The file's lines with their ends, as UTF-8; a leading byte order mark is dropped."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        try:
            yield from file
        except UnicodeDecodeError as error:
            raise InputError(f"{path}: not UTF-8 text (byte {error.start}). Save it as UTF-8.") from error


def _read_parquet(path: Path) -> Iterator[tuple[str, Row]]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches():
                for row in batch.to_pylist():
                    number += 1
                    yield f"row {number}", row
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"{path}: not a readable parquet file ({str(error).splitlines()[0]}).") from error
