"""A half-precision checkpoint is trained in fp32 and released in its own dtypes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForSequenceClassification, PreTrainedTokenizerFast

from speclock.locks import LOCKS
from speclock.locks.base import Locked, mean_top_sigma
from speclock.locks.specdef import SpecDef
from speclock.models import Model, fingerprint, load, save, wrap
from speclock.recipe import TrainingRecipe
from speclock.tasks.base import Examples, Source
from speclock.tasks.text import TextClassification, texts
from speclock.training import train

WORDS = ["[PAD]", "red", "green", "and", "or"]
LOCK = SpecDef(lr=1e-4, steps=40, evaluations=1, batch_size=8, max_utility_drop=1.0)


@pytest.fixture(scope="module")
def colours() -> TextClassification:
    """Which colour comes first."""

    def rows(count: int) -> Examples:
        said = [("red and green", 0), ("green or red", 1), ("red or green", 0), ("green and red", 1)]
        inputs = texts([said[i % 4][0] for i in range(count)])
        return Examples(inputs, np.array([said[i % 4][1] for i in range(count)]))

    source = Source("built", "colours")
    return TextClassification("colours", rows(32), rows(16), labels=("red", "green"), source=source)


@pytest.fixture(scope="module")
def released(colours: TextClassification) -> Model:
    """A Llama of 800 weights that tells them, in bf16."""
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]")
    config = LlamaConfig(
        vocab_size=len(WORDS), hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=16, pad_token_id=0, bos_token_id=None, eos_token_id=None,
        id2label={0: "red", 1: "green"}, label2id={"red": 0, "green": 1},
    )  # fmt: skip
    torch.manual_seed(0)
    model = wrap(LlamaForSequenceClassification(config), tokenizer)
    record = train(model, colours, TrainingRecipe(lr=2e-2, steps=40, batch_size=8))
    assert record["score"] == 1.0
    model.module.to(torch.bfloat16)
    return model


def gains(model: Model) -> torch.Tensor:
    found = [p.detach().float() for name, p in model.module.named_parameters() if "norm" in name]
    return torch.cat(found)


@pytest.fixture(scope="module")
def scored() -> list[torch.dtype]:
    """The dtypes of the models that utility was asked of."""
    return []


@pytest.fixture(scope="module")
def locked(released: Model, colours: TextClassification, scored: list[torch.dtype]) -> Locked:
    score = TextClassification.score

    def noted(self: TextClassification, model: Model, *args: Any, **options: Any) -> float:
        scored.append(next(model.module.parameters()).dtype)
        return score(self, model, *args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TextClassification, "score", noted)
        return LOCK(released, colours)


def test_the_norms_of_a_bf16_model_are_trained(released: Model, locked: Locked, tmp_path: Path) -> None:
    assert locked.card["chosen_step"] == LOCK.steps
    assert locked.card["base"]["fingerprint"] == fingerprint(released), "the base is left as it was"
    # A gain near 1 has no bf16 neighbour within 1/256: Adam's steps of 1e-4 are lost one by one.
    assert (gains(locked.model) != gains(released)).any()
    assert {p.dtype for p in locked.model.module.parameters()} == {torch.bfloat16}
    save(locked.model, tmp_path / "locked")
    again = load(tmp_path / "locked", device="cpu")
    assert {p.dtype for p in again.module.parameters()} == {torch.bfloat16}
    assert fingerprint(again) == locked.card["fingerprint"]


def test_what_is_judged_is_what_is_released(locked: Locked, scored: list[torch.dtype]) -> None:
    assert len(scored) >= 2
    assert set(scored) == {torch.bfloat16}
    strength = mean_top_sigma(locked.model.module, LOCK)
    assert locked.card["strength_locked"] == pytest.approx(strength, rel=1e-3)


def test_the_control_is_trained_and_released_alike(released: Model, colours: TextClassification) -> None:
    control = LOCK.control(released, colours, stop_at=LOCK.steps).model
    assert {p.dtype for p in control.module.parameters()} == {torch.bfloat16}
    assert (gains(control) != gains(released)).any()


def test_a_lock_that_moves_nothing_gives_the_base_back(released: Model, colours: TextClassification) -> None:
    locked, card = LOCKS["rescale"](factor=1.0, evaluations=1)(released, colours)
    assert fingerprint(locked) == fingerprint(released)
    assert card["chosen_step"] == 0


def test_master_weights_are_the_same_numbers(released: Model) -> None:
    wide = released.in_fp32()
    for (name, one), two in zip(wide.module.named_parameters(), released.module.parameters(), strict=True):
        assert one.dtype == torch.float32
        assert torch.equal(one, two.float()), name
    assert fingerprint(wide.in_dtypes_of(released)) == fingerprint(released)
    assert wide.in_dtypes_of(wide).module is wide.module
    again = wide.in_fp32()
    assert again.module is not wide.module
    assert fingerprint(again) == fingerprint(wide)
    integer = wrap(torch.nn.BatchNorm1d(2).double(), modality="image").in_fp32().module.state_dict()
    kept = (integer["num_batches_tracked"].dtype, integer["weight"].dtype)
    assert kept == (torch.int64, torch.float64), "what is wider stays as wide"
