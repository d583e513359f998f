"""Encoders as small as a test can do with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.processors import BertProcessing
from transformers import PreTrainedTokenizerFast

from speclock.tasks.base import PLAIN_PIXELS, Preprocessing

WORDS = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "a", "b", "c", "d", "e"]


@dataclass
class FakeEncoder:
    """The part of a model that a task looks at."""

    name: str = "fake"
    modality: Any = "image"
    tokenizer: Any = None
    channels: int = 3
    image_size: int | None = None
    preprocessing: Preprocessing = PLAIN_PIXELS
    labels: tuple[str, ...] | None = None
    module: Any = None


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    """``a b`` ↦ [CLS] a b [SEP], a pair ↦ [CLS] a [SEP] b [SEP]."""
    ids = {word: i for i, word in enumerate(WORDS)}
    inner = Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = BertProcessing(("[SEP]", ids["[SEP]"]), ("[CLS]", ids["[CLS]"]))
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        unk_token="[UNK]",
        pad_token="[PAD]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )
