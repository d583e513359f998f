"""A model as speclock handles it: a module, what encodes its inputs, and where it came from."""

from __future__ import annotations

import copy
import difflib
import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_model, save_model
from torch import Tensor, nn
from transformers import PreTrainedModel

from speclock.errors import InputError
from speclock.models import MODELS, hugging_face
from speclock.models.folders import Folder, examine, further_weights, one_line
from speclock.models.initial import fresh, head_names, matching, replace_head_, set_labels_
from speclock.models.tensors import chosen_device, copied, device_of, placed
from speclock.registry import Registry, unknown
from speclock.sources import Source
from speclock.sources.cache import digest
from speclock.sources.hub import network
from speclock.tasks.base import PLAIN_PIXELS, Kind, Modality, Preprocessing, Task
from speclock.workspace import new_folder

# Modules outside transformers whose folders speclock reads: what "speclock_model" says → the class.
_PLAIN = Registry("plain model", {"cnn-mlp": ("speclock.models.cnn_mlp:CnnMlp", "the zoo's cnn-mlp")})

# Image classifiers are read with their processor's settings; the locked folder must keep them.
_BESIDE = (hugging_face.PROCESSOR,)

_HUB_ID = re.compile(r"\w[\w.-]*/[\w.-]+")
_HUB_FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "*.tiktoken"]


@dataclass(eq=False)
class Model:
    """A module together with what a task needs to feed it and what a file needs to hold it."""

    module: nn.Module
    name: str
    """As the user gave it: a built-in name, a folder, a hub id."""
    modality: Modality
    source: Source
    tokenizer: Any = None
    """A Hugging Face tokenizer for text models."""
    channels: int = 3
    """Image channels the module takes; grey images are repeated to fill them."""
    image_size: int | None = None
    """Side in pixels that the module insists on, or None where any will do."""
    preprocessing: Preprocessing = PLAIN_PIXELS
    """How images are resized and scaled: as the checkpoint's image processor says, where it has one."""
    labels: tuple[str, ...] | None = None
    """What the head's outputs mean; None where they mean nothing yet, none at all where they are the next token's."""
    build: Callable[[], nn.Module] | None = field(default=None, repr=False)
    """Builds the same architecture freshly initialised; None: from its Hugging Face configuration, or by
    resetting every submodule's parameters."""
    unread: tuple[str, ...] = ()
    """What its folder holds in the way of weights that are not the module's: further files, tensors of other names."""
    beside: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Text files of the folder it came from that belong to the checkpoint: name → content."""

    @property
    def device(self) -> torch.device:
        """Where the model is. All that is derived from it stays there."""
        return device_of(self.module)

    def to(self, device: torch.device | str) -> Model:
        """A copy on ``device``; the model itself where it is there already, as ``Tensor.to`` has it."""
        wanted = torch.device(device)
        if self.device.type == wanted.type and wanted.index in (None, self.device.index):
            return self
        return replace(self, module=copied(self.module, lambda _, tensor: tensor.to(wanted)))

    def copy(self) -> Model:
        """The same model with its own copy of the weights."""
        return replace(self, module=copied(self.module))

    def in_fp32(self) -> Model:
        """A copy with master weights for training: what is narrower than fp32 is widened.

        A step below 2⁻⁹ of a bf16 weight is lost: at a learning rate under 1e-3 a norm's gains would not move.
        """
        return replace(self, module=copied(self.module, _widened))

    def in_dtypes_of(self, other: Model) -> Model:
        """A copy whose tensors have the dtypes of their namesakes in ``other``, rounded to nearest; the model
        itself where nothing differs. A tensor without a namesake keeps its own."""
        return replace(self, module=matching(self.module, other.module))

    def scratch(self, seed: int) -> Model:
        """The same architecture freshly initialised under ``seed``: what an attacker has without the weights.

        Same dtypes and device; torch's random state is left untouched.
        Raises :class:`InputError` naming the parameters that nothing initialises.
        """
        return replace(self, module=fresh(self.module, seed, self.build))

    def with_head(self, labels: tuple[str, ...], seed: int) -> Model:
        """A copy with a fresh classification head for ``labels``.

        The head depends on the architecture, the labels' number and the seed alone: base, locked, scratch and
        control get the same one, bit for bit. Raises :class:`InputError` where the module has no head.
        """
        model = self.copy()
        replace_head_(model.module, labels, seed)
        build = None if self.build is None else partial(_build_with_head, self.build, labels)
        return replace(model, labels=labels, build=build)

    def with_head_of(self, other: Model) -> Model:
        """A copy of this model with the head of ``other``; with the same labels, of this model as it is.

        What an attack with a fresh head left of the retain task: the attacked body under the retain head.
        Raises :class:`InputError` where the head's place is missing.
        """
        model = self.copy()
        if self.labels == other.labels:
            return model
        like = next(model.module.parameters())
        for name in head_names(other.module):
            parent, _, leaf = name.rpartition(".")
            head = placed(other.module.get_submodule(name), like)
            try:
                setattr(model.module.get_submodule(parent), leaf, head)
            except AttributeError as error:
                raise InputError(
                    f"{self.name} has no {parent} for the head of {other.name}: they are not of one architecture."
                ) from error
        if isinstance(model.module, PreTrainedModel) and other.labels is not None:
            set_labels_(model.module.config, other.labels)
            if hasattr(model.module, "num_labels"):
                model.module.num_labels = len(other.labels)
        return replace(model, labels=other.labels, build=other.build)


def _widened(_: str, tensor: Tensor) -> Tensor:
    if not tensor.is_floating_point():
        return tensor
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _build_with_head(build: Callable[[], nn.Module], labels: tuple[str, ...]) -> nn.Module:
    module = build()
    replace_head_(module, labels, seed=int(torch.randint(2**31, ())))
    return module


def wrap(
    module: nn.Module,
    tokenizer: Any = None,
    *,
    modality: Modality | None = None,
    name: str = "module",
    labels: tuple[str, ...] | None = None,
    build: Callable[[], nn.Module] | None = None,
) -> Model:
    """Any module as a :class:`Model`; the module is used as it is, not copied.

    With a tokenizer it reads text, with a ``Conv2d`` in it images of as many channels; otherwise say
    ``modality``. ``labels`` name the outputs (a Hugging Face classifier's configuration already does).
    ``build`` returns the module untrained, for an architecture that ``reset_parameters`` cannot bring back.
    Raises :class:`InputError` where the modality cannot be told or the tokenizer cannot pad.
    """
    convolution = next((sub for sub in module.modules() if isinstance(sub, nn.Conv2d)), None)
    if modality is None and (tokenizer is not None or convolution is not None):
        modality = "text" if tokenizer is not None else "image"
    if modality is None:
        raise InputError(
            f'{type(module).__name__}: give wrap a tokenizer, or say modality="image" or "text".'
        )
    if tokenizer is not None and tokenizer.pad_token is None:
        raise InputError(
            "the tokenizer cannot pad. Set tokenizer.pad_token, and pad_token_id in the module's config."
        )
    return Model(
        module,
        name,
        modality,
        Source("module", type(module).__name__),
        tokenizer=tokenizer,
        channels=convolution.in_channels if convolution is not None else 3,
        image_size=hugging_face.image_size(getattr(module, "config", None)),
        labels=labels or hugging_face.label_names(module),
        build=build,
    )


def named(model: Model, labels: tuple[str, ...]) -> Model:
    """A copy of ``model`` whose outputs mean ``labels``, in the order of the outputs.

    For a checkpoint that calls them ``LABEL_0``, ``LABEL_1``, …, or a plain module; other names are replaced.
    Raises :class:`InputError` unless there is a different label for every output, and for the names that the
    outputs have already in another order: one of the two is wrong.
    """
    outputs = _outputs(model)
    if len(labels) != outputs or len(set(labels)) < outputs:
        raise InputError(
            f"{model.name} has {outputs} outputs; {', '.join(labels)} is not a name for each. "
            f"Give {outputs} different labels, in the order of the outputs."
        )
    if model.labels is not None and labels != model.labels and set(labels) == set(model.labels):
        raise InputError(
            f"{model.name} says that its outputs are {', '.join(model.labels)}, in this order. "
            f"Leave the labels out: they are matched by name."
        )
    model = model.copy()
    if isinstance(model.module, PreTrainedModel):
        set_labels_(model.module.config, labels)
    return replace(model, labels=labels)


def _outputs(model: Model) -> int:
    if model.labels is not None:
        return len(model.labels)
    if isinstance(model.module, PreTrainedModel):
        raise InputError(
            f"{model.name} has no head trained for a task, so no outputs to name. Train one first."
        )
    head = model.module.get_submodule(head_names(model.module)[0])
    assert isinstance(head, nn.Linear)
    return head.out_features


def adopted(module: Model | nn.Module, task: Task) -> Model:
    """A :class:`Model` as it is; any other module wrapped, reading what ``task`` is made of and answering with its
    labels, unless it says itself what its outputs mean.

    Raises :class:`InputError` as :func:`wrap`.
    """
    if isinstance(module, Model):
        return module
    own = hugging_face.label_names(module)
    unnamed = own is None or own == tuple(f"LABEL_{i}" for i in range(len(own)))
    return wrap(module, modality=task.modality, labels=task.labels if unnamed else own)


# -- load ------------------------------------------------------------------------------------------------


def load(
    name_or_path: str | Path,
    *,
    labels: tuple[str, ...] | None = None,
    seed: int = 0,
    kind: Kind = "classification",
    device: str | None = None,
) -> Model:
    """The model at a built-in name, a folder or a hub id, looked for in this order.

    With ``labels`` the model has a head for them: its own where that is what its outputs mean (or they are
    as many and unnamed), else a fresh one under ``seed``, which also draws the weights of untrained models.
    ``kind`` says what a checkpoint is loaded as: a generative one becomes a sequence classifier unless
    ``"causal-lm"`` is asked for. No code that comes with a checkpoint is ever run. The model comes on
    ``device``, without one on the accelerator where there is one, with the same weights wherever it is.

    Raises :class:`InputError` for anything that keeps the model from loading whole, with finite weights.
    """
    if kind == "causal-lm" and labels is not None:
        raise InputError("labels name the outputs of a classifier; a causal language model has none.")
    place = chosen_device(device)
    model = _find(name_or_path, seed, kind)
    _check_finite(model)
    model.module.to(place)
    if labels is None or labels == model.labels:
        return model
    if model.labels == tuple(f"LABEL_{i}" for i in range(len(labels))):
        return named(model, labels)
    return model.with_head(labels, seed)


def load_folder(
    path: Path, name: str, source: Source, *, seed: int = 0, kind: Kind = "classification"
) -> Model:
    """The model in a Hugging Face folder, or in one of speclock's own for a plain module.

    ``source`` gets the digest of the weights. Raises :class:`InputError` as :func:`load`.
    """
    folder = examine(path)
    source = replace(source, sha256=_digest(folder))
    if "speclock_model" in folder.config:
        return _load_plain(folder, name, source, kind)
    loaded = hugging_face.read(folder, kind, seed)
    config = loaded.module.config
    return Model(
        loaded.module,
        name,
        loaded.modality,
        source,
        tokenizer=loaded.tokenizer,
        channels=getattr(config, "num_channels", 3),
        image_size=hugging_face.image_size(config),
        preprocessing=loaded.preprocessing,
        labels=() if kind == "causal-lm" else loaded.labels,
        unread=(*further_weights(folder), *loaded.unread),
        beside={file: (path / file).read_text("utf-8") for file in _BESIDE if (path / file).is_file()},
    )


def hub_folder(hub_id: str) -> Path:
    """The local copy of a hub model: fetched where the hub answers, else as the hub's cache has it.

    Raises :class:`InputError` that says why there is none.
    """
    from huggingface_hub import snapshot_download

    online = network()
    get = partial(snapshot_download, hub_id, ignore_patterns=["*/*"], local_files_only=not online)
    try:
        with hugging_face.quiet():
            folder = Path(get(allow_patterns=_HUB_FILES))
            if online and not list(folder.glob("*.safetensors")):
                folder = Path(get(allow_patterns=[*_HUB_FILES, "pytorch_model*.bin"]))
    except (OSError, ValueError, RuntimeError) as error:
        why = (
            f"the hub refuses it ({one_line(error)})"
            if online
            else "not in its cache, and it cannot be reached"
        )
        raise InputError(why) from error
    return folder


def _find(name_or_path: str | Path, seed: int, kind: Kind) -> Model:
    name = str(name_or_path)
    if name in MODELS:
        model: Model = MODELS[name](seed, kind)
        if kind == "causal-lm" and model.modality != "text":
            raise InputError(f"{name} reads images; it does not predict the next token.")
        return model
    path = Path(name).expanduser()
    if path.exists():
        return load_folder(path, name, Source("file", name), seed=seed, kind=kind)
    if _HUB_ID.fullmatch(name):
        try:
            folder = hub_folder(name)
        except InputError as error:
            near = difflib.get_close_matches(name.rpartition("/")[2].lower(), list(MODELS), n=1, cutoff=0.5)
            hint = f" Did you mean the built-in {near[0]!r}?" if near else ""
            raise InputError(
                f"{name}: no such folder, and no model on the hub: {error}.{hint} "
                f"Built in: {', '.join(MODELS)}."
            ) from error
        return load_folder(folder, name, Source("hub", name), seed=seed, kind=kind)
    if isinstance(name_or_path, Path) or re.search(r"[/\\~]|^\.|\.(safetensors|bin|pth?|ckpt|gguf)$", name):
        examine(path)
    raise InputError(f"{unknown('model', name, MODELS)} Or give a model folder, or a hub id (owner/name).")


def _load_plain(folder: Folder, name: str, source: Source, kind: Kind) -> Model:
    """speclock's own folder: ``config.json`` names a class of :data:`_PLAIN` and its arguments."""
    file, known = folder.path / "config.json", folder.config["speclock_model"]
    if known not in _PLAIN:
        raise InputError(
            f"{file} describes a {known!r}, which only its own code can build. Build it, load "
            f"model.safetensors into it, and hand it to speclock.wrap."
        )
    if kind == "causal-lm":
        raise InputError(f"{folder.path}: a {known} does not predict the next token.")
    labels = folder.config.get("labels")
    try:
        module = _PLAIN[known].from_config(folder.config)
        load_model(module, folder.weights[0])
    except InputError as error:
        raise InputError(f"{file}: {error}") from error
    except (RuntimeError, SafetensorError) as error:
        raise InputError(f"{folder.weights[0]} does not fit config.json ({one_line(error)}).") from error
    model = wrap(module.eval(), name=name, labels=tuple(labels) if labels else None)
    unread = tuple(further_weights(folder))
    return replace(model, source=source, image_size=module.image_size, unread=unread)


def _check_finite(model: Model) -> None:
    for name, tensor in model.module.state_dict().items():
        if isinstance(tensor, Tensor) and tensor.is_floating_point() and not tensor.isfinite().all():
            found = "NaN" if tensor.isnan().any() else "infinite"
            raise InputError(
                f"{model.name}: {name} has {found} weights. Use a checkpoint from before it diverged."
            )


def _digest(folder: Folder) -> str:
    """SHA-256 of the weight file; of several, that of their sorted ``name sha256`` lines."""
    if len(folder.weights) == 1:
        return digest(folder.weights[0])
    lines = "".join(f"{file.name} {digest(file)}\n" for file in folder.weights)
    return hashlib.sha256(lines.encode()).hexdigest()


# -- save ------------------------------------------------------------------------------------------------


def save(model: Model, folder: str | Path, extra: Mapping[str, str] | None = None) -> None:
    """Write the checkpoint in its own ecosystem's format: whole, or not at all.

    A Hugging Face model becomes a folder that ``from_pretrained`` loads with no speclock installed; any other
    module ``model.safetensors`` with a ``config.json``. ``extra`` are further text files, name → content.
    Everything is written to a temporary folder beside ``folder`` and put in place by one rename.

    Raises :class:`InputError` where ``folder`` holds something, or cannot be written; nothing is left behind.
    """
    with new_folder(Path(folder)) as temporary:
        try:
            if isinstance(model.module, PreTrainedModel):
                _save_hugging_face(model, temporary)
            else:
                _save_plain(model, temporary)
        except SafetensorError as error:
            raise _as_os_error(error) from error
        for name, content in {**model.beside, **(extra or {})}.items():
            (temporary / name).write_text(content, encoding="utf-8")


def _save_hugging_face(model: Model, folder: Path) -> None:
    assert isinstance(model.module, PreTrainedModel)
    with hugging_face.quiet():
        model.module.save_pretrained(folder)
        if model.tokenizer is not None:
            model.tokenizer.save_pretrained(folder)
        if model.labels is not None and hugging_face.label_names(model.module) != model.labels:
            config = copy.deepcopy(model.module.config)
            set_labels_(config, model.labels)
            config.save_pretrained(folder)


def _save_plain(model: Model, folder: Path) -> None:
    module = model.module
    described = getattr(module, "speclock_config", None)
    config = described or {"speclock_model": f"{type(module).__module__}.{type(module).__qualname__}"}
    save_model(module, str(folder / "model.safetensors"))
    text = json.dumps({**config, "labels": model.labels}, indent=2, ensure_ascii=False)
    (folder / "config.json").write_text(text + "\n", encoding="utf-8")
    if model.tokenizer is not None:
        model.tokenizer.save_pretrained(folder)


def _as_os_error(error: SafetensorError) -> OSError:
    """The operating system's error that safetensors reports in words: ``… (os error 28)``."""
    number = re.search(r"os error (\d+)", str(error))
    if number is None:
        return OSError(one_line(error))
    return OSError(int(number[1]), re.sub(r".*: (.+) \(os error.*", r"\1", one_line(error)))
