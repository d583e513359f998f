from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from speclock.errors import InputError
from speclock.sources import Source
from speclock.sources.cache import digest
from speclock.tasks.files import from_file

Row = dict[str, Any]
ROWS: list[Row] = [
    {"text": f'row {i}, "quoted"\nand broken', "label": "yes" if i % 2 else "no"} for i in range(20)
]
SUFFIXES = [".jsonl", ".csv", ".parquet"]


def write(path: Path, rows: list[Row]) -> Path:
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    return path


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_format_gives_the_same_task(suffix: str, tmp_path: Path) -> None:
    path = write(tmp_path / f"x{suffix}", ROWS)
    task = from_file(path, max_length=17)
    assert task.labels == ("no", "yes")
    assert (len(task.train), len(task.test)) == (16, 4)
    assert task.max_length == 17
    assert task.source == Source("file", str(path), digest(path))
    assert sorted([*task.train.inputs, *task.test.inputs]) == sorted(row["text"] for row in ROWS)
    for split in (task.train, task.test):
        assert np.mean(split.labels) == 0.5
        for text, label in zip(split.inputs, split.labels, strict=True):
            assert {"text": text, "label": task.labels[label]} in ROWS
    jsonl = from_file(write(tmp_path / "y.jsonl", ROWS))
    assert list(task.train.inputs) == list(jsonl.train.inputs)


def test_nothing_is_scored_on_what_it_was_trained_on(tmp_path: Path) -> None:
    task = from_file(write(tmp_path / "twice.jsonl", [*ROWS, *ROWS]))
    texts = [*task.train.inputs, *task.test.inputs]
    assert len(texts) == len(set(texts)) == len(ROWS)
    rows = [{**row, "split": split} for row in ROWS[:12] for split in ("train", "test")]
    rows = [
        row for i, row in enumerate(rows) if i % 8 not in (1, 3)
    ]  # half of the training texts stand in test too
    split = from_file(write(tmp_path / "split.jsonl", rows))
    assert not set(split.train.inputs) & set(split.test.inputs)
    assert len(split.test) == 6
    assert len(split.train) == 6


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_integer_labels_are_in_numerical_order(suffix: str, tmp_path: Path) -> None:
    rows = [{"text": str(i) + "x", "label": label} for i, label in enumerate([10, 9, 2, 10, 9, 2])]
    assert from_file(write(tmp_path / f"x{suffix}", rows)).labels == ("2", "9", "10")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_pairs_and_named_columns_and_a_given_split(suffix: str, tmp_path: Path) -> None:
    rows = [
        {"question": "q", "sentence": f"s{i}", "answer": i % 2, "split": "test" if i < 2 else "train"}
        for i in range(6)
    ]
    columns = {"text_column": "question", "pair_column": "sentence", "label_column": "answer"}
    task = from_file(write(tmp_path / f"x{suffix}", rows), **columns)
    assert list(task.train.inputs) == [("q", f"s{i}") for i in range(2, 6)]
    assert list(task.test.inputs) == [("q", "s0"), ("q", "s1")]
    assert task.test.labels.tolist() == [0, 1]


def changed(row: int, **cells: Any) -> list[Row]:
    """The rows with some cells of one changed; ``...`` removes a cell."""
    rows = [dict(r) for r in ROWS]
    rows[row].update(cells)
    rows[row] = {name: value for name, value in rows[row].items() if value is not ...}
    return rows


MISSPELT = [{"text": f"t {i}", "text_pair": "u", "lable": i % 2} for i in range(4)]


@pytest.mark.parametrize(
    ("rows", "line"),
    [
        (
            changed(16, label=..., text_pair="u", lable="no"),
            'line 17 has no "label" (found: text, text_pair, lable). Did you mean \'lable\'? Fix the line, '
            "or name the column with --label-column lable.",
        ),
        (
            changed(16, label=...),
            'line 17 has no "label" (found: text). Fix the line, or name the column with --label-column. '
            'Rows for a language model have "completion" or "messages", and no "label".',
        ),
        (changed(4, text=None), 'line 5 has an empty "text". Fill it in, or remove the line.'),
        (changed(4, text="  "), 'line 5 has an empty "text". Fill it in, or remove the line.'),
        (changed(4, label=float("nan")), 'line 5 has an empty "label". Fill it in, or remove the line.'),
        (
            changed(4, text=["a"]),
            'line 5 has a list in "text", expected a string. Fix the line, or name the column with '
            "--text-column.",
        ),
        (
            changed(4, label=0.5),
            'line 5 has 0.5 in "label"; a label is a string or an integer. Fix the line, or name the column '
            "with --label-column.",
        ),
        (
            changed(4, label="maybe"),
            "label 'maybe' has a single example (line 5); a label needs two, one to train and one to test. "
            "Add examples, or remove it.",
        ),
        (
            [{"text": f"t {i}", "label": "a"} for i in range(3)],
            "every row has the label 'a'; a task needs at least two labels.",
        ),
        ([], "no rows. Give it a text and a label in each row."),
        (
            [{"text": f"t {i}", "label": i, "split": "dev"} for i in range(4)],
            'line 1 has split \'dev\'; it must be "train" or "test" in every row, or the column left out.',
        ),
        (
            [{"text": f"t {i}", "label": i % 2, "split": "train"} for i in range(4)],
            'the column "split" never says test. Add rows, or leave it out.',
        ),
        (
            [{"text": f"t {i}", "label": i, "split": "test" if i == 3 else "train"} for i in range(4)],
            "label '3' is in test but not in train.",
        ),
        (
            [{"text": "t", "text_pair": "u", "label": 0}, {"text": "other", "label": 1}],
            'line 2 has no "text_pair" (found: text, label). Fix the line, or name the column with '
            "--pair-column.",
        ),
    ],
)  # fmt: skip
def test_each_fault_is_one_line_that_names_it(rows: list[Row], line: str, tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", rows)
    with pytest.raises(InputError) as caught:
        from_file(path)
    assert str(caught.value) == f"{path}: {line}"


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_misspelt_column_is_suggested(suffix: str, tmp_path: Path) -> None:
    path = write(tmp_path / f"x{suffix}", MISSPELT)
    with pytest.raises(InputError, match=r"Did you mean 'lable'\?.*--label-column lable\.$"):
        from_file(path)
    assert from_file(path, label_column="lable").labels == ("0", "1")


BYTES = {
    "x.jsonl": (b'{"text": "a", "label": 1}\n{"text": \n', "line 2 is not JSON ("),
    "list.jsonl": (b"[1]\n", "line 1 is a list, expected an object such as"),
    "half.jsonl": (
        b'{"text": "a", "label": 1}\n{"text": "smile \\ud83d", "label": 1}\n',
        "line 2 holds '\\ud83d', which is half of a character. Fix the line.",
    ),
    "latin.jsonl": ('{"text": "caf\xe9"}'.encode("latin1"), "not UTF-8 text (byte 13). Save it as UTF-8."),
    "blank.jsonl": (b"\n\n", "no rows."),
    "x.csv": (b"text,label\nhello, world,1\n", "line 2 has 3 cells, the header 2. Quote commas"),
    "short.csv": (b"text,label\na,1\nb\n", "line 3 has 1 cells, the header 2."),
    "open.csv": (b'text,label\n"a,1\n', "line 2 is not CSV ("),
    "empty.csv": (b"", "no rows."),
    "header.csv": (b"text,label\n", "no rows."),
    "long.csv": (b'text,label\na,1\n"b\nb",\n', 'lines 3–4 has an empty "label".'),
    "gap.csv": (b"text,label\na,\n", 'line 2 has an empty "label".'),
    "x.parquet": (b"PAR1 nothing PAR1", "not a readable parquet file ("),
    "empty.parquet": (b"", "not a readable parquet file ("),
    "x.xlsx": (b"", "a text task is read from .jsonl, .csv, .parquet, not .xlsx."),
}


@pytest.mark.parametrize("name", BYTES)
def test_a_file_that_cannot_be_read_is_one_line(name: str, tmp_path: Path) -> None:
    content, line = BYTES[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as caught:
        from_file(tmp_path / name)
    assert str(caught.value).startswith(f"{tmp_path / name}: {line}")
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named_with_the_nearest(tmp_path: Path) -> None:
    write(tmp_path / "qnli.jsonl", ROWS)
    with pytest.raises(InputError) as caught:
        from_file(tmp_path / "qnil.jsonl")
    assert (
        str(caught.value)
        == f"{tmp_path / 'qnil.jsonl'}: no such file. Did you mean {tmp_path / 'qnli.jsonl'}?"
    )


def test_a_byte_order_mark_is_not_part_of_the_first_column(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_bytes(b"\xef\xbb\xbftext,label\na,0\nb,0\nc,1\nd,1\n")
    assert from_file(tmp_path / "x.csv").labels == ("0", "1")
