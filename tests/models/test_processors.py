"""Image processors: what we read of their files does to pixels what transformers' own do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import ViTConfig, ViTForImageClassification

from speclock import models
from speclock.errors import InputError
from speclock.models import Model
from speclock.models.hugging_face import read_processor
from speclock.sources import Source
from speclock.tasks.base import Examples, Preprocessing
from speclock.tasks.image import ImageClassification

IMAGENET: dict[str, Any] = {
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "rescale_factor": 1 / 255,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
}
PROCESSORS = {
    "vit": IMAGENET
    | {"image_processor_type": "ViTImageProcessor", "size": {"height": 24, "width": 32}, "resample": 2},
    "vit of old": IMAGENET | {"feature_extractor_type": "ViTFeatureExtractor", "size": 24, "resample": 2},
    "clip": IMAGENET
    | {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": 20},
        "do_center_crop": True,
        "crop_size": {"height": 16, "width": 16},
        "resample": 3,
    },
    "convnext": IMAGENET
    | {
        "image_processor_type": "ConvNextImageProcessor",
        "size": {"shortest_edge": 28},
        "crop_pct": 0.875,
        "resample": 3,
    },
    "no mean": IMAGENET
    | {
        "image_processor_type": "ViTImageProcessor",
        "size": {"height": 24, "width": 24},
        "resample": 2,
        "do_normalize": False,
    },
}


def write(folder: Path, settings: dict[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    file = folder / "preprocessor_config.json"
    file.write_text(json.dumps(settings))
    return file


def smooth(height: int, width: int) -> np.ndarray:
    """Two colour images without edges, on which rounding before or after the resize matters little."""
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    planes = [128 + 100 * np.sin(3 * y + k) * np.cos(2 * x - k) for k in range(3)]
    return np.stack([np.stack(planes, -1), np.stack(planes[::-1], -1)]).round().astype(np.uint8)


@pytest.mark.parametrize("name", PROCESSORS)
@pytest.mark.parametrize("shape", [(40, 50), (18, 14)])
def test_pixels_come_out_as_from_the_processor_itself(
    name: str, shape: tuple[int, int], tmp_path: Path
) -> None:
    from transformers import AutoImageProcessor

    scale = read_processor(write(tmp_path, PROCESSORS[name]), channels=3)
    images = smooth(*shape)
    theirs = AutoImageProcessor.from_pretrained(tmp_path, use_fast=False)(list(images), return_tensors="pt")
    ours = scale(torch.from_numpy(images).permute(0, 3, 1, 2).float(), None)
    assert ours.shape == theirs["pixel_values"].shape
    # One grey level is rounded away in theirs.
    level = max(abs(np.array(scale.std) ** -1)) * scale.rescale
    assert (ours - theirs["pixel_values"]).abs().max() < 1.5 * level


def vit(folder: Path, dtype: torch.dtype = torch.float32, settings: dict[str, Any] | None = None) -> Path:
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=24,
        patch_size=8,
        id2label={0: "a", 1: "b"},
    )
    ViTForImageClassification(config).to(dtype).save_pretrained(folder)
    if settings is not None:
        write(folder, settings)
    return folder


def task_of(images: np.ndarray) -> ImageClassification:
    examples = Examples(images, np.array([0, 1]))
    return ImageClassification("toy", examples, examples, ("a", "b"), Source("file", "here"))


def pixels_of(model: Model) -> torch.Tensor:
    task = task_of(smooth(40, 50))
    return task.encode(task.train, model)["pixel_values"]


def test_the_processor_of_a_folder_is_used_and_saved(tmp_path: Path) -> None:
    settings = PROCESSORS["vit"] | {"size": {"height": 24, "width": 24}}
    model = models.load(str(vit(tmp_path / "vit", settings=settings)))
    assert model.preprocessing == Preprocessing(
        (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 1 / 255, (24, 24), None, "bilinear"
    )
    assert model.with_head(("x", "y", "z"), seed=0).preprocessing == model.preprocessing
    models.save(model, tmp_path / "again")
    again = models.load(str(tmp_path / "again"))
    assert again.preprocessing == model.preprocessing
    assert torch.equal(pixels_of(again), pixels_of(model))
    plain = models.load(str(vit(tmp_path / "plain")))
    assert plain.preprocessing == Preprocessing()
    assert pixels_of(plain).shape == pixels_of(model).shape
    assert pixels_of(plain).abs().max() <= 1 < pixels_of(model).abs().max()


def test_a_vision_model_in_bf16_is_scored_and_differentiated(tmp_path: Path) -> None:
    model = models.load(str(vit(tmp_path / "vit", torch.bfloat16)))
    assert model.module.dtype == torch.bfloat16
    task = task_of(smooth(40, 50))
    assert task.score(model) in (0, 0.5, 1)
    (batch,) = task.batches(model, "train", 2)
    loss = task.loss(model.module, batch)
    loss.backward()
    assert loss.dtype == torch.float32
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.module.parameters())
    full = task.loss(model.copy().module.float(), batch)
    assert abs(loss.item() - full.item()) < 0.05


BROKEN: dict[str, tuple[Any, str]] = {
    "a list": ([1], "is not an image processor's settings"),
    "a size of frames": (IMAGENET | {"size": {"longest_edge": 9}}, "a size of {'longest_edge': 9}"),
    "no size at all": (
        IMAGENET | {"size": {"height": 0, "width": 8}},
        "is not an image processor's settings",
    ),
    "two channels": (IMAGENET | {"image_mean": [0.1, 0.2]}, "has a mean of 2 and a deviation of 3 channels"),
    "no deviation": (IMAGENET | {"image_std": [0, 0, 0]}, "image_std has a zero in it"),
    "words": (IMAGENET | {"rescale_factor": "small"}, "is not an image processor's settings"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_processor_that_cannot_be_followed_is_named(name: str, tmp_path: Path) -> None:
    settings, why = BROKEN[name]
    file = write(tmp_path, settings)
    with pytest.raises(InputError) as caught:
        read_processor(file, channels=3)
    assert str(caught.value).startswith(str(file))
    assert why in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_same_mean_for_every_channel_fits_a_grey_model(tmp_path: Path) -> None:
    file = write(tmp_path, {"image_mean": [0.5] * 3, "image_std": [0.25] * 3, "do_resize": False})
    assert read_processor(file, channels=1) == Preprocessing((0.5,), (0.25,), 1 / 255)
