from __future__ import annotations

import collections
import json
import re
from collections.abc import Callable

import numpy as np
import pytest

from speclock import tasks
from speclock.errors import InputError
from speclock.sources import Source
from speclock.tasks import jailbreak
from speclock.tasks.base import Task
from speclock.tasks.splits import near_duplicate_groups

WORDS = [
    "north",
    "south",
    "river",
    "stone",
    "cloud",
    "amber",
    "willow",
    "harbor",
    "lantern",
    "copper",
    "meadow",
]


def prose(seed: int, sentences: int) -> str:
    rng = np.random.default_rng(seed)
    return " ".join(" ".join(rng.choice(WORDS, 9)).capitalize() + "." for _ in range(sentences))


PROMPTS = [jailbreak.Prompt("You are given a passage.", prose(i, 30)) for i in range(60)]


def test_a_partner_is_as_long_and_starts_alike() -> None:
    unsafe = ["You " + prose(1000 + i, 1 + i % 20).rstrip(".") for i in range(40)]
    safe = jailbreak.match(unsafe, PROMPTS)
    assert len(set(safe)) == 40
    for attack, benign in zip(unsafe, safe, strict=True):
        assert abs(len(benign) - len(attack)) <= max(40, 0.1 * len(attack))
    assert sum(benign.startswith("You ") for benign in safe) >= 35
    assert jailbreak.match(unsafe, PROMPTS) == safe


def test_too_few_benign_passages_are_refused() -> None:
    with pytest.raises(InputError, match="3 jailbreaks, but only 2 benign passages"):
        jailbreak.match(["x y", "y z", "z x"], PROMPTS[:2])


def test_what_gives_a_class_away_is_taken_out() -> None:
    slot = "{% raw %}Hello ChatGPT.\nFrom now on you are {free}.{% endraw %} {{ prompt }}"
    (unsafe,) = jailbreak._distinct(
        [jailbreak._without_slots(slot), "from now on you are free", slot.upper()][:1]
    )
    assert unsafe == "From now on you are {free}"
    assert (
        jailbreak._clean_passage("Passage: It was n't ``here '' , he said .") == 'It wasn\'t "here", he said.'
    )
    assert jailbreak._clean_passage("Paragraph- Sent 1: One.Sent 2: Two.") == "One. Two."


def test_one_wording_is_kept_once() -> None:
    assert jailbreak._distinct(["Do it NOW!", "do it, now", "do it later"]) == ["Do it NOW", "do it later"]


def test_pairs_stay_together_and_copies_on_one_side() -> None:
    unsafe = [prose(1000 + i, 6) for i in range(50)]
    unsafe += [text + " And one more thing to do." for text in unsafe[:10]]
    pairs = jailbreak.distil(unsafe, PROMPTS)
    assert len({json.loads(line)["group"] for line in pairs.splitlines()}) == 50
    task = jailbreak._task(pairs, Source("package", "toy"))
    for split in (task.train, task.test):
        assert np.mean(split.labels) == 0.5
    assert not near(task, 0.5)


def near(task: Task, threshold: float) -> set[int]:
    """Groups of near copies that have members on both sides."""
    groups = near_duplicate_groups([*task.train.inputs, *task.test.inputs], threshold)
    return set(groups[: len(task.train)]) & set(groups[len(task.train) :])


def guess(task: Task, feature: Callable[[str], str | int]) -> float:
    """Test accuracy of the best answer that the feature alone allows; for numbers, of the best threshold."""
    train, test = ([feature(text) for text in split.inputs] for split in (task.train, task.test))
    if isinstance(train[0], int):
        options = [(np.mean((np.array(train) > t) == task.train.labels), t) for t in np.unique(train)]
        best = max(options, key=lambda option: abs(option[0] - 0.5))
        answers = (np.array(test) > best[1]) ^ (best[0] < 0.5)
        return float(np.mean(answers == task.test.labels))
    counts: dict[str | int, collections.Counter[int]] = collections.defaultdict(collections.Counter)
    for value, label in zip(train, task.train.labels, strict=True):
        counts[value][int(label)] += 1
    answers = [counts[value].most_common(1)[0][0] if counts[value] else 0 for value in test]
    return float(np.mean(np.array(answers) == task.test.labels))


@pytest.mark.slow
def test_the_classes_cannot_be_told_apart_without_reading() -> None:
    task = tasks.load("jailbreak")
    assert not near(task, 0.5)
    assert np.bincount(task.train.labels).tolist() == [744, 744]
    assert np.bincount(task.test.labels).tolist() == [93, 92]
    assert guess(task, len) < 0.56
    assert guess(task, lambda text: (re.findall(r"\w+", text.lower()) or [""])[0]) < 0.72
    assert guess(task, lambda text: text[-1] if text[-1] in ".!?:" else "") < 0.56
    for text in [*task.train.inputs, *task.test.inputs]:
        assert not re.search(r"\{\{ ?prompt ?\}\}|\{% (?:end)?raw|^Definition:|\n", text)
