"""A model is known again by its digests, part by part, and by nothing that is not of the model."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from speclock.models import Identity, Model, fingerprint, identity, load, save, wrap


@pytest.fixture
def model(folder: Path) -> Model:
    return load(folder)


def changed(one: Model, two: Model) -> set[str]:
    """The parts whose digests differ."""
    pairs = zip(Identity._fields, identity(one), identity(two), strict=True)
    return {name for name, a, b in pairs if a != b}


@pytest.mark.parametrize("family", ["bert", "bert-backbone", "roberta", "deberta", "llama", "resnet"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_what_is_saved_is_known_again(family: str, dtype: torch.dtype, write: Any, tmp_path: Path) -> None:
    first = load(write(family, tmp_path / "first", dtype))
    save(first, tmp_path / "second")
    second = load(tmp_path / "second")
    assert identity(second) == identity(first)
    headed = second.with_head(("a", "b", "c", "d"), 0)
    save(headed, tmp_path / "third")
    assert identity(load(tmp_path / "third")) == identity(headed)
    assert changed(headed, first) == {"weights", "configuration"}


def test_a_wrapped_module_is_known_again(tiny: Any, tiny_tokenizer: Any, tmp_path: Path) -> None:
    first = wrap(tiny("bert").eval(), tiny_tokenizer(pad_token="[PAD]"), labels=("p", "q", "r"))
    # Tokenizers keep how they were last called; it is not theirs.
    first.tokenizer(["the cat", "a"], padding=True, truncation=True, max_length=1)
    save(first, tmp_path / "out")
    assert identity(load(tmp_path / "out")) == identity(first)


def test_each_part_has_a_digest_of_its_own(model: Model, tiny_tokenizer: Any) -> None:
    weights, settings = model.copy(), model.copy()
    weights.module.classifier.bias.data[0] += 1
    settings.module.config.initializer_range = 1e4
    assert changed(model, weights) == {"weights"}
    assert changed(model, settings) == {"configuration"}
    assert changed(model, replace(model, labels=("x", "z", "y"))) == {"configuration"}
    assert changed(model, replace(model, tokenizer=tiny_tokenizer(pad_token="[EOS]"))) == {"tokenizer"}
    beside = {"preprocessor_config.json": json.dumps({"image_mean": [0.5]})}
    assert changed(model, replace(model, beside=beside)) == {"preprocessing"}
    for other in (weights, settings, replace(model, beside=beside)):
        assert fingerprint(other) != fingerprint(model)


def test_a_plain_modules_structure_is_its_configuration() -> None:
    def net(activation: nn.Module) -> Model:
        torch.manual_seed(0)
        return wrap(nn.Sequential(nn.Linear(2, 2), activation), modality="image")

    assert changed(net(nn.ReLU()), net(nn.ReLU())) == set()
    assert changed(net(nn.ReLU()), net(nn.Tanh())) == {"configuration"}
    assert changed(net(nn.LeakyReLU(0.1)), net(nn.LeakyReLU(0.2))) == {"configuration"}


def test_versions_paths_and_modes_are_not_of_the_model(model: Model) -> None:
    other = model.copy()
    other.module.train()
    other.module.config._name_or_path = "elsewhere"
    other.module.config.transformers_version = "0.0.1"
    other.module.config.architectures = ["AnotherName"]
    assert fingerprint(replace(other, name="elsewhere")) == fingerprint(model)


def test_files_beside_are_read_not_compared_by_their_spaces(model: Model) -> None:
    texts = ('{"a": 1, "b": [0.5]}', '{\n "b": [0.5],\n "a": 1\n}')
    one, two = (replace(model, beside={"preprocessor_config.json": text}) for text in texts)
    assert fingerprint(one) == fingerprint(two)


def test_the_weights_digest_is_that_of_older_cards() -> None:
    """SHA-256 over name, dtype, shape and bytes, in the names' order, as version 0.1 wrote it."""
    module = nn.Linear(2, 1)
    with torch.no_grad():
        module.weight.copy_(torch.tensor([[1.0, 2.0]]))
        module.bias.zero_()
    expected = hashlib.sha256(b"bias torch.float32 (1,)\n" + bytes(4))
    expected.update(b"weight torch.float32 (1, 2)\n" + bytes.fromhex("0000803f00000040"))
    model = wrap(module, modality="image")
    assert identity(model).weights == expected.hexdigest()
    assert fingerprint(model) == hashlib.sha256("\n".join(identity(model)).encode()).hexdigest()
