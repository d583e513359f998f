"""How GLUE's stand-ins are made, on a few rows of each source, and what becomes of the hub's own rows."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pytest

from speclock import tasks
from speclock.errors import InputError
from speclock.sources import hub
from speclock.tasks import TASKS
from speclock.tasks.glue import (
    KINDS,
    MOST,
    Pair,
    _balanced,
    _paragraphs,
    answers,
    claims,
    mrpc,
    questions,
    sentences,
)

SQUAD: dict[str, Any] = {
    "data": [
        {
            "paragraphs": [
                {
                    "context": "The Normans settled in Rouen. Rollo led the Normans to France. Cows eat grass.",
                    "qas": [
                        {
                            "question": "Who led the  Normans?",
                            "answers": [{"text": "Rollo", "answer_start": 30}],
                        },
                        {
                            "question": "Where did the Normans settle?",
                            "answers": [{"text": "Rouen", "answer_start": 23}],
                        },
                    ],
                }
            ]
        }
    ]
}


def test_sentences_are_alike_where_their_facts_are() -> None:
    examples = [
        {"input": "(Ann | born | 1950), (Ann | job | pilot (retired))", "target": ["a1", "a2", "a3"]},
        {"input": "(Ann | born | 1950), (Ann | city | Rome)", "target": ["b1", "b2"]},
        {"input": "(Rome | country | Italy)", "target": ["c1", "c2"]},
    ]
    pairs = list(sentences(examples))
    assert [pair[:3] for pair in pairs if pair.label == 1] == [
        ("a1", "a2", 1), ("a2", "a3", 1), ("b1", "b2", 1),
    ]  # fmt: skip
    assert [pair[:3] for pair in pairs if pair.label == 0] == [
        ("a2", "b1", 0),
        ("a3", "b2", 0),
        ("b2", "a1", 0),
    ]
    assert {pair.group for pair in pairs} == {"0"}, (
        "what stands beside each other stays on one side of the split"
    )


def test_a_question_goes_with_the_one_that_has_its_answer() -> None:
    context = SQUAD["data"][0]["paragraphs"][0]["context"].replace(".", " .")
    spoken = "Where did Rollo no I mean who led the Normans settle in ?"
    examples = [
        {"input": f"{spoken}\ncontext: {context}", "target": ["Rollo"]},
        {"input": f"{spoken}\ncontext: another paragraph", "target": ["Rollo"]},
        {"input": f"# VALUE !\ncontext: {context}", "target": ["Rollo"]},
    ]
    assert sorted(questions(examples, list(_paragraphs(SQUAD)))) == [
        Pair(spoken, "Where did the Normans settle?", 0, "0"),
        Pair(spoken, "Who led the Normans?", 1, "0"),
    ]


def test_a_claim_is_entailed_or_not() -> None:
    rows = [
        {"input": f"Ann: Ann was born in 1950 .\nClaim: {claim}", "target_scores": {"True": true, "False": 0}}
        for claim, true in (("Ann is older than Rome .", 0), ("Ann was born .", 1))
    ]
    assert [(pair.second, KINDS["rte"].labels[pair.label]) for pair in claims(rows)] == [
        ("Ann is older than Rome .", "not_entailment"),
        ("Ann was born .", "entailment"),
    ]


def test_a_sentence_answers_or_shares_words_alone() -> None:
    found = {(pair.first, pair.label): pair.second for pair in answers(list(_paragraphs(SQUAD)))}
    assert found == {
        ("Who led the Normans?", 0): "Rollo led the Normans to France.",
        ("Who led the Normans?", 1): "The Normans settled in Rouen.",
        ("Where did the Normans settle?", 0): "The Normans settled in Rouen.",
        ("Where did the Normans settle?", 1): "Rollo led the Normans to France.",
    }


def test_a_stand_in_is_balanced_and_no_larger_than_it_says() -> None:
    pairs = [Pair(str(i), "", int(i % 3 == 0), "") for i in range(3 * MOST)]
    kept = _balanced(pairs)
    assert np.bincount([pair.label for pair in kept]).tolist() == [MOST // 2, MOST // 2]
    assert kept == sorted(kept, key=lambda pair: int(pair.first)) == _balanced(pairs)


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_no_text_of_a_stand_in_stands_on_both_sides(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_hub(hub_id: str, configuration: str | None = None) -> None:
        raise InputError("no network")

    monkeypatch.setattr(hub, "load_hub", no_hub)
    task = TASKS[name]()
    train, test = ({text for pair in part.inputs for text in pair} for part in (task.train, task.test))
    assert not train & test


def test_the_hubs_validation_split_is_the_test(monkeypatch: pytest.MonkeyPatch) -> None:
    def rows(*labels: int) -> dict[str, list[Any]]:
        return {
            "sentence1": [f"one {i}" for i in range(len(labels))],
            "sentence2": [f"two {i}" for i in range(len(labels))],
            "label": list(labels),
        }

    asked = []

    def load_hub(hub_id: str, configuration: str | None = None) -> dict[str, Any]:
        asked.append((hub_id, configuration))
        return {"train": rows(0, 1, 1), "validation": rows(1, 0), "test": rows(-1, -1)}

    monkeypatch.setattr(hub, "load_hub", load_hub)
    task = mrpc()
    assert asked == [("nyu-mll/glue", "mrpc")]
    assert list(task.test.inputs) == [("one 0", "two 0"), ("one 1", "two 1")]
    assert (task.metric, task.labels[task.positive]) == ("f1", "equivalent")
    assert task.measure(np.array([1, 1]), task.test.labels) == pytest.approx(2 / 3)
    assert task.source.stand_in is None


@pytest.mark.parametrize("name", ["mrpc@2000", "qqp@400", "jailbreak@800/370/288"])
def test_what_is_chosen_by_repeats_nothing_that_is_trained_on(name: str) -> None:
    task = tasks.load(name)
    assert task.validation is not None
    sides = [set(examples.groups) for examples in (task.train, task.validation, task.test)]  # type: ignore[arg-type]
    assert len(task.validation) >= 288
    for one, other in combinations(sides, 2):
        assert not one & other
