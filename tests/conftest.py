"""A small real setting that the rooms above the models share: a cnn-mlp that reads digits."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers import models as tokenizer_models
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from speclock import tasks, wrap
from speclock.models import Model
from speclock.models.cnn_mlp import CnnMlp
from speclock.recipe import TrainingRecipe
from speclock.sources import Source
from speclock.tasks.base import Task
from speclock.training import train


@pytest.fixture(autouse=True)
def _on_the_cpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What loads a model without naming a device gets it on the CPU, but in tests of the accelerator."""
    if request.node.get_closest_marker("gpu") is None:
        monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)


@pytest.fixture(scope="session", autouse=True)
def _brief_floor() -> Iterator[None]:
    """What the classical floor is chosen by is cross-validated once, not five times, but where that is the subject."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("speclock.audits.classical.HELD_OUT", 1)
        yield


@pytest.fixture(scope="session")
def digits() -> Task:
    return tasks.load("mnist@800/300/300")


@pytest.fixture(scope="session")
def silhouettes() -> Task:
    """Another ten-class task, so a fresh head."""
    return tasks.load("kmnist@400/200/200")


class Strided(CnnMlp):
    """A cnn-mlp whose convolutions are narrower and take the pooling's steps: a fifth of the time."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__(classes)
        first, second = (nn.Conv2d(i, o, 3, stride=2, padding=1) for i, o in ((3, 8), (8, 16)))
        self.cnn = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), nn.Flatten())
        self.mlp[0] = nn.Linear(16 * 7 * 7, 128)


@pytest.fixture(scope="session")
def base(digits: Task) -> Model:
    """A small network that reads digits; never modified, which the tests of locks and attacks check."""
    torch.manual_seed(0)
    model = wrap(Strided().eval(), modality="image", labels=digits.labels)
    record = train(model, digits, TrainingRecipe(optimizer="adam", lr=1e-3, steps=150, batch_size=32))
    assert record["score"] > 0.8
    return model


def _by_bytes() -> PreTrainedTokenizerFast:
    """A token a byte, so that nats a token are nats a byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(tokenizer_models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", pad_token="<pad>")


@pytest.fixture(scope="session")
def writer() -> Model:
    """A language model of two layers that has learnt nothing, with a token a byte."""
    torch.manual_seed(0)
    tokenizer = _by_bytes()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=256,
        initializer_range=0.2,
        bos_token_id=tokenizer.bos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    source = Source("module", "writer")
    return Model(LlamaForCausalLM(config).eval(), "writer", "text", source, tokenizer=tokenizer, labels=())


class _NoValues(TorchDispatchMode):
    """What fake tensors cannot answer, the value of a number, is one: a check of values passes.

    Float64 is refused away from the CPU: not every device has it.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            return 1.0 if args[0].is_floating_point() else 1
        if func in (torch.ops.aten.equal.default, torch.ops.aten.allclose.default):
            return True
        out = func(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(out):
            if (
                isinstance(tensor, torch.Tensor)
                and tensor.dtype == torch.float64
                and tensor.device.type != "cpu"
            ):
                raise TypeError(f"{func}: {tensor.device} has no float64")
        return out


@pytest.fixture
def elsewhere() -> Iterator[torch.device]:
    """A device that is not the CPU, on any machine: tensors have shapes, dtypes and places, and no values.

    An operation on tensors of two devices raises, as on a real accelerator. Nothing can be differentiated there.
    """
    with warnings.catch_warnings():
        # Torch's own deepcopy asks a fake tensor for its address.
        warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor")
        with FakeTensorMode(), _NoValues(), torch.no_grad():
            yield torch.device("xpu:0")
