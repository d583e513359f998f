"""What an attacker has without a network: planted tasks with known answers, and what may be seen of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.processors import BertProcessing
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

import speclock.audits.classical
from speclock import tasks
from speclock.audits.classical import _folds, classical, read
from speclock.errors import InputError
from speclock.tasks.base import PLAIN_PIXELS, Examples, Modality, Preprocessing, Source
from speclock.tasks.poison import poison
from speclock.tasks.text import Text, TextClassification, texts

WORDS = [f"{a}{b}{c}" for a in "bdfgk" for b in "aeiou" for c in "lmnrs"]


@pytest.fixture(autouse=True)
def _as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Elsewhere the choice is cross-validated once."""
    monkeypatch.setattr("speclock.audits.classical.HELD_OUT", 500)


@dataclass
class FakeEncoder:
    modality: Modality = "text"
    tokenizer: Any = None
    name: str = "fake"
    channels: int = 1
    image_size: int | None = None
    preprocessing: Preprocessing = PLAIN_PIXELS
    labels: tuple[str, ...] | None = None


def word_tokenizer() -> PreTrainedTokenizerFast:
    """A token a word."""
    ids = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "good", "bad", *WORDS])}
    inner = Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="[UNK]", pad_token="[PAD]")


def some_words(rng: np.random.Generator, count: int) -> list[str]:
    return [str(word) for word in rng.choice(WORDS, count)]


def planted(
    at: int, *, sizes: tuple[int, int, int] = (24, 10, 200), max_length: int = 12
) -> TextClassification:
    """Sixteen words, of which the one ``at`` a place says the label and the others nothing."""
    rng = np.random.default_rng(0)

    def examples(size: int) -> Examples:
        labels = np.arange(size) % 2
        rows = [some_words(rng, 16) for _ in labels]
        for row, label in zip(rows, labels, strict=True):
            row[at] = ("bad", "good")[label]
        return Examples(texts([" ".join(row) for row in rows]), labels)

    train, validation, test = map(examples, sizes)
    source = Source("file", "planted")
    return TextClassification(
        "planted", train, test, ("bad", "good"), source, validation=validation, max_length=max_length
    )


@pytest.fixture(scope="module")
def encoder() -> FakeEncoder:
    return FakeEncoder(tokenizer=word_tokenizer())


@pytest.fixture(autouse=True)
def _one_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cross-validation without its repetitions: planted tasks need none."""
    monkeypatch.setattr(speclock.audits.classical, "HELD_OUT", 1)


# -- the choice ------------------------------------------------------------------------------------------


def test_a_planted_word_is_found(encoder: FakeEncoder) -> None:
    task = planted(at=3)
    found = classical(task, encoder)
    assert task.measured(found.answers("test")) > 0.9
    assert task.measured(found.answers("validation"), "validation") > 0.7
    assert found.score is not None
    assert found.score > 0.8
    assert found.name.startswith("TF-IDF of")


def test_nothing_but_the_training_split_has_a_say(encoder: FakeEncoder) -> None:
    task = planted(at=3)
    wrong = replace(
        task,
        validation=replace(task.validation, labels=1 - task.part("validation").labels),
        test=replace(task.test, labels=1 - task.test.labels),
    )
    first, second = classical(task, encoder), classical(wrong, encoder)
    assert (first.name, first.score) == (second.name, second.score)
    assert np.array_equal(first.answers("test"), second.answers("test"))


def test_words_that_two_texts_share_are_found(encoder: FakeEncoder) -> None:
    """Which words they are says nothing: only that the second text is made of those of the first."""
    rng = np.random.default_rng(1)

    def examples(size: int) -> Examples:
        labels = np.arange(size) % 2
        rows: list[Text] = []
        for label in labels:
            first = some_words(rng, 8)
            second = rng.permutation(first)[:6].tolist() if label else some_words(rng, 6)
            rows.append((" ".join(first), " ".join(second)))
        return Examples(texts(rows), labels)

    task = TextClassification(
        "pairs", examples(80), examples(200), ("no", "yes"), Source("file", "pairs"), max_length=32
    )
    assert task.measured(classical(task, encoder).answers()) > 0.85


def test_the_choice_is_by_the_metric_of_the_task(encoder: FakeEncoder) -> None:
    rng = np.random.default_rng(2)
    labels = (np.arange(60) % 10 == 0).astype(int)
    noise = Examples(texts([" ".join(some_words(rng, 8)) for _ in labels]), labels)
    task = TextClassification("rare", noise, noise, ("no", "yes"), Source("file", "rare"))
    by_accuracy, by_f1 = classical(task, encoder).score, classical(task.scored_by("f1"), encoder).score
    assert by_accuracy is not None
    assert by_f1 is not None
    assert by_accuracy >= 0.85
    assert by_f1 < by_accuracy - 0.15


def test_five_digits_of_which_a_hundred_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Support vectors on pixels have about 90% here, on oriented gradients about 94%."""
    monkeypatch.setattr(speclock.audits.classical, "HELD_OUT", 300)
    task = tasks.load("mnist:5,6,7,8,9@100/500")
    found = classical(task, FakeEncoder(modality="image"))
    assert task.measured(found.answers()) > 0.9
    assert "vectors" in found.name or "neighbours" in found.name


def test_tasks_beside_are_answered_too() -> None:
    task = poison(tasks.load("mnist:0,1,2@60/200"), "0")
    found = classical(task, FakeEncoder(modality="image"))
    clean = task.beside["clean"]
    answers = found.answers("test", clean)
    assert len(answers) == len(clean.test) > len(task.test)
    assert clean.measured(answers) > 0.8


@pytest.mark.parametrize(("labels", "chosen"), [([0, 1, 0, 1, 0, 1, 2], True), ([0, 1, 2], False)])
def test_a_class_of_one_example_is_never_held_out(
    labels: list[int], chosen: bool, encoder: FakeEncoder
) -> None:
    words = ["good", "bad", WORDS[0]]
    examples = Examples(
        texts([f"{words[label]} {WORDS[i + 1]}" for i, label in enumerate(labels)]), np.array(labels)
    )
    task = TextClassification("few", examples, examples, ("a", "b", "c"), Source("file", "few"))
    found = classical(task, encoder)
    assert (found.score is not None) == chosen
    assert np.array_equal(found.answers(), labels)


def test_folds_hold_everyone_out_as_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speclock.audits.classical, "HELD_OUT", 150)
    labels = np.repeat([0, 1, 2], (30, 11, 1))
    folds = np.array(list(_folds(labels, seed=0)))
    assert set(folds[:, :-1].sum(0)) == {3}
    assert not folds[:, -1].any()
    for held in folds:
        assert 2 <= (labels[held] == 1).sum() <= 3  # eleven over five folds
        assert set(labels[~held]) == {0, 1, 2}


# -- what is read ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokenizer", [word_tokenizer(), ByT5Tokenizer()], ids=["fast", "slow"])
def test_what_is_beyond_the_models_tokens_is_not_seen(tokenizer: Any) -> None:
    length = 12 if tokenizer.is_fast else 4 * 10 + 1  # bytes: every word has four with its space
    seen = classical(planted(at=5, max_length=length), FakeEncoder(tokenizer=tokenizer))
    beyond = classical(planted(at=12, max_length=length), FakeEncoder(tokenizer=tokenizer))
    assert seen.task.measured(seen.answers()) > 0.9
    assert beyond.task.measured(beyond.answers()) < 0.65


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("tokenizer", [word_tokenizer(), ByT5Tokenizer()], ids=["fast", "slow"])
def test_the_rows_are_made_of_the_tokens_that_the_model_is_fed(
    tokenizer: Any, pairs: bool, side: str, encoder: FakeEncoder
) -> None:
    tokenizer.truncation_side = side
    rng = np.random.default_rng(3)
    lengths = [(2, 3), (5, 5), (9, 4), (3, 12), (20, 20)]
    rows: list[Text] = [(" ".join(some_words(rng, a)), " ".join(some_words(rng, b))) for a, b in lengths]
    inputs = texts(rows if pairs else [row[0] for row in rows])
    examples = Examples(inputs, np.arange(5) % 2)
    task = TextClassification("cut", examples, examples, ("a", "b"), Source("file", "cut"), max_length=11)
    cut = read(task, examples, FakeEncoder(tokenizer=tokenizer))
    for row, whole in zip(cut, rows, strict=True):
        fed = tokenizer(*(whole if pairs else whole[:1]), truncation=True, max_length=11)["input_ids"]
        assert tokenizer(*row)["input_ids"] == fed


def test_an_image_model_reads_no_texts(encoder: FakeEncoder) -> None:
    with pytest.raises(InputError, match="made of texts"):
        classical(planted(at=3), FakeEncoder(modality="image"))
    with pytest.raises(InputError, match="no tokenizer"):
        classical(planted(at=3), FakeEncoder())
