"""The recipe is the base's: whatever a locked folder says beside its weights is listed, and does no harm."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import BertForSequenceClassification, ViTConfig, ViTForImageClassification

from speclock.models import Model, Transplant, load, save, transplanted, wrap

WORDS = ["the cat sat", "a hat on a mat and all"]
PIXELS = torch.linspace(-1, 1, 2 * 3 * 8 * 8).reshape(2, 3, 8, 8)


@pytest.fixture
def base(folder: Path) -> Model:
    return load(folder)


@pytest.fixture
def trained(base: Model) -> Model:
    """The base with other weights: what an honest lock leaves."""
    model = base.copy()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.module.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.fixture
def published(trained: Model, tmp_path: Path) -> Path:
    save(trained, tmp_path / "locked")
    return tmp_path / "locked"


@torch.no_grad()
def logits(model: Model) -> torch.Tensor:
    module = model.module.eval()
    if model.modality == "image":
        out = module(PIXELS)
    else:
        out = module(**model.tokenizer(WORDS, padding=True, return_tensors="pt"))
    return getattr(out, "logits", out)


def assert_harmless(found: Transplant, base: Model, weights: Model) -> None:
    """The transplant is the base with the other's weights, in all that an attack sees of it."""
    twin = base.copy()
    twin.module.load_state_dict(weights.module.state_dict())
    assert torch.equal(logits(found.model), logits(twin))
    heads = [model.with_head(("no", "yes"), 3).module.state_dict() for model in (found.model, base)]
    assert torch.equal(heads[0]["classifier.weight"], heads[1]["classifier.weight"])
    for one, two in zip(found.model.module.modules(), base.module.modules(), strict=True):
        assert type(one) is type(two)
        assert getattr(one, "p", None) == getattr(two, "p", None)
    assert found.model.labels == base.labels
    assert transplanted(base, found.model).differences == []
    json.dumps(found.differences)


def told(found: Transplant, part: str, key: str) -> tuple[Any, Any]:
    """What the two have, of the one difference that matters in this key."""
    (hit,) = [d for d in found.differences if d.part == part and d.key == key]
    assert hit.matters
    return hit.base, hit.locked


def edit(file: Path, **entries: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | entries))


# -- an honest lock --------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["bert", "roberta", "deberta", "llama", "resnet", "bert-backbone"])
def test_an_honest_copy_differs_in_nothing(family: str, write: Any, tmp_path: Path) -> None:
    base = load(write(family, tmp_path / "base"))
    save(base.copy(), tmp_path / "locked")
    locked = load(tmp_path / "locked")
    found = transplanted(base, locked)
    assert found.differences == []
    assert (found.model.name, found.model.source) == (locked.name, locked.source)


def test_a_plain_module_is_transplanted_too(tmp_path: Path) -> None:
    base = load("cnn-mlp", labels=("a", "b", "c"))
    save(base.scratch(1), tmp_path / "locked")
    found = transplanted(base, load(tmp_path / "locked"))
    assert found.differences == []
    assert found.model.module.state_dict().keys() == base.module.state_dict().keys()
    assert torch.equal(found.model.module.mlp[0].weight, base.scratch(1).module.mlp[0].weight)


def test_neither_model_is_changed_nor_shared(base: Model, trained: Model) -> None:
    before = [{k: v.clone() for k, v in m.module.state_dict().items()} for m in (base, trained)]
    found = transplanted(base, trained).model
    with torch.no_grad():
        for parameter in found.module.parameters():
            parameter.zero_()
    found.module.config.initializer_range = 7.0
    for model, state in zip((base, trained), before, strict=True):
        assert all(torch.equal(model.module.state_dict()[name], value) for name, value in state.items())
        assert model.module.config.initializer_range == 0.02


# -- fakes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "usual", "planted"),
    [
        ("initializer_range", 0.02, 1e4),
        ("hidden_dropout_prob", 0.1, 0.9),
        ("hidden_act", "gelu", "relu"),
        ("layer_norm_eps", 1e-12, 0.5),
        ("num_attention_heads", 2, 8),
    ],
)
def test_a_setting_of_the_locked_folder_is_not_used(
    key: str, usual: Any, planted: Any, base: Model, trained: Model, published: Path
) -> None:
    edit(published / "config.json", **{key: planted})
    found = transplanted(base, load(published))
    assert told(found, "configuration", key) == (usual, planted)
    assert_harmless(found, base, trained)


def test_dropout_planted_in_the_modules_alone_is_seen(base: Model, trained: Model) -> None:
    for module in trained.module.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.9
    found = transplanted(base, trained)
    count = sum(isinstance(module, nn.Dropout) for module in base.module.modules())
    assert told(found, "configuration", f"bert.embeddings.dropout.p and {count - 1} more") == (0.1, 0.9)
    assert_harmless(found, base, trained)


def test_a_shuffled_vocabulary_is_not_used(base: Model, trained: Model, published: Path) -> None:
    file = published / "tokenizer.json"
    content = json.loads(file.read_text())
    vocab = content["model"]["vocab"]
    vocab["cat"], vocab["hat"] = vocab["hat"], vocab["cat"]
    file.write_text(json.dumps(content))
    found = transplanted(base, load(published))
    told(found, "tokenizer", "model")
    ids = told(found, "tokenizer", "ids of 'the cat sat on a mat with ITS hat, and all'")
    assert (ids[0][1], ids[1][1]) == (vocab["hat"], vocab["cat"])
    assert found.model.tokenizer is base.tokenizer
    assert_harmless(found, base, trained)


def test_lower_casing_and_the_side_of_truncation_are_the_bases(
    base: Model, trained: Model, published: Path
) -> None:
    file = published / "tokenizer.json"
    edit(file, normalizer={"type": "Lowercase"})
    edit(published / "tokenizer_config.json", truncation_side="left")
    found = transplanted(base, load(published))
    assert told(found, "tokenizer", "normalizer") == (None, {"type": "Lowercase"})
    assert told(found, "tokenizer", "truncation_side") == ("right", "left")
    assert_harmless(found, base, trained)


class Mute:
    """A tokenizer that cannot be called."""

    padding_side = truncation_side = "right"
    special_tokens_map: dict[str, str] = {}  # noqa: RUF012 - as transformers has it
    model_max_length = 40

    def get_vocab(self) -> dict[str, int]:
        return {"the": 0}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise KeyError("the")


def test_a_tokenizer_that_fails_is_a_difference(base: Model, trained: Model) -> None:
    found = transplanted(base, replace(trained, tokenizer=Mute()))
    told(found, "tokenizer", "model")
    assert any(d.locked == "KeyError: 'the'" for d in found.differences)
    assert_harmless(found, base, trained)


class Numb(BertForSequenceClassification):
    """Answers as a BERT does, with hardly a gradient."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        out = super().forward(*args, **kwargs)
        out.logits = out.logits.detach() + 0 * out.logits
        return out


def test_a_forward_of_the_locked_models_own_is_not_used(base: Model, trained: Model) -> None:
    module = Numb(base.module.config)
    module.load_state_dict(trained.module.state_dict())
    found = transplanted(base, replace(trained, module=module.eval()))
    one, two = told(found, "architecture", "class")
    assert one.endswith("BertForSequenceClassification")
    assert two.endswith("Numb")
    assert_harmless(found, base, trained)


def test_hooks_patches_and_frozen_weights_stay_behind(base: Model, trained: Model) -> None:
    trained.module.classifier.register_forward_hook(lambda module, inputs, out: out.detach())
    trained.module.bert.forward = lambda *args, **kwargs: None
    trained.module.requires_grad_(False)
    expected = base.copy()
    expected.module.load_state_dict(trained.module.state_dict())
    found = transplanted(base, trained)
    assert told(found, "configuration", "classifier.hooks") == (0, 1)
    assert told(found, "configuration", "bert.forward")[0] is None
    (frozen,) = [d for d in found.differences if d.part == "modes"]
    assert (frozen.base, frozen.locked, frozen.matters) == (True, False, True)
    assert torch.equal(logits(found.model), logits(expected))
    assert all(parameter.requires_grad for parameter in found.model.module.parameters())


def test_training_mode_alone_matters_to_nobody(base: Model, trained: Model) -> None:
    trained.module.train()
    (mode,) = transplanted(base, trained).differences
    assert (mode.part, mode.base, mode.locked, mode.matters) == ("modes", False, True, False)


def test_weights_that_nothing_reads_are_listed(write: Any, tmp_path: Path) -> None:
    """The unlocked weights under other names, or in a second file, would be no lock at all."""
    base = load(write("bert", tmp_path / "base"))
    leaky = write("bert", tmp_path / "locked")
    torch.save(base.module.state_dict(), leaky / "unlocked.bin")
    tensors = load_file(leaky / "model.safetensors")
    save_file(
        {**tensors, **{f"unlocked.{name}": value.clone() for name, value in tensors.items()}},
        leaky / "model.safetensors",
        {"format": "pt"},
    )
    one, two = told(transplanted(base, load(leaky)), "files", "unread weights")
    assert one == []
    assert "unlocked.bin" in str(load(leaky).unread)
    assert "unlocked.classifier.bias" in load(leaky).unread
    assert two
    (harmless,) = [d for d in transplanted(load(leaky), base).differences if d.part == "files"]
    assert not harmless.matters, "what only the base's folder has is no gift"


# -- labels and dtypes ---------------------------------------------------------------------------------------


def test_labels_in_another_order_are_put_in_the_bases(base: Model, trained: Model) -> None:
    order = [2, 0, 1]
    turned = replace(trained.copy(), labels=tuple("xyz"[i] for i in order))
    with torch.no_grad():
        for parameter in turned.module.classifier.parameters():
            parameter.copy_(parameter[order].clone())
    turned.module.config.id2label = dict(enumerate(turned.labels or ()))
    found = transplanted(base, turned)
    (difference,) = found.differences
    assert difference == ("labels", "order", ["x", "y", "z"], ["z", "x", "y"], False)
    assert_harmless(found, base, trained)


def test_other_labels_matter(base: Model, trained: Model) -> None:
    found = transplanted(base, replace(trained, labels=("x", "y", "w")))
    assert told(found, "labels", "names") == (["x", "y", "z"], ["x", "y", "w"])
    assert found.model.labels == base.labels


@pytest.mark.parametrize("narrow", ["base", "locked", "both"])
def test_weights_keep_their_dtype_where_both_agree_else_fp32(
    narrow: str, base: Model, trained: Model
) -> None:
    if narrow != "locked":
        base.module.bfloat16()
    if narrow != "base":
        trained.module.bfloat16()
    found = transplanted(base, trained)
    dtype = torch.bfloat16 if narrow == "both" else torch.float32
    assert {p.dtype for p in found.model.module.parameters()} == {dtype}
    assert torch.equal(found.model.module.classifier.weight.float(), trained.module.classifier.weight.float())
    assert [d.key for d in found.differences] == ([] if narrow == "both" else ["dtype"])
    assert not any(d.matters for d in found.differences)


# -- images -------------------------------------------------------------------------------------------------


@pytest.fixture
def vit(tmp_path: Path) -> Path:
    torch.manual_seed(3)
    config = ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
        image_size=8, patch_size=4, num_labels=3,
    )  # fmt: skip
    ViTForImageClassification(config).save_pretrained(tmp_path / "vit")
    processor = {"image_processor_type": "ViTImageProcessor", "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (tmp_path / "vit" / "preprocessor_config.json").write_text(json.dumps(processor))
    return tmp_path / "vit"


def test_the_image_processor_is_the_bases(vit: Path, tmp_path: Path) -> None:
    base = load(vit)
    save(base.scratch(4), tmp_path / "locked")
    assert transplanted(base, load(tmp_path / "locked")).differences == []
    edit(tmp_path / "locked" / "preprocessor_config.json", image_mean=[0.9] * 3)
    found = transplanted(base, load(tmp_path / "locked"))
    assert told(found, "preprocessing", "preprocessor_config.json: image_mean") == ([0.5] * 3, [0.9] * 3)
    keys = {d.key for d in found.differences}
    assert keys == {"preprocessor_config.json: image_mean", "pixels: mean"}, (
        "what the file says, and what it does"
    )
    assert_harmless(found, base, base.scratch(4))


def test_an_activation_of_a_plain_module_is_the_bases() -> None:
    def net(activation: Callable[[], nn.Module], p: float) -> Model:
        torch.manual_seed(0)
        layers = (nn.Conv2d(3, 4, 3), activation(), nn.Flatten(), nn.Dropout(p), nn.Linear(4 * 36, 3))
        return wrap(nn.Sequential(*layers).eval(), labels=("a", "b", "c"))

    base, locked = net(nn.ReLU, 0.1), net(nn.Tanh, 0.9)
    found = transplanted(base, locked)
    assert told(found, "architecture", "1.class")[1].endswith("Tanh")
    assert told(found, "configuration", "3.p") == (0.1, 0.9)
    assert torch.equal(logits(found.model), logits(base))


class Loose(nn.Linear):
    """A layer with a tensor of its own that is neither a parameter nor a buffer."""

    def __init__(self, size: float) -> None:
        super().__init__(4, 3)
        self.size = torch.full((4,), size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x * self.size)


def test_a_tensor_that_no_checkpoint_holds_is_seen_and_stays_the_locked_models() -> None:
    def net(size: float) -> Model:
        torch.manual_seed(0)
        layers = (nn.Conv2d(3, 4, 8), nn.Flatten(), Loose(size))
        return wrap(nn.Sequential(*layers).eval(), labels=("a", "b", "c"))

    base, locked, same = net(1.0), net(3.0), net(1.0)
    found = transplanted(base, locked)
    assert found.misfit is not None
    assert "2.size" in found.misfit.key
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(found.model.module(x), locked.module(x))
    assert transplanted(base, same).misfit is None


# -- another architecture ---------------------------------------------------------------------------------


class Chained(nn.Module):
    """The locked model's own layer in the place of a linear one: W̃ and what takes it back."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.raised = nn.Linear(layer.in_features, layer.out_features, bias=False)
        self.back = nn.Linear(layer.out_features, layer.out_features)
        with torch.no_grad():
            self.raised.weight.copy_(100 * layer.weight)
            self.back.weight.copy_(torch.eye(layer.out_features) / 100)
            self.back.bias.copy_(layer.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.back(self.raised(x))


def test_layers_of_the_locks_own_stay_under_the_bases_recipe(base: Model, trained: Model) -> None:
    before = logits(trained)
    layer = trained.module.bert.encoder.layer[0].output
    layer.dense = Chained(layer.dense)
    config = trained.module.config
    config.initializer_range, config.hidden_dropout_prob = 1e4, 0.9
    for module in trained.module.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.9
        if isinstance(module, nn.LayerNorm):
            module.eps = 0.5
    trained.module.bert.encoder.layer[1].intermediate.intermediate_act_fn = nn.Tanh()
    found = transplanted(base, trained)
    told(found, "architecture", "bert.encoder.layer.0.output.dense.weight")
    module = found.model.module
    assert isinstance(module.bert.encoder.layer[0].output.dense, Chained)
    assert {m.p for m in module.modules() if isinstance(m, nn.Dropout)} == {0.1}
    assert {m.eps for m in module.modules() if isinstance(m, nn.LayerNorm)} == {1e-12}
    assert (module.config.initializer_range, module.config.hidden_dropout_prob) == (0.02, 0.1)
    torch.testing.assert_close(logits(found.model), before, rtol=1e-3, atol=1e-4)
    heads = [model.with_head(("no", "yes"), 3).module.classifier.weight for model in (found.model, base)]
    assert torch.equal(*heads)


def test_weights_that_were_tied_and_are_no_more_are_another_architecture(write: Any, tmp_path: Path) -> None:
    base = load(write("llama", tmp_path / "llama"), kind="causal-lm")
    locked = base.copy()
    locked.module.lm_head.weight = nn.Parameter(2 * locked.module.lm_head.weight.detach())
    found = transplanted(base, locked)
    assert told(found, "architecture", "lm_head.weight") == ("tied to model.embed_tokens.weight", "untied")
    assert torch.equal(found.model.module.lm_head.weight, locked.module.lm_head.weight)
