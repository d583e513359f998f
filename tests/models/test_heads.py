"""Fresh initial values and fresh heads."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaForSequenceClassification

from speclock.errors import InputError
from speclock.models import Model, fingerprint, load, named, save, wrap

FAMILIES = ["bert", "roberta", "deberta", "llama", "resnet", "cnn-mlp"]
HEADS = {
    "bert": {"classifier.weight", "classifier.bias"},
    "roberta": {f"classifier.{part}.{kind}" for part in ("dense", "out_proj") for kind in ("weight", "bias")},
    "deberta": {f"{part}.{kind}" for part in ("classifier", "pooler.dense") for kind in ("weight", "bias")},
    "llama": {"score.weight"},
    "resnet": {"classifier.1.weight", "classifier.1.bias"},
    "cnn-mlp": {"mlp.6.weight", "mlp.6.bias"},
}


@pytest.fixture
def model(tiny: Any, tiny_tokenizer: Any) -> Callable[[str], Model]:
    """Builds the random model of a family."""

    def build(family: str) -> Model:
        if family == "cnn-mlp":
            return load("cnn-mlp")
        module = tiny(family)
        if family == "llama":
            module.config.pad_token_id = 0
            module = LlamaForSequenceClassification(module.config)
        return wrap(module.eval(), None if family == "resnet" else tiny_tokenizer(pad_token="[PAD]"))

    return build


def state(model: Model) -> dict[str, torch.Tensor]:
    return model.module.state_dict()


def logits(model: Model) -> torch.Tensor:
    with torch.no_grad():
        if model.modality == "text":
            out = model.module(
                **model.tokenizer(["the cat", "a hat on a mat"], padding=True, return_tensors="pt")
            )
        else:
            side = model.image_size or 32
            out = model.module(torch.linspace(-1, 1, 2 * 3 * side**2).reshape(2, 3, side, side))
    return getattr(out, "logits", out)


@pytest.mark.parametrize("family", FAMILIES)
def test_scratch_is_deterministic_and_all_new(family: str, model: Any) -> None:
    base = model(family)
    before, noise = fingerprint(base), torch.get_rng_state()
    one, again, other = base.scratch(1), base.scratch(1), base.scratch(2)
    assert torch.equal(torch.get_rng_state(), noise)
    assert fingerprint(base) == before
    assert fingerprint(one) == fingerprint(again)
    assert fingerprint(one) != fingerprint(other)
    for (name, new), old in zip(state(one).items(), state(base).values(), strict=True):
        assert new.dtype == old.dtype
        # Biases and norms start at constants; a matrix that is equal was not drawn anew.
        assert new.ndim < 2 or not torch.equal(new, old), name


@pytest.mark.parametrize("family", FAMILIES)
def test_copies_of_an_architecture_get_the_same_head(family: str, model: Any) -> None:
    base = model(family)
    before, noise = fingerprint(base), torch.get_rng_state()
    headed = [m.with_head(("a", "b", "c", "d"), 5) for m in (base, base.scratch(1), base.copy())]
    assert torch.equal(torch.get_rng_state(), noise)
    assert fingerprint(base) == before
    changed = {
        name
        for name, value in state(headed[0]).items()
        if not torch.equal(value, state(base).get(name, value))
    }
    fresh = {name for name in HEADS[family] if name.endswith("weight")}
    assert fresh <= changed <= HEADS[family]
    for other in headed[1:]:
        assert all(torch.equal(state(headed[0])[name], state(other)[name]) for name in HEADS[family])
    different = base.with_head(("a", "b", "c", "d"), 6)
    assert all(not torch.equal(state(headed[0])[name], state(different)[name]) for name in fresh)
    assert headed[0].labels == ("a", "b", "c", "d")
    assert logits(headed[0]).shape == (2, 4)
    assert logits(headed[0]).isfinite().all()
    if family != "cnn-mlp":
        config = headed[0].module.config
        assert (config.num_labels, config.id2label[3], config.label2id["d"]) == (4, "d", 3)
        assert base.module.config.num_labels in (2, 3)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_body_is_put_under_the_other_head(family: str, model: Any) -> None:
    base = model(family)
    attacked = base.scratch(3).with_head(("a", "b", "c", "d"), 0)
    judged = attacked.with_head_of(base)
    for name, value in state(judged).items():
        assert torch.equal(value, state(base if name in HEADS[family] else attacked)[name]), name
    same = base.scratch(3)
    assert fingerprint(same.with_head_of(base)) == fingerprint(same)


def test_half_precision_is_kept(model: Any) -> None:
    base = model("llama")
    base.module.to(torch.bfloat16)
    base.module.model.rotary_emb.inv_freq = base.module.model.rotary_emb.inv_freq.float()
    scratch = base.scratch(0)
    assert {p.dtype for p in scratch.module.parameters()} == {torch.bfloat16}
    assert scratch.module.model.rotary_emb.inv_freq.dtype == torch.float32
    assert base.with_head(("a", "b"), 0).module.score.weight.dtype == torch.bfloat16


def test_a_new_head_is_in_the_mode_of_its_module(model: Any) -> None:
    base = model("roberta")
    assert not base.with_head(("a", "b"), 0).module.classifier.dropout.training
    base.module.train()
    assert base.with_head(("a", "b"), 0).module.classifier.dropout.training


class Scaled(nn.Module):
    """A module with a parameter that no reset draws."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((4,), 2.0))
        self.linear = nn.Linear(4, 2)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.linear(self.scale * pixel_values)


def test_a_parameter_that_nothing_initialises_is_named() -> None:
    base = wrap(Scaled(), modality="image")
    with pytest.raises(InputError, match=r"Scaled cannot be freshly initialised.* draws scale\. .*build="):
        base.scratch(0)
    assert torch.equal(base.module.scale, torch.full((4,), 2.0))


class Buffered(nn.Module):
    """A module whose features are no parameters."""

    def __init__(self, persistent: bool) -> None:
        super().__init__()
        self.register_buffer("features", torch.full((4, 4), 2.0), persistent=persistent)
        self.linear = nn.Linear(4, 2)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.linear(pixel_values @ self.features)


def test_a_buffer_that_a_checkpoint_holds_may_be_learnt_and_is_not_kept() -> None:
    with pytest.raises(InputError, match=r"draws features\. .*build="):
        wrap(Buffered(persistent=True), modality="image").scratch(0)
    computed = wrap(Buffered(persistent=False), modality="image").scratch(0)
    assert torch.equal(computed.module.features, torch.full((4, 4), 2.0))
    normed = wrap(nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 2)), modality="image")
    normed.module[0].running_mean.fill_(7)
    assert normed.scratch(0).module[0].running_mean.abs().max() == 0


def test_build_makes_what_no_reset_can_and_follows_the_head() -> None:
    base = wrap(Scaled(), modality="image", build=Scaled)
    assert torch.equal(base.scratch(0).module.scale, torch.full((4,), 2.0))
    headed = base.with_head(("a", "b", "c"), 0)
    assert headed.scratch(0).module.linear.out_features == 3
    assert fingerprint(headed.scratch(0)) == fingerprint(headed.scratch(0))


def test_attention_of_torch_is_reset() -> None:
    base = wrap(nn.TransformerEncoderLayer(8, 2, 16), modality="text")
    before = copy.deepcopy(base.module.state_dict())
    after = base.scratch(0).module.state_dict()
    assert not torch.equal(before["self_attn.in_proj_weight"], after["self_attn.in_proj_weight"])


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.Conv2d(1, 2, 3), "Conv2d has no nn.Linear, so no head"),
        ("llama", 'LlamaForCausalLM predicts tokens .* kind="classification"'),
        ("bert-backbone", "BertModel has no classification head. Use its …ForSequenceClassification"),
    ],
    ids=["plain", "language model", "encoder"],
)
def test_a_module_without_a_head_is_refused(module: nn.Module | str, message: str, tiny: Any) -> None:
    if isinstance(module, str):
        module = tiny(module)
    with pytest.raises(InputError, match=message):
        wrap(module, modality="text").with_head(("a", "b"), 0)


@pytest.mark.parametrize("labels", [(), ("only",), ("twice", "twice")])
def test_labels_that_cannot_name_outputs_are_refused(labels: tuple[str, ...]) -> None:
    with pytest.raises(InputError, match="at least two, all different"):
        load("cnn-mlp").with_head(labels, 0)


def test_wrap_tells_the_modality(tiny: Any, tiny_tokenizer: Any) -> None:
    grey: Any = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(2, 2))
    assert (wrap(grey).modality, wrap(grey).channels) == ("image", 1)
    assert wrap(grey).module is grey
    text = wrap(tiny("bert"), tiny_tokenizer(pad_token="[PAD]"))
    assert (text.modality, text.labels, text.source.kind) == ("text", ("x", "y", "z"), "module")
    with pytest.raises(InputError, match="Linear: give wrap a tokenizer, or say modality="):
        wrap(nn.Linear(2, 2))
    with pytest.raises(InputError, match=r"tokenizer cannot pad\. Set tokenizer\.pad_token"):
        wrap(tiny("bert"), tiny_tokenizer())


def test_outputs_are_named_in_their_order(model: Callable[[str], Model], tmp_path: Path) -> None:
    unnamed = model("roberta")
    assert unnamed.labels == ("LABEL_0", "LABEL_1")
    called = named(unnamed, ("no", "yes"))
    assert called.labels == ("no", "yes")
    assert called.module.config.id2label == {0: "no", 1: "yes"}
    assert unnamed.module.config.id2label == {0: "LABEL_0", 1: "LABEL_1"}
    assert torch.equal(logits(called), logits(unnamed))
    save(called, tmp_path / "called")
    assert load(tmp_path / "called").labels == ("no", "yes")

    plain = named(model("cnn-mlp"), tuple("abcdefghij"))
    assert plain.labels == tuple("abcdefghij")


@pytest.mark.parametrize(
    ("labels", "line"),
    [
        (("x", "y"), "module has 3 outputs; x, y is not a name for each."),
        (("a", "b", "a"), "module has 3 outputs; a, b, a is not a name for each."),
        (("z", "y", "x"), "module says that its outputs are x, y, z, in this order."),
    ],
)
def test_names_that_outputs_cannot_have(
    model: Callable[[str], Model], labels: tuple[str, ...], line: str
) -> None:
    with pytest.raises(InputError) as caught:
        named(model("bert"), labels)
    assert str(caught.value).startswith(line)


def test_a_fresh_head_has_no_outputs_to_name(write: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no head trained for a task"):
        named(load(write("bert-backbone", tmp_path / "bare")), ("a", "b"))
