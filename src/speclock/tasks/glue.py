"""Four tasks of GLUE [Wang et al. 2018], from the hub, or stand-ins of the same form from what BIG-bench carries.

``mrpc``: do two sentences say the same? Verbalisations of the same facts (WebNLG), against those of other facts about
the same things. ``qqp``: do two questions ask the same? A question with a speaker's slips and corrections (Disfl-QA)
and the question of SQuAD that it was made from, against another one about the same paragraph. ``rte``: does a sentence
of Wikipedia entail a claim (VitaminC)? ``qnli``: does a sentence answer a question? QNLI's own recipe on SQuAD's
development set: the sentence with the answer, against that of its paragraph which shares most words with the question.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Int
from scipy import sparse
from scipy.sparse.csgraph import connected_components

from speclock.sources import Source, hub, packages
from speclock.tasks import bigbench
from speclock.tasks.base import Examples
from speclock.tasks.splits import group_split
from speclock.tasks.text import TextClassification, texts

HUB_ID = "nyu-mll/glue"

MOST = 10_000
"""Rows of a stand-in, of both labels alike."""

_FOLDER = "bigbench/benchmark_tasks"
_MEMBERS = {
    "webnlg": f"{_FOLDER}/gem/webnlg_en/task.json",
    "disfl_qa": f"{_FOLDER}/disfl_qa/task.json",
    "vitaminc": f"{_FOLDER}/vitaminc_fact_verification/task.json",
    "squad": f"{_FOLDER}/squad_shifts/squaddev_v1.1.json",
}
_SHA256 = "d319b76265cbc88fce5d4d5f0977ca575a0cb1e65339f483777de5cb50d3ecf6"


class Kind(NamedTuple):
    """One of GLUE's tasks."""

    columns: tuple[str, str]
    """The hub's names of the two texts."""
    labels: tuple[str, str]
    """In the hub's order."""
    metric: Literal["accuracy", "f1"]
    stand_in: str


KINDS = {
    "mrpc": Kind(
        ("sentence1", "sentence2"),
        ("not_equivalent", "equivalent"),
        "f1",
        "verbalisations of WebNLG's facts, for MRPC's sentences from the news",
    ),
    "qqp": Kind(
        ("question1", "question2"),
        ("not_duplicate", "duplicate"),
        "f1",
        "Disfl-QA's questions and SQuAD's, for Quora's",
    ),
    "rte": Kind(
        ("sentence1", "sentence2"),
        ("entailment", "not_entailment"),
        "accuracy",
        "VitaminC's evidence and claims, for RTE's",
    ),
    "qnli": Kind(
        ("question", "sentence"),
        ("entailment", "not_entailment"),
        "accuracy",
        "QNLI's recipe on SQuAD's development set, for QNLI",
    ),
}


class Pair(NamedTuple):
    """A row of a task. Rows of one group stand on one side of the split."""

    first: str
    second: str
    label: int
    group: str


def mrpc() -> TextClassification:
    """Sentences that say the same; F1 of those that do."""
    return _load("mrpc")


def qqp() -> TextClassification:
    """Questions that ask the same; F1 of those that do."""
    return _load("qqp")


def rte() -> TextClassification:
    """Whether the first sentence entails the second."""
    return _load("rte")


def qnli() -> TextClassification:
    """Whether the sentence answers the question."""
    return _load("qnli")


def _load(name: str) -> TextClassification:
    kind = KINDS[name]

    def task(train: Examples, test: Examples, source: Source) -> TextClassification:
        return TextClassification(
            name,
            train,
            test,
            kind.labels,
            source,
            metric=kind.metric,
            positive=1 if kind.metric == "f1" else 0,
        )

    def from_hub() -> TextClassification:
        found = hub.load_hub(HUB_ID, name)
        train, test = (_of_hub(found[split], kind) for split in ("train", "validation"))
        return task(train, test, Source("hub", f"{HUB_ID}, {name}"))

    def from_package() -> TextClassification:
        path = packages.fetch_distilled(
            bigbench.PACKAGE,
            list(_MEMBERS.values()),
            distil,
            "glue-stand-ins.jsonl",
            _SHA256,
            archive=bigbench.ARCHIVE,
        )
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        pairs = [Pair(*row["pair"]) for row in rows if row["task"] == name]
        numbers = {group: i for i, group in enumerate(dict.fromkeys(pair.group for pair in pairs))}
        groups = np.array([numbers[pair.group] for pair in pairs])
        train, test = (_examples([pairs[row] for row in side], groups[side]) for side in group_split(groups))
        return task(train, test, Source("package", bigbench.PACKAGE, _SHA256, stand_in=kind.stand_in))

    return hub.hub_or_package(name, HUB_ID, from_hub, bigbench.PACKAGE, from_package)


def _of_hub(split: Any, kind: Kind) -> Examples:
    first, second = (split[column] for column in kind.columns)
    return Examples(texts(list(zip(first, second, strict=True))), np.array(split["label"]))


def _examples(pairs: Sequence[Pair], groups: Int[np.ndarray, " n"]) -> Examples:
    return Examples(texts([(p.first, p.second) for p in pairs]), np.array([p.label for p in pairs]), groups)


# -- the stand-ins -----------------------------------------------------------------------------------------


def distil(root: Path) -> bytes:
    """Lines of ``{"task", "pair"}`` of all four tasks, each balanced and of :data:`MOST` rows at most."""
    raw = {name: json.loads((root / member).read_text(encoding="utf-8")) for name, member in _MEMBERS.items()}
    paragraphs = list(_paragraphs(raw["squad"]))
    made: dict[str, Callable[[], Iterator[Pair]]] = {
        "mrpc": partial(sentences, raw["webnlg"]["examples"]),
        "qqp": partial(questions, raw["disfl_qa"]["examples"], paragraphs),
        "rte": partial(claims, raw["vitaminc"]["examples"]),
        "qnli": partial(answers, paragraphs),
    }
    lines = []
    for name, make in made.items():
        for pair in _balanced(list(dict.fromkeys(make()))):
            lines.append(json.dumps({"task": name, "pair": list(pair)}, ensure_ascii=True) + "\n")
    return "".join(lines).encode()


def _balanced(pairs: list[Pair]) -> list[Pair]:
    """As many of either label, drawn by a fixed seed, in their order."""
    rng = np.random.default_rng(0)
    labels = np.array([pair.label for pair in pairs])
    each = min(MOST // 2, *np.bincount(labels, minlength=2))
    kept = [rng.permutation(np.flatnonzero(labels == label))[:each] for label in (0, 1)]
    return [pairs[row] for row in np.sort(np.concatenate(kept))]


def sentences(examples: Sequence[dict[str, Any]]) -> Iterator[Pair]:
    """Two verbalisations of the same facts, and one beside that of the nearest other facts about the same things."""
    facts = [frozenset(_facts(example["input"])) for example in examples]
    about: dict[str, set[int]] = {}
    for i, each in enumerate(facts):
        for fact in each:
            about.setdefault(fact[0], set()).add(i)
    partners: dict[int, int] = {}
    for i in range(len(examples)):
        near = set().union(*(about[fact[0]] for fact in facts[i])) - {i}
        # Another set of the same size that shares most of its facts: the words hardly differ, what is said does.
        others = sorted(
            (j for j in near if facts[j] != facts[i]),
            key=lambda j: (abs(len(facts[j]) - len(facts[i])), -len(facts[j] & facts[i]), j),
        )
        if others:
            partners[i] = others[0]
    # A sentence is in its own pairs and in those of all that it is the partner of.
    shape = (len(examples), len(examples))
    links = sparse.coo_matrix(([1] * len(partners), (list(partners), list(partners.values()))), shape=shape)
    groups = connected_components(links, directed=False)[1]
    for i, partner in partners.items():
        group = f"{groups[i]}"
        same, other = examples[i]["target"], examples[partner]["target"]
        for first, second in pairwise(same):
            yield Pair(first, second, 1, group)
        for first, second in zip(same[1:], other, strict=False):
            yield Pair(first, second, 0, group)


def _facts(text: str) -> Iterator[tuple[str, str, str]]:
    """``(subject | property | object), …`` as triples; names may have brackets of their own."""
    for part in re.split(r"\), \(", text.strip()[1:-1]):
        subject, what, value = (piece.strip() for piece in part.split(" | "))
        yield subject, what, value


class _Paragraph(NamedTuple):
    context: str
    questions: list[tuple[str, list[str], int]]
    """(question, answers, where the first one starts)."""


def _paragraphs(squad: dict[str, Any]) -> Iterator[_Paragraph]:
    for article in squad["data"]:
        for paragraph in article["paragraphs"]:
            asked = [
                (
                    " ".join(qa["question"].split()),
                    [answer["text"] for answer in qa["answers"]],
                    qa["answers"][0]["answer_start"],
                )
                for qa in paragraph["qas"]
            ]
            yield _Paragraph(paragraph["context"], asked)


def questions(examples: Sequence[dict[str, Any]], paragraphs: Sequence[_Paragraph]) -> Iterator[Pair]:
    """A disfluent question beside the one that it was made from, and beside the likest other of its paragraph.

    Which one it was made from is not said: it is the only one of the paragraph with the same answer, where there is
    one. So that the words alone do not tell, another question counts where the spoken one has half of its words, and of
    the right pairs as many that share the fewest.
    """
    known = {_letters(paragraph.context): i for i, paragraph in enumerate(paragraphs)}
    right, wrong = [], []
    for example in examples:
        spoken, _, context = example["input"].partition("context:")
        spoken, number = " ".join(spoken.split()), known.get(_letters(context))
        if number is None or len(_words(spoken)) < 4:  # a few are a spreadsheet's "#VALUE!"
            continue
        target = example["target"]
        wanted = {_letters(answer) for answer in (target if isinstance(target, list) else [target])}
        asked = paragraphs[number].questions
        meant = [q for q, answers, _ in asked if wanted & {_letters(answer) for answer in answers}]
        others = sorted((q for q, *_ in asked if q not in meant), key=lambda q: (-_shared(spoken, q), q))
        if len(meant) == 1 and others:
            right.append(Pair(spoken, meant[0], 1, f"{number}"))
            if _shared(spoken, others[0]) >= len(_words(others[0])) / 2:
                wrong.append(Pair(spoken, others[0], 0, f"{number}"))
    right.sort(key=lambda pair: (_shared(pair.first, pair.second) / len(_words(pair.second)), pair))
    yield from sorted(wrong + right[: len(wrong)])


def claims(examples: Sequence[dict[str, Any]]) -> Iterator[Pair]:
    """Evidence and claim; the claims of a page stay together."""
    for example in examples:
        evidence, found, claim = example["input"].partition("\nClaim: ")
        if found:
            label = 0 if example["target_scores"]["True"] else 1
            yield Pair(evidence, claim.strip(), label, evidence.partition(":")[0])


def answers(paragraphs: Sequence[_Paragraph]) -> Iterator[Pair]:
    """A question beside the sentence with its answer, and beside the likest other sentence of the paragraph."""
    for number, paragraph in enumerate(paragraphs):
        spans = _sentences(paragraph.context)
        for question, replies, start in paragraph.questions:
            right = next((s for s, (low, high) in spans.items() if low <= start < high), None)
            wrong = sorted(
                (s for s in spans if s != right and not any(reply in s for reply in replies)),
                key=lambda s: (-_shared(question, s), s),
            )
            if right is not None and wrong:
                yield Pair(question, right, 0, f"{number}")
                yield Pair(question, wrong[0], 1, f"{number}")


def _sentences(context: str) -> dict[str, tuple[int, int]]:
    """Each sentence with where it stands; cut after a full stop that a capital follows."""
    found: dict[str, tuple[int, int]] = {}
    low = 0
    for match in [*re.finditer(r"(?<=[.!?])\s+(?=[A-Z\"“])", context), None]:
        high = len(context) if match is None else match.start()
        if sentence := context[low:high].strip():
            found[sentence] = (low, high)
        low = high if match is None else match.end()
    return found


def _letters(text: str) -> str:
    """What two spellings of one text share: letters and digits alone."""
    return re.sub(r"\W+", "", text.lower())


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.lower()))


def _shared(one: str, other: str) -> int:
    return len(_words(one) & _words(other))
