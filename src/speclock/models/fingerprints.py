"""What a model is, part by part, and the digests by which it is known again.

The parts are described as JSON-able dictionaries: the digests are taken over them, and two models are compared by
them (see :mod:`speclock.models.transplant`). What differs between two machines or two saves of one model
(versions, paths, dtypes' names) is in none of them.
"""

from __future__ import annotations

import hashlib
import json
import types
from dataclasses import asdict
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from speclock.models import hugging_face
from speclock.models.checkpoints import Model

# Said of the labels elsewhere, or of the machine and the files rather than of the model.
_VOLATILE = frozenset(
    {"transformers_version", "architectures", "dtype", "torch_dtype", "id2label", "label2id", "problem_type"}
)
# Tokenizers note here how they were last called.
_LAST_CALL = ("version", "truncation", "padding")


class Identity(NamedTuple):
    """SHA-256 of each of a model's parts, in hexadecimal."""

    weights: str
    """Over name, dtype, shape and bytes of every saved tensor: all that cards of before held as fingerprint."""
    configuration: str
    """Over the settings, or the structure of a plain module, and the labels."""
    tokenizer: str
    preprocessing: str

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the four."""
        return _sha256("\n".join(self))


def fingerprint(model: Model) -> str:
    """SHA-256 over weights, configuration, tokenizer and preprocessing.

    Independent of the device and of the file format: a model and what ``load`` reads back of it agree.
    """
    return identity(model).fingerprint


def identity(model: Model) -> Identity:
    """The digests of the model's parts; independent of the device and of the file format."""
    module = model.module
    told = _told(module.config) if isinstance(module, PreTrainedModel) else configuration(model)
    return Identity(
        weights=_weights(module),
        configuration=_sha256(canonical({"settings": told, "labels": labels(model)})),
        tokenizer=_sha256(canonical(tokenizer(model))),
        preprocessing=_sha256(canonical(preprocessing(model))),
    )


def configuration(model: Model) -> dict[str, Any]:
    """A Hugging Face model's settings; of any other module its :func:`parts`."""
    if isinstance(model.module, PreTrainedModel):
        found = _of_config(model.module.config)
        if model.tokenizer is not None:
            found.pop("pad_token_id", None)  # set from the tokenizer, which has it
        return found
    return dict(parts(model.module))


def labels(model: Model) -> tuple[str, ...] | None:
    """What the outputs mean; a Hugging Face classifier's are ``LABEL_0``, … before anybody says so."""
    return model.labels or hugging_face.label_names(model.module)


def parts(module: nn.Module) -> dict[str, dict[str, Any]]:
    """Every submodule by name: its class and its public settings (numbers, names, functions), not its tensors.

    >>> parts(nn.Dropout(0.1))
    {'': {'class': 'torch.nn.modules.dropout.Dropout', 'inplace': False, 'p': 0.1}}
    """
    return {name: described(submodule) for name, submodule in module.named_modules()}


def described(submodule: nn.Module) -> dict[str, Any]:
    """The class of one submodule and its :func:`settings`, JSON-able."""
    cls = type(submodule)
    found = {name: _readable(value) for name, value in settings(submodule).items()}
    return {"class": f"{cls.__module__}.{cls.__qualname__}", **found}


def settings(submodule: nn.Module) -> dict[str, Any]:
    """One submodule's public attributes that are numbers, names or functions, by name."""
    return {
        name: value
        for name, value in sorted(vars(submodule).items())
        if not name.startswith("_")
        and name not in {"training", "name_or_path"}
        and _is_setting(value)
        and not _is_own_method(submodule, name)
    }


def tokenizer(model: Model) -> dict[str, Any] | None:
    """How the tokenizer turns text into numbers; None without one."""
    it = model.tokenizer
    if it is None:
        return None
    if isinstance(it, PreTrainedTokenizerFast):
        backend = json.loads(it.backend_tokenizer.to_str())
        found = {key: value for key, value in backend.items() if key not in _LAST_CALL}
    else:
        found = {"class": type(it).__qualname__, "vocabulary": it.get_vocab()}
    limit = getattr(getattr(model.module, "config", None), "max_position_embeddings", None)
    return {
        **found,
        "special_tokens": {name: str(token) for name, token in it.special_tokens_map.items()},
        "padding_side": it.padding_side,
        "truncation_side": it.truncation_side,
        # As a folder's tokenizer has it once it is loaded.
        "model_max_length": min(it.model_max_length, limit or it.model_max_length),
    }


def preprocessing(model: Model) -> dict[str, Any]:
    """What is done to an image before the module sees it, and the files that say so, parsed."""
    shape = {}
    if model.modality == "image":
        shape = {
            "channels": model.channels,
            "image_size": model.image_size,
            "pixels": asdict(model.preprocessing),
        }
    return {
        "modality": model.modality,
        **shape,
        **{name: _parsed(text) for name, text in model.beside.items()},
    }


def canonical(value: Any) -> str:
    """JSON with sorted keys, the same for a value and for what is read back of it."""
    return json.dumps(json.loads(json.dumps(value, default=str)), sort_keys=True)


def _weights(module: nn.Module) -> str:
    # The state, not the buffers: what is not saved is computed anew, and differs between machines.
    total = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        if isinstance(tensor, Tensor):
            total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            total.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def _of_config(config: PretrainedConfig) -> dict[str, Any]:
    found = json.loads(json.dumps(config.to_dict(), default=str))
    return {key: value for key, value in found.items() if key not in _VOLATILE and not key.startswith("_")}


def _told(config: PretrainedConfig) -> dict[str, Any]:
    """The settings that differ from their class's defaults: a later transformers has more of them."""
    try:
        usual = _of_config(type(config)())
    except (TypeError, ValueError):
        usual = {}  # composed of others, and not to be built without them
    told = {key: value for key, value in _of_config(config).items() if value != usual.get(key)}
    told.pop("pad_token_id", None)
    return {"model_type": config.model_type, **told}


def _is_own_method(submodule: nn.Module, name: str) -> bool:
    """A wrapper that has been taken off again leaves the class's own method behind."""
    value = vars(submodule)[name]
    own = getattr(type(submodule), name, None)
    return isinstance(value, types.MethodType) and value.__func__ is own


_FUNCTIONS = (types.FunctionType, types.BuiltinFunctionType, types.MethodType, type)


def _is_setting(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(_is_setting(item) for item in value)
    return value is None or isinstance(value, (bool, int, float, str, torch.dtype, *_FUNCTIONS))


def _readable(value: Any) -> Any:
    if isinstance(value, _FUNCTIONS):
        return getattr(value, "__qualname__", str(value))
    if isinstance(value, tuple | list):
        return [_readable(item) for item in value]
    return str(value) if isinstance(value, torch.dtype) else value


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
