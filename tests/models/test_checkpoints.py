"""Round trips through files, and what is refused on the way in and out."""

from __future__ import annotations

import json
import os
import pickle
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn

from speclock.errors import InputError
from speclock.models import fingerprint, identity, load, save, wrap

WORDS = ["the cat sat", "a hat on a mat and all"]


def answer(module: Any, tokenizer: Any = None) -> torch.Tensor:
    with torch.no_grad():
        if tokenizer is None:
            return module(
                torch.linspace(-1, 1, 2 * 3 * 32 * 32, dtype=module.dtype).reshape(2, 3, 32, 32)
            ).logits
        return module(**tokenizer(WORDS, padding=True, return_tensors="pt")).logits


# -- round trips -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("family", "kind", "auto"),
    [
        ("bert", "classification", transformers.AutoModelForSequenceClassification),
        ("llama", "classification", transformers.AutoModelForSequenceClassification),
        ("llama", "causal-lm", transformers.AutoModelForCausalLM),
        ("resnet", "classification", transformers.AutoModelForImageClassification),
    ],
)
def test_a_saved_model_answers_the_same_from_pretrained(
    family: str, kind: Any, auto: Any, dtype: torch.dtype, tmp_path: Path, write: Any
) -> None:
    model = load(write(family, tmp_path / "base", dtype), kind=kind)
    save(model, tmp_path / "out", {"speclock.json": "{}"})
    again = auto.from_pretrained(tmp_path / "out")
    tokenizer = None
    if model.modality == "text":
        tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert again.dtype == dtype
    assert torch.equal(answer(model.module, model.tokenizer), answer(again.eval(), tokenizer))
    assert fingerprint(load(tmp_path / "out", kind=kind)) == fingerprint(model)
    assert (tmp_path / "out" / "speclock.json").read_text() == "{}"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["base", "out"]


def test_tied_weights_are_saved_once_and_stay_tied(tmp_path: Path, write: Any) -> None:
    model = load(write("llama", tmp_path / "base"), kind="causal-lm")
    save(model, tmp_path / "out")
    assert "lm_head.weight" not in load_file(tmp_path / "out" / "model.safetensors")
    again = load(tmp_path / "out", kind="causal-lm").module
    assert again.lm_head.weight.data_ptr() == again.model.embed_tokens.weight.data_ptr()


def test_labels_come_back(folder: Path, tmp_path: Path, tiny: Any, tiny_tokenizer: Any) -> None:
    model = load(folder)
    assert model.labels == ("x", "y", "z")
    save(model.with_head(("no", "yes"), 0), tmp_path / "out")
    assert load(tmp_path / "out").labels == ("no", "yes")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["label2id"] == {"no": 0, "yes": 1}
    save(wrap(tiny("bert"), tiny_tokenizer(pad_token="[PAD]"), labels=("p", "q", "r")), tmp_path / "named")
    assert load(tmp_path / "named").labels == ("p", "q", "r")


def test_load_gives_the_head_that_labels_ask_for(folder: Path, tmp_path: Path, write: Any) -> None:
    assert fingerprint(load(folder, labels=("x", "y", "z"))) == fingerprint(load(folder))
    other = load(folder, labels=("a", "b", "c"))
    assert fingerprint(other) == fingerprint(load(folder).with_head(("a", "b", "c"), 0))
    unnamed = write("roberta", tmp_path / "unnamed")
    named = load(unnamed, labels=("no", "yes"))
    assert identity(named).weights == identity(load(unnamed)).weights
    assert named.module.config.id2label == {0: "no", 1: "yes"}
    with pytest.raises(InputError, match="a causal language model has none"):
        load(folder, labels=("a", "b"), kind="causal-lm")


def test_shards_load_as_one(tmp_path: Path, write: Any) -> None:
    whole = load(write("bert", tmp_path / "whole"))
    shards = write("bert", tmp_path / "shards", max_shard_size="4KB")
    assert len(list(shards.glob("*.safetensors"))) > 1
    assert fingerprint(load(shards)) == fingerprint(whole)


def test_a_bare_encoder_gets_a_fresh_head_quietly(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], write: Any, tiny: Any
) -> None:
    folder = write("bert-backbone", tmp_path / "encoder")
    noise = torch.get_rng_state()
    capfd.readouterr()
    model = load(folder, seed=4)
    assert torch.equal(torch.get_rng_state(), noise)
    assert capfd.readouterr() == ("", "")
    assert model.labels is None
    assert type(model.module).__name__ == "BertForSequenceClassification"
    assert fingerprint(load(folder, seed=4)) == fingerprint(model)
    assert fingerprint(load(folder, seed=5)) != fingerprint(model)
    assert torch.equal(
        model.module.bert.embeddings.word_embeddings.weight,
        tiny("bert-backbone").embeddings.word_embeddings.weight,
    )


def test_a_language_model_becomes_a_classifier_that_can_pad(tmp_path: Path, write: Any) -> None:
    model = load(write("llama", tmp_path / "llama"), labels=("a", "b", "c"))
    assert model.tokenizer.pad_token == "[EOS]"
    assert model.module.config.pad_token_id == model.tokenizer.pad_token_id == 2
    assert model.tokenizer.model_max_length == 40
    together = answer(model.module, model.tokenizer)
    with torch.no_grad():
        alone = model.module(**model.tokenizer(WORDS[0], return_tensors="pt")).logits
    assert torch.allclose(together[0], alone[0], atol=1e-6)


def test_plain_modules_come_back(tmp_path: Path) -> None:
    model = load("cnn-mlp", seed=3, labels=("a", "b", "c"))
    save(model, tmp_path / "net")
    again = load(tmp_path / "net")
    assert fingerprint(again) == fingerprint(model)
    assert (again.labels, again.image_size, again.channels) == (("a", "b", "c"), 28, 3)
    assert sorted(p.name for p in (tmp_path / "net").iterdir()) == ["config.json", "model.safetensors"]


def test_a_module_of_the_users_keeps_its_weights_but_needs_its_code(tmp_path: Path) -> None:
    tied = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
    tied[1].weight = tied[0].weight
    save(wrap(tied, modality="text"), tmp_path / "own")
    with pytest.raises(
        InputError, match=r"config\.json describes a 'torch.nn.modules.container.ModuleList', which only"
    ):
        load(tmp_path / "own")
    assert len(load_file(tmp_path / "own" / "model.safetensors")) == 3


def test_the_processor_of_an_image_model_is_kept(tmp_path: Path, write: Any) -> None:
    folder = write("resnet", tmp_path / "resnet")
    (folder / "preprocessor_config.json").write_text('{"image_processor_type": "ConvNextImageProcessor"}')
    save(load(folder), tmp_path / "out")
    assert "ConvNext" in (tmp_path / "out" / "preprocessor_config.json").read_text()


def test_fingerprint_knows_names_dtypes_shapes_and_bytes(folder: Path) -> None:
    model = load(folder)
    assert fingerprint(model) == fingerprint(model.copy())
    half, flipped, turned = model.copy(), model.copy(), model.copy()
    half.module.to(torch.bfloat16)
    flipped.module.classifier.bias.data[0].nextafter_(torch.tensor(1.0))
    turned.module.classifier.weight.data = turned.module.classifier.weight.data.T.contiguous()
    digests = [fingerprint(m) for m in (model, half, flipped, turned)]
    assert len(set(digests)) == 4
    assert all(len(d) == 64 for d in digests)


def test_a_hub_id_is_read_from_the_cache(write: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository, commit = tmp_path / "models--someone--tiny", "0123456789abcdef0123456789abcdef01234567"
    folder = write("bert", repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr("speclock.models.checkpoints.network", lambda: False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    model = load("someone/tiny")
    assert (model.source.kind, model.source.origin, model.labels) == ("hub", "someone/tiny", ("x", "y", "z"))
    assert fingerprint(model) == fingerprint(load(folder))


def test_importing_the_room_costs_no_torch() -> None:
    code = "import sys, speclock.models as m; print(len(m.MODELS), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["5", "False"]


# -- what load refuses -----------------------------------------------------------------------------------


class Malicious:
    def __reduce__(self) -> Any:
        return os.mkdir, ("executed",)


def _truncate(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def _pickle(content: Any) -> Any:
    def spoil(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        (folder / "pytorch_model.bin").write_bytes(pickle.dumps(content))

    return spoil


def _tensor(name: str, change: Any) -> Any:
    def spoil(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        if change is None:
            del tensors[name]
        else:
            tensors[name] = change(tensors[name])
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})

    return spoil


def _config(**entries: Any) -> Any:
    def spoil(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text()) | entries
        kept = {key: value for key, value in config.items() if value is not None}
        (folder / "config.json").write_text(json.dumps(kept))

    return spoil


def _text(file: str, content: str | None) -> Any:
    def spoil(folder: Path) -> None:
        if content is None:
            (folder / file).unlink()
        else:
            (folder / file).write_text(content)

    return spoil


def _nan(tensor: torch.Tensor) -> torch.Tensor:
    tensor[0] = torch.nan
    return tensor


BAD = {
    "no config": (_text("config.json", None), r"is not a model folder: it has no config\.json\."),
    "config not JSON": (
        _text("config.json", "{'a': 1}"),
        r"config\.json is not JSON \(Expecting .*Fetch or copy",
    ),
    "config a list": (_text("config.json", "[]"), r"config\.json holds a JSON list, not an object"),
    "no weights": (
        _text("model.safetensors", None),
        r"it has config\.json, but no model\.safetensors\. Fetch",
    ),
    "an adapter": (
        lambda folder: (_text("adapter_config.json", "{}")(folder), _text("config.json", None)(folder)),
        r"holds an adapter, not a model\. Merge it",
    ),
    "truncated": (_truncate, r"model\.safetensors cannot be read \(.*\)\. Fetch or copy it again\."),
    "git lfs pointer": (
        _text("model.safetensors", "version 1"),
        r"model\.safetensors cannot be read \(.*Fetch",
    ),
    "empty file": (_text("model.safetensors", ""), r"model\.safetensors cannot be read \(.*Fetch"),
    "pickle": (
        _pickle(Malicious()),
        r"pytorch_model\.bin is refused: .* could run any code\. Save the weights",
    ),
    "empty pickle": (
        lambda folder: (_pickle({})(folder), _text("pytorch_model.bin", "")(folder)),
        r"pytorch_model\.bin cannot be read \(.*Fetch",
    ),
    "NaN": (
        _tensor("classifier.bias", _nan),
        r"classifier\.bias has NaN weights\. Use a checkpoint from before",
    ),
    "infinite": (
        _tensor("bert.pooler.dense.bias", lambda t: t / 0.0 + torch.inf),
        r"bert\.pooler\.dense\.bias has (infinite|NaN) weights",
    ),
    "a weight missing": (
        _tensor("bert.encoder.layer.1.output.dense.bias", None),
        r"lacks weights that config\.json asks for: bert\.encoder\.layer\.1\.output\.dense\.bias\. Fetch",
    ),
    "another shape": (
        _config(vocab_size=31),
        r"cannot be loaded as AutoModelForSequenceClassification \(.*belong",
    ),
    "no tokenizer": (
        _text("tokenizer.json", None),
        r"has no tokenizer \(no tokenizer\.json.*beside config\.json\.",
    ),
    "broken tokenizer": (
        _text("tokenizer.json", "{}"),
        r"its tokenizer cannot be loaded \(.*Copy the tokenizer",
    ),
    "unknown type": (
        _config(model_type="bort2"),
        r"model_type 'bort2' is not known\. Use a model that transformers",
    ),
    "no type": (_config(model_type=None), r"config\.json: no model_type is not known"),
    "code of its own": (
        _config(model_type="mine", auto_map={"AutoConfig": "mine.C"}),
        r"model_type 'mine' needs code of its own, which speclock never runs",
    ),
    "quantised": (
        _config(quantization_config={"quant_method": "gptq"}),
        r"holds quantised weights, which cannot be",
    ),
    "not a classifier": (
        _config(model_type="clap"),
        r"transformers has no image or text classifier for clap models",
    ),
    "plain of no name": (
        _config(speclock_model="cnn"),
        r"config\.json describes a 'cnn', which only its own code",
    ),
    "plain of no size": (
        _config(speclock_model="cnn-mlp"),
        r'config\.json: "classes" is None; a cnn-mlp needs',
    ),
    "plain of other weights": (
        _config(speclock_model="cnn-mlp", classes=3),
        r"does not fit config\.json \(Error",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_folder_is_one_clear_line(
    case: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    spoil, message = BAD[case]
    spoil(folder)
    capfd.readouterr()
    monkeypatch.chdir(folder)
    with pytest.raises(InputError, match=message) as error:
        load(folder)
    assert str(folder) in str(error.value)
    assert "\n" not in str(error.value)
    assert not (folder / "executed").exists()
    assert capfd.readouterr() == ("", "")


def test_a_missing_shard_is_named(tmp_path: Path, write: Any) -> None:
    folder = write("bert", tmp_path / "shards", max_shard_size="4KB")
    lost = sorted(folder.glob("model-*.safetensors"))[1]
    lost.unlink()
    with pytest.raises(
        InputError, match=rf"index\.json names \d+ shards, but {lost.name} is missing\. Fetch"
    ):
        load(folder)
    (folder / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(InputError, match=r"index\.json is not an index of shards"):
        load(folder)


def test_a_pickle_of_tensors_alone_is_read(folder: Path) -> None:
    expected = fingerprint(load(folder))
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert fingerprint(load(folder)) == expected


def test_an_unreadable_config_is_one_clear_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, **_: Any) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(
        InputError, match=r"config\.json cannot be read \(Permission denied\)\. Mend its permissions"
    ):
        load(folder)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("minlm", "unknown model 'minlm'. Did you mean 'minilm'.* Or give a model folder, or a hub id"),
        ("./nowhere/model", "nowhere/model: no such folder"),
        ("weights.safetensors", "weights.safetensors: no such folder"),
        ("someone/minlm", "someone/minlm: no such folder, and no model on the hub: .* built-in 'minilm'"),
    ],
)
def test_a_name_that_leads_nowhere(name: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("speclock.models.checkpoints.network", lambda: False)
    with pytest.raises(InputError, match=message):
        load(name)


def test_a_file_is_no_model(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is a file; a model is a folder with config\.json"):
        load(folder / "model.safetensors")
    torch.save({"w": torch.ones(1)}, tmp_path / "weights.pt")
    with pytest.raises(InputError, match=r"is a file; .* hand it to speclock\.wrap"):
        load(tmp_path / "weights.pt")
    (tmp_path / "bad.pt").write_bytes(pickle.dumps(Malicious()))
    with pytest.raises(InputError, match=r"bad\.pt is refused: .* could run any code"):
        load(tmp_path / "bad.pt")
    assert not Path("executed").exists()


def test_what_reads_images_or_masks_is_no_language_model(tmp_path: Path, write: Any) -> None:
    for name in ("cnn-mlp", write("resnet", tmp_path / "resnet")):
        with pytest.raises(InputError, match="does not predict the next token"):
            load(name, kind="causal-lm")


# -- what save refuses -----------------------------------------------------------------------------------


@contextmanager
def full_disk(bytes_left: int) -> Iterator[None]:
    """No file may grow beyond this: the kernel itself refuses the write midway."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_left, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("source", ["folder", "cnn-mlp"])
def test_a_write_that_fails_midway_leaves_nothing(source: str, folder: Path, tmp_path: Path) -> None:
    model = load(folder if source == "folder" else source)
    out = tmp_path / "out"
    out.mkdir()
    with full_disk(10_000), pytest.raises(InputError, match=rf"cannot write {out}: File too large"):
        save(model, out)
    assert list(out.iterdir()) == []
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bert", "out"]


def test_a_full_disk_is_one_clear_line(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(folder)

    def refuse(self: Any, target: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(model.tokenizer), "save_pretrained", refuse)
    with pytest.raises(InputError, match=r"out: No space left on device\. Free some disk space"):
        save(model, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["bert"]


def test_a_folder_that_holds_something_is_left_alone(folder: Path) -> None:
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    with pytest.raises(InputError, match=r"already holds .*Choose another --out"):
        save(load("cnn-mlp"), folder)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
