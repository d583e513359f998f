"""What may be wrong with a folder that should hold a model, said in one line before anything is loaded."""

from __future__ import annotations

import json
import pickle
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from speclock.errors import InputError

_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_TOKENIZERS = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.txt",
    "vocab.json",
    "spiece.model",
    "spm.model",
    "sentencepiece.bpe.model",
    "tekken.json",
)
_PICKLES = {".bin", ".pt", ".pth", ".ckpt"}
MAY_HOLD_WEIGHTS = _PICKLES | {".safetensors", ".gguf", ".h5", ".msgpack", ".npz", ".onnx", ".pkl", ".zip"}
"""Endings of files that may hold weights, whatever else is in them."""


@dataclass(frozen=True)
class Folder:
    """A model folder whose configuration reads and whose weight files are whole."""

    path: Path
    config: dict[str, Any]
    weights: tuple[Path, ...]
    """One file, or the shards that an index names."""


def examine(path: Path) -> Folder:
    """Read the configuration and check every weight file, loading none.

    Raises :class:`InputError` for anything that is missing, unreadable, truncated or unsafe.
    """
    if not path.is_dir():
        raise _not_a_folder(path)
    config = _read_config(path)
    weights = _weight_files(path)
    for file in weights:
        if file.suffix == ".safetensors":
            check_safetensors(file)
        else:
            check_pickle(file)
    return Folder(path, config, weights)


def further_weights(folder: Folder) -> list[str]:
    """Files in the folder, at any depth, that may hold weights and are not those that are loaded."""
    return sorted(
        str(file.relative_to(folder.path))
        for file in folder.path.rglob("*")
        if file.suffix.lower() in MAY_HOLD_WEIGHTS and file not in folder.weights
    )


def check_safetensors(file: Path) -> None:
    """Compare the header's lengths with the file's. Raises :class:`InputError`."""
    try:
        with safe_open(file, framework="pt") as tensors:
            tensors.keys()
    except (SafetensorError, OSError) as error:
        raise InputError(f"{file} cannot be read ({one_line(error)}). Fetch or copy it again.") from error


def check_pickle(file: Path) -> None:
    """See that ``file`` loads as tensors alone. Raises :class:`InputError`: a pickle can run any code."""
    try:
        with warnings.catch_warnings():
            # Torch remarks on a pickle that it did not write itself, and then judges it all the same.
            warnings.filterwarnings("ignore", "Detected pickle protocol", UserWarning)
            # Newer files are archives, whose tensors need not be read for this.
            torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{file} is refused: it holds more than tensors, and to unpickle it could run any code. "
            f"Save the weights again as model.safetensors."
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError) as error:
        raise InputError(f"{file} cannot be read ({one_line(error)}). Fetch or copy it again.") from error


def check_tokenizer(folder: Path) -> None:
    """Raise :class:`InputError` where no tokenizer file is there."""
    # Without them transformers may answer with an empty tokenizer, which turns every word into "unknown".
    if not any((folder / name).is_file() for name in _TOKENIZERS) and not list(folder.glob("*.tiktoken")):
        raise InputError(
            f"{folder} has no tokenizer (no tokenizer.json, vocab.txt or the like). "
            f"Copy the tokenizer files of the original model beside config.json."
        )


def one_line(error: BaseException) -> str:
    """The first line of an error's message, without its full stop.

    >>> one_line(ValueError("No such thing.\\nSee the manual."))
    'No such thing'
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".:") if lines else type(error).__name__


def _not_a_folder(path: Path) -> InputError:
    if not path.exists():
        return InputError(
            f"{path}: no such folder. Give a model folder, a hub id (owner/name) or a built-in name."
        )
    if path.suffix in _PICKLES:
        check_pickle(path)
    return InputError(
        f"{path} is a file; a model is a folder with config.json and model.safetensors. Give the folder, or "
        f"build the module in Python and hand it to speclock.wrap."
    )


def _read_config(folder: Path) -> dict[str, Any]:
    file = folder / "config.json"
    if (folder / "adapter_config.json").is_file() and not file.is_file():
        raise InputError(
            f"{folder} holds an adapter, not a model. Merge it into its base model and save that."
        )
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{folder} is not a model folder: it has no config.json.") from None
    except OSError as error:
        raise InputError(f"{file} cannot be read ({error.strerror}). Mend its permissions.") from error
    except ValueError as error:
        raise InputError(f"{file} is not JSON ({one_line(error)}). Fetch or copy it again.") from error
    if not isinstance(config, dict):
        raise InputError(
            f"{file} holds a JSON {type(config).__name__}, not an object. Fetch or copy it again."
        )
    return config


def _weight_files(folder: Path) -> tuple[Path, ...]:
    """The file or the shards that hold the weights, safetensors before pickles."""
    for name in _WEIGHTS:
        if (folder / name).is_file():
            return (folder / name,)
        index = folder / f"{name}.index.json"
        if index.is_file():
            return _shards(index)
    pickles = [file.name for file in sorted(folder.glob("*")) if file.suffix in _PICKLES]
    found = f"; {pickles[0]} is not a name that a model folder uses" if pickles else ""
    raise InputError(
        f"{folder} is not a model folder: it has config.json, but no model.safetensors{found}. "
        f"Fetch or copy the weights too."
    )


def _shards(index: Path) -> tuple[Path, ...]:
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise InputError(
            f"{index} is not an index of shards ({one_line(error)}). Fetch or copy it again."
        ) from error
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise InputError(
            f"{index} names {len(names)} shards, but {missing[0]} is missing"
            f"{f' (and {len(missing) - 1} more)' if missing[1:] else ''}. Fetch or copy it too."
        )
    return tuple(index.parent / name for name in names)
