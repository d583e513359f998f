"""Fresh initial values: of a whole architecture, or of its classification head alone.

Everything is drawn on the CPU from the seed, whatever device the model is on, so that every machine and
every copy gets the same values; torch's global random state is left as it was.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from speclock.errors import InputError
from speclock.models.tensors import copied, placed, tensors


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Torch's CPU generator starts at ``seed`` inside, and is put back afterwards."""
    # torch.manual_seed would reseed the accelerators too, which nothing here draws from.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def fresh(module: nn.Module, seed: int, build: Callable[[], nn.Module] | None = None) -> nn.Module:
    """The architecture of ``module`` with initial weights, in the same dtypes and on the same devices.

    ``build`` makes it where given; a Hugging Face model is built from its configuration; any other module is
    copied and every submodule's ``reset_parameters`` called.
    Raises :class:`InputError` naming the parameters that no reset touches.
    """
    with seeded(seed), torch.device("cpu"):
        if build is not None:
            new = build()
        elif isinstance(module, PreTrainedModel):
            new = type(module)(copy.deepcopy(module.config))
        else:
            new = copied(module, lambda _, tensor: tensor.cpu())
            reset_(new)
    return matching(new, module).train(module.training)


def named_noise(name: str, like: torch.Tensor, deviation: float, seed: int) -> torch.Tensor:
    """Noise for the parameter of that name, normal, in the shape and dtype of ``like`` and on its device.

    Each name has a stream of its own: what is drawn for one parameter does not follow from the seed that torch would
    initialise the model with, nor from what other parameters there are. Keys have 128 bits: torch's own generator
    reads the low 32 of its seed alone, and so many can be tried in hours.
    """
    key = int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:16])
    stream = np.random.Generator(np.random.Philox(key=key))
    drawn = torch.from_numpy(np.asarray(stream.standard_normal(tuple(like.shape), dtype=np.float32)))
    return drawn.mul_(deviation).to(like)


def reset_(module: nn.Module, family: PreTrainedModel | None = None) -> None:
    """Draw every parameter anew: by every submodule's ``reset_parameters``, children before parents, and then
    by the rules of the Hugging Face ``family`` that the module is a part of.

    Buffers that a checkpoint holds count as parameters, since they may be as learnt; others are computed.
    Raises :class:`InputError` naming what neither touches.
    """
    saved = module.state_dict(keep_vars=True)
    parameters: list[tuple[str, torch.Tensor]] = list(module.named_parameters())
    parameters += [
        (name, buffer)
        for name, buffer in module.named_buffers()
        if name in saved and buffer.is_floating_point()
    ]
    with torch.no_grad():
        # NaN marks what has not been drawn yet; a look at who owns a reset would miss a parent that fills
        # its children, and believe one that forgets a parameter of its own.
        for _, parameter in parameters:
            parameter.fill_(torch.nan)
    for submodule in reversed(list(module.modules())):
        # Attention and the transformer of torch.nn keep theirs under a private name.
        reset = getattr(submodule, "reset_parameters", None) or getattr(submodule, "_reset_parameters", None)
        if callable(reset):
            reset()
    if family is not None:
        module.apply(family._init_weights)
    left = [name for name, parameter in parameters if not parameter.isfinite().all()]
    if left:
        raise InputError(
            f"{type(module).__name__} cannot be freshly initialised: no reset_parameters() draws "
            f"{', '.join(left)}. Give wrap(…, build=…) a function that builds the module untrained."
        )


# Which part is replaced for a task with other labels: the whole head, not only its last linear layer. The
# dense layer that RoBERTa or DeBERTa puts before the last one was trained, and locked, for the old labels.
# To keep it would give base, locked, scratch and control different heads to start from, and would let a lock
# count weights that any attacker throws away; transformers too calls all of it new on a bare encoder.


def head_names(module: nn.Module) -> list[str]:
    """Names of the submodules that make up the classification head, which a task with other labels replaces.

    A Hugging Face model's head is everything beside its backbone (``classifier``, ``score``, DeBERTa's
    ``pooler``); another module's is the ``nn.Linear`` registered last. A language model has none: every task takes the
    tokens that it predicts. Raises :class:`InputError` where there should be one and is not.
    """
    if not isinstance(module, PreTrainedModel):
        linear = [name for name, submodule in module.named_modules() if type(submodule) is nn.Linear]
        if not linear:
            raise InputError(
                f"{type(module).__name__} has no nn.Linear, so no head that a new task could use."
            )
        return linear[-1:]
    if module.get_output_embeddings() is not None:
        return []
    backbone = module.base_model
    names = [name for name, child in module.named_children() if child is not backbone and _has_weights(child)]
    if backbone is module or not names:
        raise InputError(
            f"{type(module).__name__} has no classification head. Use its …ForSequenceClassification or "
            f"…ForImageClassification class."
        )
    return names


def output_names(module: nn.Module) -> list[str]:
    """Names of the submodules that answer: the classification head, or the layer that gives each token's logits."""
    outputs = module.get_output_embeddings() if isinstance(module, PreTrainedModel) else None
    if outputs is None:
        return head_names(module)
    return [name for name, submodule in module.named_modules() if submodule is outputs]


def replace_head_(module: nn.Module, labels: tuple[str, ...], seed: int) -> None:
    """Put a fresh head for ``labels`` on ``module``; the same seed gives every copy the same head.

    Raises :class:`InputError` for fewer than two or repeated labels, or a module without a head.
    """
    if len(labels) < 2 or len(set(labels)) < len(labels):
        raise InputError(f"labels {labels} cannot name a head's outputs: give at least two, all different.")
    names = head_names(module)
    if not names:
        raise InputError(
            f"{type(module).__name__} predicts tokens and has no classification head. "
            f'Load it with kind="classification".'
        )
    if isinstance(module, PreTrainedModel):
        set_labels_(module.config, labels)
        # On the meta device the backbone of a 7B model costs nothing.
        with torch.device("meta"):
            shell = type(module)(copy.deepcopy(module.config))
        here = (
            copied(shell.get_submodule(name), lambda _, old: torch.empty_like(old, device="cpu"))
            for name in names
        )
        heads = [_drawn(head, seed, shell) for head in here]
        if hasattr(module, "num_labels"):
            module.num_labels = len(labels)
    else:
        last = module.get_submodule(names[0])
        assert isinstance(last, nn.Linear)
        # Building a layer draws from the generator before the layer is drawn as asked.
        with seeded(seed), torch.device("cpu"):
            heads = [_drawn(nn.Linear(last.in_features, len(labels), bias=last.bias is not None), seed)]
    like = next(module.parameters())
    for name, head in zip(names, heads, strict=True):
        parent, _, leaf = name.rpartition(".")
        setattr(module.get_submodule(parent), leaf, placed(head, like).train(module.training))


def _drawn(head: nn.Module, seed: int, family: PreTrainedModel | None = None) -> nn.Module:
    with seeded(seed):
        reset_(head, family)
    return head


def set_labels_(config: PretrainedConfig, labels: tuple[str, ...]) -> None:
    """Make a Hugging Face configuration say what the head's outputs mean."""
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: i for i, label in enumerate(labels)}
    config.problem_type = "single_label_classification"


def _has_weights(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None


def matching(module: nn.Module, like: nn.Module) -> nn.Module:
    """``module`` with every tensor in the dtype and on the device of its namesake in ``like``: in a
    half-precision model some buffers, the rotary frequencies for one, stay in fp32.

    A copy, or ``module`` itself where nothing differs; a tensor without a namesake keeps what it has.
    """
    wanted = {name: (tensor.device, tensor.dtype) for name, tensor in tensors(like)}
    if all(wanted.get(name) in (None, (tensor.device, tensor.dtype)) for name, tensor in tensors(module)):
        return module
    return copied(module, lambda name, tensor: tensor.to(*wanted[name]) if name in wanted else tensor)
