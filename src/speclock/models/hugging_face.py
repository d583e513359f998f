"""Hugging Face checkpoints: which class a folder needs, its weights, its tokenizer; never code of its own."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import torch
import transformers
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedModel
from transformers.utils import logging

from speclock.errors import InputError
from speclock.models.folders import Folder, check_tokenizer, one_line
from speclock.models.initial import replace_head_, seeded
from speclock.tasks.base import PLAIN_PIXELS, Kind, Modality, Preprocessing

PROCESSOR = "preprocessor_config.json"
"""The file in which a checkpoint says how its images are resized and scaled."""

# By the numbers that Pillow gives them. Lanczos and its like, which torch has not, are nearest to bicubic.
_RESAMPLE: dict[int, Literal["nearest-exact", "bilinear", "bicubic"]] = {
    0: "nearest-exact",
    1: "bicubic",
    2: "bilinear",
    3: "bicubic",
}


class Loaded(NamedTuple):
    """What a Hugging Face folder holds."""

    module: PreTrainedModel
    tokenizer: Any
    modality: Modality
    labels: tuple[str, ...] | None
    """None where the checkpoint has no classification head: the module's is fresh then."""
    preprocessing: Preprocessing = PLAIN_PIXELS
    """How its images are resized and scaled."""
    unread: tuple[str, ...] = ()
    """Tensors of the checkpoint that the module has no place for."""


def read(folder: Folder, kind: Kind, seed: int) -> Loaded:
    """Load ``folder`` as a classifier or as a language model, in evaluation mode and in its own dtype.

    A checkpoint without a classification head (a bare encoder, a language model) gets a fresh one under
    ``seed``. Raises :class:`InputError` for an architecture that transformers does not know or that does not
    fit ``kind``, for quantised weights, and for weights that are missing or of another shape.
    """
    config = _config(folder, kind)
    auto, modality = _auto_class(config, folder.path, kind)
    tokenizer = None
    preprocessing = PLAIN_PIXELS
    if modality == "text":
        tokenizer = _tokenizer(folder.path, config)
    elif (folder.path / PROCESSOR).is_file():
        preprocessing = read_processor(folder.path / PROCESSOR, getattr(config, "num_channels", 3))
    with quiet(), seeded(seed):
        try:
            module, info = auto.from_pretrained(
                folder.path,
                config=config,
                dtype="auto",
                trust_remote_code=False,
                local_files_only=True,
                output_loading_info=True,
            )
        except Exception as error:  # a configuration can make any line of a model's code fail
            raise InputError(
                f"{folder.path} cannot be loaded as {auto.__name__} ({one_line(error)}). See that "
                f"config.json and the weights belong together."
            ) from error
    missing = set(info["missing_keys"])
    backbone = f"{module.base_model_prefix}."
    # A pooler is not trained by masked language modelling, and such checkpoints come without one.
    lost = sorted(
        key for key in missing if (key.startswith(backbone) and "pooler" not in key) or kind == "causal-lm"
    )
    if lost:
        raise InputError(
            f"{folder.path} lacks weights that config.json asks for: {lost[0]}"
            f"{f' and {len(lost) - 1} more' if lost[1:] else ''}. Fetch or copy the model again."
        )
    labels = None
    if kind == "classification":
        labels = _label_names(module.config)
        if any(not key.startswith(backbone) for key in missing):
            replace_head_(module, labels, seed)
            labels = None
    return Loaded(
        module.eval(), tokenizer, modality, labels, preprocessing, tuple(sorted(info["unexpected_keys"]))
    )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No load report and no progress bar: a fresh head is expected here, and errors become one line."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def label_names(module: torch.nn.Module) -> tuple[str, ...] | None:
    """What the outputs of a Hugging Face classifier mean, or None for any other module."""
    if isinstance(module, PreTrainedModel) and type(module).__name__.endswith("Classification"):
        return _label_names(module.config)
    return None


def image_size(config: Any) -> int | None:
    """The side in pixels that the configuration insists on; None for a convolutional net that takes any."""
    size = getattr(config, "image_size", None)
    return max(size) if isinstance(size, (list, tuple)) else size


def read_processor(file: Path, channels: int) -> Preprocessing:
    """The settings of a Hugging Face image processor, read without building it (it may need torchvision).

    Raises :class:`InputError` that names ``file`` where it says something that cannot be followed.
    """
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
        size, crop = _size_and_crop(settings)
        normalised = settings.get("do_normalize", True)
        mean = _per_channel(settings.get("image_mean", 0.5)) if normalised else (0.0,)
        std = _per_channel(settings.get("image_std", 0.5)) if normalised else (1.0,)
        rescale = float(settings.get("rescale_factor", 1 / 255)) if settings.get("do_rescale", True) else 1.0
        resample = _RESAMPLE.get(settings.get("resample", 2), "bilinear")
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(
            f"{file} is not an image processor's settings ({one_line(error)}). Copy the original model's, or "
            f"remove it to have pixels scaled to [−1, 1]."
        ) from error
    if not {len(mean), len(std)} <= {1, channels}:
        raise InputError(
            f"{file} has a mean of {len(mean)} and a deviation of {len(std)} channels, but the model takes "
            f"{channels}. Copy the original model's."
        )
    if not all(std):
        raise InputError(f"{file}: image_std has a zero in it. Copy the original model's.")
    return Preprocessing(mean, std, rescale, size, crop, resample)


def _size_and_crop(
    settings: Mapping[str, Any],
) -> tuple[tuple[int, int] | int | None, tuple[int, int] | None]:
    """What a processor resizes to, and what it keeps of that."""
    size = settings.get("size") if settings.get("do_resize", True) else None
    if size is not None and settings.get("crop_pct"):
        # ConvNeXT's processors, which ResNet uses too: the middle of a small image, the whole of a large one.
        side = min(_square(_sides(size)))
        return (int(side / settings["crop_pct"]), (side, side)) if side < 384 else ((side, side), None)
    crop = _square(_sides(settings.get("crop_size", size))) if settings.get("do_center_crop") else None
    if isinstance(size, int) and crop is None:
        return (size, size), None  # so older files say it
    return (None if size is None else _sides(size)), crop


def _sides(size: Any) -> tuple[int, int] | int:
    """Height and width, or the shorter side alone, in any spelling that processors have had."""
    sides: Any = size
    if isinstance(size, Mapping):
        sides = size.get("shortest_edge") if len(size) == 1 else (size.get("height"), size.get("width"))
    both = tuple(sides) if isinstance(sides, (list, tuple)) else (sides, sides)
    if len(both) != 2 or not all(isinstance(side, int) and side > 0 for side in both):
        raise ValueError(f"a size of {size}")
    return sides if isinstance(sides, int) else (both[0], both[1])


def _square(sides: tuple[int, int] | int) -> tuple[int, int]:
    return (sides, sides) if isinstance(sides, int) else sides


def _per_channel(values: Any) -> tuple[float, ...]:
    """One number for each channel, or one where they are all the same."""
    numbers = tuple(float(v) for v in values) if isinstance(values, (list, tuple)) else (float(values),)
    return numbers[:1] if len(set(numbers)) == 1 else numbers


def _label_names(config: PretrainedConfig) -> tuple[str, ...]:
    names = cast("dict[int, str]", config.id2label)
    return tuple(names[i] for i in sorted(names))


def _config(folder: Folder, kind: Kind) -> PretrainedConfig:
    if "quantization_config" in folder.config:
        raise InputError(
            f"{folder.path} holds quantised weights, which cannot be trained. Use the unquantised model."
        )
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(
            folder.path, trust_remote_code=False, local_files_only=True
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        found = folder.config.get("model_type")
        why = f"model_type {found!r}" if found else "no model_type"
        needs = (
            "needs code of its own, which speclock never runs"
            if "auto_map" in folder.config
            else "is not known"
        )
        raise InputError(
            f"{folder.path / 'config.json'}: {why} {needs}. Use a model that transformers "
            f"{transformers.__version__} loads by itself, or build the module and hand it to speclock.wrap."
        ) from error
    return config


def _auto_class(config: PretrainedConfig, folder: Path, kind: Kind) -> tuple[Any, Modality]:
    """The transformers class for ``kind``, and what the model reads."""
    if kind == "causal-lm":
        if type(config) in transformers.MODEL_FOR_CAUSAL_LM_MAPPING:
            return transformers.AutoModelForCausalLM, "text"
        raise InputError(f"{folder}: a {config.model_type} model does not predict the next token.")
    if type(config) in transformers.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING:
        return transformers.AutoModelForImageClassification, "image"
    if type(config) in transformers.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        return transformers.AutoModelForSequenceClassification, "text"
    raise InputError(
        f"{folder}: transformers has no image or text classifier for {config.model_type} models."
    )


def _tokenizer(folder: Path, config: PretrainedConfig) -> Any:
    """The folder's tokenizer, with a padding token that ``config`` agrees to and the model's length limit."""
    check_tokenizer(folder)
    with quiet():
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        except (OSError, ValueError, KeyError, TypeError, ImportError, AttributeError) as error:
            raise InputError(
                f"{folder}: its tokenizer cannot be loaded ({one_line(error)}). Copy the tokenizer files "
                f"of the original model beside config.json."
            ) from error
    if tokenizer.pad_token is None:
        # Language models often come without one; padding is masked, so any token serves.
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    if tokenizer.pad_token is None:
        raise InputError(f"{folder}: its tokenizer has no pad, eos or unk token. Set pad_token in its files.")
    # A decoder finds the last word of a padded row by this number; a wrong one would score the padding.
    config.pad_token_id = tokenizer.pad_token_id
    limit = getattr(config, "max_position_embeddings", None)
    if limit:
        tokenizer.model_max_length = min(tokenizer.model_max_length, limit)
    return tokenizer
