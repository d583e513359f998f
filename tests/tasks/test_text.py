from __future__ import annotations

import numpy as np
import pytest
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers import models as tokenizer_models
from transformers import PreTrainedTokenizerFast

from speclock.errors import InputError
from speclock.sources import Source
from speclock.tasks.base import Examples
from speclock.tasks.text import Text, TextClassification, texts

from .conftest import FakeEncoder


def task_of(rows: list[Text], max_length: int = 128) -> TextClassification:
    examples = Examples(texts(rows), np.arange(len(rows)) % 2)
    return TextClassification(
        "toy", examples, examples, ("x", "y"), Source("file", "here"), max_length=max_length
    )


def text_encoder(tokenizer: PreTrainedTokenizerFast) -> FakeEncoder:
    return FakeEncoder(modality="text", tokenizer=tokenizer)


ROWS: dict[str, list[Text]] = {
    "single": ["a b c d e", "a", "z a"],
    "pairs": [("a b", "c"), ("a", "b c d e"), ("d", "e")],
}


@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
@pytest.mark.parametrize("side", ["right", "left"])
def test_a_batch_is_what_the_tokenizer_makes_of_it(
    rows: list[Text], side: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    tokenizer.padding_side = side
    task = task_of(rows, max_length=6)
    batch = task.encode(task.train, text_encoder(tokenizer))
    columns = [list(c) for c in zip(*rows, strict=True)] if isinstance(rows[0], tuple) else [rows]
    dense = tokenizer(*columns, truncation=True, max_length=6, padding=True, return_tensors="pt")
    assert set(batch) == {*dense, "labels"}
    for name, values in dense.items():
        assert batch[name].tolist() == values.tolist(), name
    assert batch["labels"].tolist() == [0, 1, 0]


def test_a_text_is_tokenised_once(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    original = PreTrainedTokenizerFast.__call__

    def count(self: PreTrainedTokenizerFast, rows: list[str], **options: object) -> object:
        seen.extend(rows)
        return original(self, rows, **options)

    monkeypatch.setattr(PreTrainedTokenizerFast, "__call__", count)
    task = task_of(["a", "b", "a", "c"])
    for _ in range(3):
        list(task.batches(text_encoder(tokenizer), "train", 2))
    assert seen == ["a", "b", "c"]


def test_rows_do_not_depend_on_what_was_asked_before(tokenizer: PreTrainedTokenizerFast) -> None:
    task, encoder = task_of(["a b c", "d", "e e"]), text_encoder(tokenizer)
    collate = task.collate(encoder)
    collate([0, 2])
    assert collate([1, 0])["input_ids"].tolist() == [[1, 7, 2, 0, 0], [1, 4, 5, 6, 2]]


def test_a_subset_keeps_its_length_limit(tokenizer: PreTrainedTokenizerFast) -> None:
    task = task_of(["a b c d e"] * 4, max_length=4).limit(train=2)
    assert task.encode(task.train, text_encoder(tokenizer))["input_ids"].shape == (2, 4)


def test_a_tokenizer_without_padding_pads_with_its_end(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.pad_token = None
    tokenizer.eos_token = "[SEP]"
    task = task_of(["a b", "a"])
    batch = task.encode(task.train, text_encoder(tokenizer))
    assert batch["input_ids"].tolist() == [[1, 4, 5, 2], [1, 4, 2, 2]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]


def test_a_model_without_tokenizer_is_refused() -> None:
    task = task_of(["a", "b"])
    with pytest.raises(InputError, match="toy is a text task, but the model fake has no tokenizer"):
        task.encode(task.train, FakeEncoder())


def test_how_much_of_a_text_is_read_is_part_of_the_data() -> None:
    from dataclasses import replace

    from speclock.sources import Source
    from speclock.tasks.base import Examples
    from speclock.tasks.text import TextClassification, texts

    some = Examples(texts(["a b", "c d"]), np.array([0, 1]))
    task = TextClassification("t", some, some, ("x", "y"), Source("made", "here"))
    assert (
        replace(task, max_length=4).digest()
        != replace(task, max_length=16).digest()
        == replace(task, max_length=16).digest()
    )


def test_a_tokenizer_that_glues_two_texts_together_gets_a_line_break_between() -> None:
    words = {word: i for i, word in enumerate(["[UNK]", "a", "b", "\n"])}
    inner = Tokenizer(tokenizer_models.WordLevel(words, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    gluing = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="[UNK]", eos_token="[UNK]")
    task = task_of([("aa", "b"), ("a" * 9, "ba")], max_length=5)
    ids = task.encode(task.train, text_encoder(gluing))["input_ids"].tolist()
    assert ids[0][:4] == [1, 1, 3, 2]
    assert ids[1] == [1, 1, 1, 3, 2], "and it is not what is cut"
