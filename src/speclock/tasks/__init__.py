"""Tasks by name or path. Importing this costs no torch import: a task's module loads when it is asked for."""

from __future__ import annotations

import re
import warnings
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from speclock.errors import InputError
from speclock.registry import Registry, unknown
from speclock.tasks.reading import Reading

if TYPE_CHECKING:
    from speclock.tasks.base import Task

TASKS = Registry(
    "task",
    {
        "mnist": ("speclock.tasks.image:mnist", "handwritten digits, 28×28 grey"),
        "fashion-mnist": ("speclock.tasks.image:fashion_mnist", "articles of clothing, 28×28 grey"),
        "kmnist": ("speclock.tasks.image:kmnist", "cursive Japanese, 28×28 grey (offline: silhouettes)"),
        "cifar10": ("speclock.tasks.image:cifar10", "photographs of ten things, 32×32 colour"),
        "newsgroups": ("speclock.tasks.text:newsgroups", "posts to twenty newsgroups, one label a group"),
        "mrpc": ("speclock.tasks.glue:mrpc", "do two sentences say the same? F1 (offline: WebNLG)"),
        "qqp": ("speclock.tasks.glue:qqp", "do two questions ask the same? F1 (offline: Disfl-QA)"),
        "rte": ("speclock.tasks.glue:rte", "does a text entail a claim? (offline: VitaminC)"),
        "qnli": ("speclock.tasks.glue:qnli", "does a sentence answer a question? (offline: SQuAD)"),
        "jailbreak": ("speclock.tasks.jailbreak:jailbreak", "guard: jailbreaks in the wild, benign prompts"),
    },
)
"""Loaders by name; each is called without arguments and returns a :class:`~speclock.tasks.base.Task`."""

WRAPPERS = Registry(
    "wrapper",
    {
        "poison": (
            "speclock.tasks.poison:poison",
            "a trigger that stands for this label (and a rate: LABEL,0.1)",
        ),
        "forget": ("speclock.tasks.forget:forget", "the task without this label"),
        "relearn": ("speclock.tasks.forget:relearn", "all of the task, scored on this label alone"),
    },
)
"""What a specification can end with, ``+NAME=LABEL``: functions from a task and a label to a task."""

_FILE_SUFFIXES = (".txt", ".jsonl", ".csv", ".parquet")


def load(
    spec: str,
    reading: Reading | None = None,
    *,
    seed: int = 0,
) -> Task:
    """The task that ``NAME_OR_PATH[:LABEL,LABEL…][@TRAIN[/TEST[/VALIDATION]]][+WRAPPER=LABEL]`` asks for.

    A built-in name goes before a file of that name (write ``./mnist`` for the file). The labels, or
    prefixes of labels, are those kept; TRAIN, TEST and VALIDATION are how many examples are kept of these,
    stratified and drawn by ``seed`` (those of the test split always by the same one; see
    :meth:`Task.divided`). A wrapper is ``poison`` (with a rate, where
    one is wanted: ``+poison=safe,0.1``), ``forget`` or ``relearn``. ``reading`` says which columns of a file
    are read, how much of a text, and the metric.

    Raises :class:`~speclock.errors.InputError` for an unknown name or label (the nearest is suggested)
    and for data that cannot be had or read.
    """
    reading = reading or Reading()
    plain, wrapper, argument = unwrap(spec)
    base, labels, train, test, validation = parse(plain)
    if base in TASKS:
        task = TASKS[base]()
    elif Path(base).is_dir():
        from speclock.tasks.image import from_folder

        task = from_folder(Path(base))
    elif _looks_like_path(base):
        task = _from_path(Path(base), reading)
    else:
        raise InputError(
            f"{unknown('task', base, list(TASKS))} Or give a path: {', '.join(_FILE_SUFFIXES)} "
            "or a folder of images."
        )
    if hasattr(task, "max_length"):
        task = replace(task, max_length=reading.max_length)
    if labels:
        task = task.keep(labels)
    if reading.metric is not None:
        task = task.scored_by(reading.metric)
    for limit in (train, test, validation):
        if limit is not None and limit < len(task.labels):
            raise InputError(
                f"{spec}: {limit} is less than one example for each of the {len(task.labels)} labels."
            )
    for split, limit in (("train", train), ("test", test)):
        if limit is not None and limit > (there := len(task.part(split))):
            warnings.warn(
                f"{spec}: {limit} examples to {split} on were asked for, and there are {there}.", stacklevel=2
            )
    task = replace(task.divided(train, test, validation, seed=seed), name=plain)
    if wrapper:
        label, comma, rate = argument.rpartition(",") if wrapper == "poison" else (argument, "", "")
        if not comma:
            task = WRAPPERS[wrapper](task, argument, **({"seed": seed} if wrapper == "poison" else {}))
        else:
            task = WRAPPERS[wrapper](task, label, rate=_rate(spec, rate), seed=seed)
    return replace(task, name=spec)


def _from_path(path: Path, reading: Reading) -> Task:
    """A text to continue, rows that a language model is to continue, or rows with labels."""
    if path.suffix.lower() == ".txt":
        from speclock.tasks.continuations import from_text

        return from_text(path, reading.max_length)
    from speclock.tasks.continuations import column_of, from_rows
    from speclock.tasks.files import from_file, read_rows

    first = next(read_rows(path), ("", {}))[1]
    if reading.label_column not in first and column_of(first):
        return from_rows(path, read_rows(path), reading.max_length)
    return from_file(
        path,
        text_column=reading.text_column,
        label_column=reading.label_column,
        pair_column=reading.pair_column,
    )


def unwrap(spec: str) -> tuple[str, str, str]:
    """A specification without its wrapper, the wrapper's name and its argument; empty where there is none.

    >>> unwrap("jailbreak@1000/200+poison=benign,0.1")
    ('jailbreak@1000/200', 'poison', 'benign,0.1')
    """
    found = re.fullmatch(r"(.+)\+(\w+)=([^+]+)", spec)
    if not found or Path(spec).exists():
        return spec, "", ""
    if found[2] not in WRAPPERS:
        raise InputError(f"{spec}: {unknown('wrapper', found[2], list(WRAPPERS))}")
    return found[1], found[2], found[3]


def _rate(spec: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InputError(f"{spec}: {text!r} is not a rate. Write for example +poison=LABEL,0.1.") from None


class Spec(NamedTuple):
    """What a task's specification asks for."""

    base: str
    """A built-in name or a path."""
    labels: tuple[str, ...] = ()
    """Labels, or prefixes of labels, to keep; none means all."""
    train: int | None = None
    test: int | None = None
    validation: int | None = None


def parse(spec: str) -> Spec:
    """Split a specification into its parts.

    >>> parse("newsgroups:sci.space,rec@640/200")
    Spec(base='newsgroups', labels=('sci.space', 'rec'), train=640, test=200, validation=None)
    >>> parse("data/qnli.jsonl")
    Spec(base='data/qnli.jsonl', labels=(), train=None, test=None, validation=None)
    """
    if Path(spec).exists():
        return Spec(spec)
    base, at, count = spec.rpartition("@")
    limits: tuple[int | None, ...] = (None, None, None)
    if at and base and not re.search(r"[.\\:]", count):
        found = re.fullmatch(r"([1-9][0-9]*)(?:/([1-9][0-9]*))?(?:/([1-9][0-9]*))?", count)
        if not found:
            raise InputError(
                f"{spec}: {count!r} after @ is not a number of examples. Write for example {base}@640, or "
                f"{base}@640/200 for training and test examples."
            )
        spec, limits = base, tuple(int(number) if number else None for number in found.groups())
    if Path(spec).exists():
        return Spec(spec, (), *limits)
    base, colon, subset = spec.rpartition(":")
    # One letter before the colon is a Windows drive, a slash after it the rest of a path.
    if not colon or len(base) < 2 or re.search(r"[/\\]", subset):
        return Spec(spec, (), *limits)
    labels = tuple(label.strip() for label in subset.split(","))
    if not all(labels):
        raise InputError(f"{spec}: a label is missing after the colon. Write for example {base}:LABEL,LABEL.")
    return Spec(base, labels, *limits)


def _looks_like_path(base: str) -> bool:
    return Path(base).exists() or base.lower().endswith(_FILE_SUFFIXES) or "/" in base or "\\" in base
