"""Tiny random checkpoints, written once in Hugging Face's own way."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    ResNetConfig,
    ResNetForImageClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)

VOCABULARY = [
    "[PAD]",
    "[UNK]",
    "[EOS]",
    "the",
    "cat",
    "sat",
    "on",
    "a",
    "mat",
    "with",
    "its",
    "hat",
    "and",
    "all",
]
SMALL = {
    "vocab_size": 32,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 40,
}


def _tokenizer(**special: str) -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(VOCABULARY)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", eos_token="[EOS]", **special)


def _module(family: str) -> Any:
    """A random module of the family."""
    torch.manual_seed(7)
    match family:
        case "bert":
            return BertForSequenceClassification(
                BertConfig(**SMALL, num_labels=3, id2label=dict(enumerate("xyz")))
            )
        case "bert-backbone":
            return BertModel(BertConfig(**SMALL))
        case "roberta":
            return RobertaForSequenceClassification(RobertaConfig(**SMALL, pad_token_id=0))
        case "deberta":
            return DebertaV2ForSequenceClassification(DebertaV2Config(**SMALL))
        case "llama":
            return LlamaForCausalLM(LlamaConfig(**SMALL, tie_word_embeddings=True))
        case "resnet":
            config = ResNetConfig(embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic")
            return ResNetForImageClassification(config)
    raise KeyError(family)


def _write(family: str, folder: Path, dtype: torch.dtype = torch.float32, **options: Any) -> Path:
    _module(family).to(dtype).save_pretrained(folder, **options)
    if family != "resnet":
        _tokenizer(**({} if family == "llama" else {"pad_token": "[PAD]"})).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny BERT classifier with labels x, y, z."""
    return _write("bert", tmp_path / "bert")


@pytest.fixture
def tiny() -> Callable[[str], Any]:
    """Builds the random module of a family."""
    return _module


@pytest.fixture
def tiny_tokenizer() -> Callable[..., PreTrainedTokenizerFast]:
    """Builds a tokenizer of a dozen words."""
    return _tokenizer


@pytest.fixture
def write() -> Callable[..., Path]:
    """Writes a family's module, and its tokenizer where it reads text, to a folder."""
    return _write
