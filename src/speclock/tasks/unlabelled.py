"""Inputs without labels, for a teacher to label."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from speclock import tasks
from speclock.errors import InputError
from speclock.tasks.base import Task, content
from speclock.tasks.files import SUFFIXES, labelled, rows_of
from speclock.tasks.image import images_in
from speclock.tasks.text import texts


def digest(inputs: np.ndarray) -> str:
    """SHA-256 over the inputs."""
    return hashlib.sha256(content(inputs)).hexdigest()


def inputs_of(spec: str, like: Task) -> np.ndarray:
    """What ``spec`` holds, in the form of the inputs of ``like``.

    A ``.txt`` with a text in each line, a table without labels (a ``.jsonl``, ``.csv`` or ``.parquet`` with a column
    ``text``, and ``text_pair`` where ``like`` has pairs), a folder of images, or any task's specification, whose
    training inputs are taken and whose labels are not looked at. What ``like`` is judged by is left out, in whatever
    space and case it is written; parts of it are not looked for. Raises :class:`InputError` where they are of another
    kind or size.
    """
    path = Path(spec)
    if path.suffix.lower() == ".txt":
        if not path.is_file():
            raise InputError(f"{path}: no such file.")
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
        found = texts([line for line in lines if line])
        if len(found) == 0:
            raise InputError(f"{path}: it is empty. Give it a text in each line.")
        kind = "text"
    elif path.suffix.lower() in SUFFIXES and not labelled(path):
        found, kind = texts(rows_of(path, pairs=isinstance(like.train.inputs[0], tuple))), "text"
    elif path.is_dir() and not any(inside.is_dir() for inside in path.iterdir()):
        found, kind = images_in(path, like.train.inputs.shape[1:]), "image"
    else:
        task = tasks.load(spec)
        found, kind = task.train.inputs, task.modality
    if kind != like.modality:
        raise InputError(f"{spec} is made of {kind}s, but {like.name} of {like.modality}s.")
    one, other = (x[0] if kind == "text" else x.shape[1:] for x in (found, like.train.inputs))
    if (type(one) is not type(other)) if kind == "text" else one != other:
        what = "a pair of texts is asked for, or a single one" if kind == "text" else f"{one} is not {other}"
        raise InputError(f"the inputs of {spec} are not like those of {like.name}: {what}.")
    judged = {_key(x) for part in (like.validation, like.test) if part is not None for x in part.inputs}
    kept = [i for i, x in enumerate(found) if _key(x) not in judged]
    if not kept:
        raise InputError(f"{spec} holds nothing but what {like.name} is validated or tested on.")
    return found[kept]


def _key(x: Any) -> Any:
    """An input as it is found in a set: of a text its words, whatever space and case they are written in."""
    if isinstance(x, np.ndarray):
        return x.tobytes()
    return " ".join(x.casefold().split()) if isinstance(x, str) else tuple(_key(part) for part in x)
