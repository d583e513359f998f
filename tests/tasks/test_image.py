from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from speclock.errors import InputError
from speclock.sources import Source, hub
from speclock.tasks import image
from speclock.tasks.base import Examples, Preprocessing
from speclock.tasks.image import ImageClassification, from_folder

from .conftest import FakeEncoder


def task_of(images: np.ndarray) -> ImageClassification:
    examples = Examples(images, np.arange(len(images)) % 2)
    return ImageClassification("toy", examples, examples, ("a", "b"), Source("file", "here"))


def encoded(images: np.ndarray, **encoder: Any) -> torch.Tensor:
    task = task_of(images)
    batch = task.encode(task.train, FakeEncoder(**encoder))
    assert batch["labels"].tolist() == [0, 1]
    return batch["pixel_values"]


def test_pixels_are_scaled_to_minus_one_and_one() -> None:
    images = np.array([0, 255], dtype=np.uint8).reshape(2, 1, 1, 1)
    assert encoded(images, channels=1).flatten().tolist() == [-1, 1]


def test_grey_is_repeated_and_colour_becomes_grey() -> None:
    rng = np.random.default_rng(0)
    grey = encoded(rng.integers(0, 256, (2, 5, 4, 1), dtype=np.uint8), channels=3)
    assert grey.shape == (2, 3, 5, 4)
    assert (grey == grey[:, :1]).all()

    colour = rng.integers(0, 256, (2, 5, 4, 3), dtype=np.uint8)
    pillow = np.stack([np.asarray(Image.fromarray(image).convert("L")) for image in colour])
    ours = (encoded(colour, channels=1)[:, 0] + 1) * 127.5
    assert np.abs(ours.numpy() - pillow).max() <= 1


@pytest.mark.parametrize("side", [3, 16])
def test_a_constant_image_stays_constant_when_resized(side: int) -> None:
    pixels = encoded(np.full((2, 8, 8, 3), 51, dtype=np.uint8), image_size=side)
    assert pixels.shape == (2, 3, side, side)
    torch.testing.assert_close(pixels, torch.full_like(pixels, -0.6))


def test_channels_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match="toy has 3 channels, but the model fake takes 4"):
        encoded(np.zeros((2, 1, 1, 3), dtype=np.uint8), channels=4)


def test_the_model_says_how_its_pixels_are_scaled() -> None:
    scale = Preprocessing(mean=(0.1, 0.2, 0.3), std=(0.5, 0.4, 0.2), rescale=1 / 255)
    pixels = encoded(np.full((2, 1, 1, 3), 51, dtype=np.uint8), preprocessing=scale)
    torch.testing.assert_close(pixels[0].flatten(), torch.tensor([0.2, 0.0, -0.5]))


def test_a_shorter_side_keeps_the_shape_and_the_middle_is_cut_out() -> None:
    images = np.zeros((2, 4, 8, 1), dtype=np.uint8)
    images[:, :, 2:6] = 255
    scale = Preprocessing(mean=(0.0,), std=(1.0,), rescale=1 / 255, size=2)
    assert encoded(images, channels=1, image_size=7, preprocessing=scale).shape == (2, 1, 2, 4)
    cut = encoded(images, channels=1, preprocessing=replace(scale, size=None, crop=(2, 4)))
    assert cut.shape == (2, 1, 2, 4)
    assert (cut == 1).all()
    padded = encoded(images, channels=1, preprocessing=replace(scale, size=None, crop=(6, 10)))
    assert padded.shape == (2, 1, 6, 10)
    assert padded[:, :, [0, -1]].sum() == padded[..., [0, -1]].sum() == 0
    assert padded.sum() == cut.sum() * 2


# -- folders ---------------------------------------------------------------------------------------------


def draw(path: Path, value: int, mode: str = "L", size: tuple[int, int] = (4, 3)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value if mode == "L" else (value,) * 3).save(path)


def test_sixteen_bits_a_pixel_become_eight_and_are_not_clipped(tmp_path: Path) -> None:
    for label, value in (("dark", 5_000), ("light", 40_000)):
        for i in range(2):
            path = tmp_path / label / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((4, 4), value, dtype=np.uint16)).save(path)
    task = from_folder(tmp_path)
    assert {int(image.max()) for image in task.train.inputs} == {5_000 >> 8, 40_000 >> 8}


def test_a_folder_per_class_is_split_in_proportion(tmp_path: Path) -> None:
    for i in range(10):
        draw(tmp_path / "cat" / f"{i}.png", i)
        draw(tmp_path / "ant" / f"{i}.png", 100 + i)
    (tmp_path / "cat" / "notes.txt").write_text("not an image")
    task, again = from_folder(tmp_path), from_folder(tmp_path)
    assert task.labels == ("ant", "cat")
    assert (len(task.train), len(task.test)) == (16, 4)
    assert task.train.inputs.shape == (16, 3, 4, 1)
    assert task.source == Source("file", str(tmp_path))
    np.testing.assert_array_equal(task.train.labels == 1, task.train.inputs[:, 0, 0, 0] < 100)
    np.testing.assert_array_equal(task.train.inputs, again.train.inputs)


def test_given_splits_are_followed_and_sizes_and_modes_made_alike(tmp_path: Path) -> None:
    for split, count in (("train", 3), ("test", 2)):
        for name in ("x", "y"):
            for i in range(count):
                draw(tmp_path / split / name / f"{i}.png", 7)
    draw(tmp_path / "train" / "x" / "odd.png", 7, mode="RGB", size=(9, 9))
    task = from_folder(tmp_path)
    assert (len(task.train), len(task.test)) == (7, 4)
    assert task.train.inputs.shape == (7, 3, 4, 3)
    assert (task.train.inputs == 7).all()


def corrupt(folder: Path) -> None:
    (folder / "b" / "1.png").write_bytes((folder / "b" / "1.png").read_bytes()[:40])


def not_an_image(folder: Path) -> None:
    (folder / "b" / "1.png").write_text("hello")


def empty_class(folder: Path) -> None:
    (folder / "c").mkdir()


def one_class(folder: Path) -> None:
    for path in (folder / "b").iterdir():
        path.unlink()
    (folder / "b").rmdir()


def one_image(folder: Path) -> None:
    draw(folder / "c" / "0.png", 1)


@pytest.mark.parametrize(
    ("break_", "line"),
    [
        (corrupt, "{}/b/1.png: not a readable image ("),
        (not_an_image, "{}/b/1.png: not a readable image ("),
        (empty_class, "{}/c: no image in it. Add some, or remove the folder."),
        (one_class, "{}: found 1 class folders with images, a task needs at least two."),
        (one_image, "{}/c: a single image; a class needs two, one to train and one to test."),
    ],
)
def test_a_folder_that_is_no_task(break_, line: str, tmp_path: Path) -> None:
    for name in ("a", "b"):
        for i in range(3):
            draw(tmp_path / name / f"{i}.png", i)
    break_(tmp_path)
    with pytest.raises(InputError) as caught:
        from_folder(tmp_path)
    assert str(caught.value).startswith(line.format(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_class_without_training_images_is_named(tmp_path: Path) -> None:
    for name in ("a", "b"):
        draw(tmp_path / "train" / name / "0.png", 0)
    draw(tmp_path / "test" / "c" / "0.png", 0)
    with pytest.raises(InputError, match="class 'c' is in test but not in train"):
        from_folder(tmp_path)


# -- hub -------------------------------------------------------------------------------------------------


def test_a_set_of_the_hub_is_read_by_the_types_of_its_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    columns = datasets.Features(
        {"img": datasets.Image(), "label": datasets.ClassLabel(names=list(image.CIFAR10))}
    )
    pixels = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), dtype=np.uint8)

    def split(rows: slice) -> object:
        cells = {"img": [Image.fromarray(p) for p in pixels[rows]], "label": list(range(10))}
        return datasets.Dataset.from_dict(cells, features=columns)

    data = datasets.DatasetDict(train=split(slice(10)), test=split(slice(10, 20)))
    monkeypatch.setattr(hub, "load_hub", lambda hub_id: data)
    task = image.cifar10()
    assert task.source == Source("hub", "uoft-cs/cifar10")
    np.testing.assert_array_equal(task.train.inputs, pixels[:10])
    np.testing.assert_array_equal(task.test.inputs, pixels[10:])
    assert task.test.labels.tolist() == list(range(10))
