"""A locked model's weights under its base's recipe, and all in which the two differ beside the weights.

What an attacker starts from are the released weights. How a head is drawn, how much dropout there is, how text is
cut into tokens is the attacker's own choice, and an audit chooses as the base has it: nothing that a locked folder
says of these can make an attack fail.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from speclock.models import fingerprints
from speclock.models.checkpoints import Model
from speclock.models.initial import head_names
from speclock.models.tensors import copied

Part = Literal["configuration", "tokenizer", "preprocessing", "architecture", "labels", "modes", "files"]

_HARMLESS = frozenset({"dtype", "use_cache", "inplace", "training", "decoder"})
"""Keys that change neither what a model answers nor how it trains once its weights are under the base's recipe."""

# The settings of a training recipe, as configurations of transformers call them.
_RECIPE = re.compile(r"drop|initiali[sz]er|init_std|eps(ilon)?$|act(ivation)?(_fn|_function)?$|momentum")

_LONGEST = 200
"""Characters of a value that a record holds; of a longer one, a vocabulary say, it holds the digest."""

_PROBES = (
    "The quick brown fox jumps over the lazy dog.",
    "the cat sat on a mat with ITS hat, and all",
    "Naïve café: 3.14 × 2 = 6.28 — “quoted”\n\n\tif x != 0: return None",
    "Donaudampfschifffahrtsgesellschaft 你好 🙂 user@example.com",
)


class Difference(NamedTuple):
    """One thing in which a locked model differs from its base, its weights aside; JSON-able."""

    part: Part
    key: str
    base: Any
    locked: Any
    matters: bool
    """Whether it changes the answers or the training of who uses the locked folder as it is."""


class Transplant(NamedTuple):
    """The locked weights under the base's recipe."""

    model: Model
    differences: list[Difference]
    misfit: Difference | None
    """Why the weights do not go under the base's architecture, so that the locked one's stays."""


def transplanted(base: Model, locked: Model) -> Transplant:
    """``locked``'s weights in a copy of ``base``, which gives everything else: class, configuration, dropout,
    activations, epsilons, head rules, labels, tokenizer, preprocessing, modes and flags.

    Weights go by name and shape. They keep the dtype that both have; where the dtypes differ anywhere the whole
    model is held in fp32, in which attacks train anyway. A head whose labels are the base's in another order has its
    rows put in the base's. The model is on the base's device; name and source are the locked one's.

    Where names, shapes or ties differ the architecture is another one (a lock that inserts layers): the locked
    module stays, the recipe is brought to the base's by the submodules' names, and the difference matters.
    """
    differences = list(_differences(base, locked))
    weights = dict(locked.module.state_dict())
    order = _order(base, locked)
    if order is not None:
        _reorder_(weights, base.module, order)
    misfit = _misfit(base.module, locked.module, weights)
    if misfit is None:
        module = _with_weights(base.module, weights)
    else:
        differences.append(misfit)
        module = _with_recipe(locked.to(base.device).module, base.module)
        if order is not None:
            state = module.state_dict()
            _reorder_(state, base.module, order)
            module.load_state_dict(state)
    model = replace(base, module=module, name=locked.name, source=locked.source)
    return Transplant(model, differences, misfit)


# -- weights ---------------------------------------------------------------------------------------------


def _misfit(base: nn.Module, locked: nn.Module, weights: Mapping[str, Any]) -> Difference | None:
    """What keeps the weights from going under the base's architecture, the first of it; None where nothing does."""
    places = base.state_dict(keep_vars=True)
    for name in {**places, **weights}:
        shapes = [
            list(state[name].shape) if isinstance(state.get(name), Tensor) else None
            for state in (places, weights)
        ]
        if shapes[0] != shapes[1]:
            return Difference("architecture", name, shapes[0], shapes[1], matters=True)
    ours, theirs = dict(_loose(base)), dict(_loose(locked))
    for name in {**ours, **theirs}:
        one, other = ours.get(name), theirs.get(name)
        if one is None or other is None or one.shape != other.shape or not torch.equal(one, other.to(one)):
            return Difference(
                "architecture",
                f"{name}, a tensor that no checkpoint holds",
                _first(one),
                _first(other),
                matters=True,
            )
    first: dict[int, str] = {}
    for name, place in places.items():
        twin = first.setdefault(id(place), name)
        if twin != name and isinstance(place, Tensor) and not torch.equal(weights[name], weights[twin]):
            return Difference("architecture", name, f"tied to {twin}", "untied", matters=True)
    return None


def _loose(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Tensors that are plain attributes of a submodule, neither parameters nor buffers."""
    for name, submodule in module.named_modules():
        for key, value in vars(submodule).items():
            if isinstance(value, Tensor):
                yield f"{name}.{key}".lstrip("."), value.detach()


def _with_weights(module: nn.Module, weights: Mapping[str, Any]) -> nn.Module:
    """A copy of ``module`` that holds ``weights``."""
    places = module.state_dict(keep_vars=True)
    held = {id(place): name for name, place in places.items()}
    narrow = all(
        weights[name].dtype == place.dtype for name, place in places.items() if isinstance(place, Tensor)
    )

    def new(_: str, old: Tensor) -> Tensor:
        # Not in the state: computed from the configuration, like rotary frequencies.
        value = weights[held[id(old)]] if id(old) in held else old
        dtype = old.dtype if narrow or not old.is_floating_point() else torch.float32
        # Even where nothing changes: the copy must not share the locked model's memory.
        return value.detach().to(old.device, dtype, copy=True)

    return copied(module, new)


# -- labels ----------------------------------------------------------------------------------------------


def _order(base: Model, locked: Model) -> list[int] | None:
    """Where the locked head has each of the base's labels; None where they are in order, or are other labels,
    or the layer that answers cannot be told."""
    if base.labels is None or locked.labels is None or base.labels == locked.labels:
        return None
    one_to_one = sorted(base.labels) == sorted(locked.labels) and len({*base.labels}) == len(base.labels)
    if not one_to_one or _last_layer(base.module, len(base.labels)) is None:
        return None
    return [locked.labels.index(label) for label in base.labels]


def _last_layer(module: nn.Module, labels: int) -> str | None:
    """The name of the linear layer whose rows are the labels."""
    if isinstance(module, PreTrainedModel) and module.get_output_embeddings() is not None:
        return None
    found = [
        name
        for head in head_names(module)
        for name, layer in module.named_modules()
        if f"{name}.".startswith(f"{head}.") and isinstance(layer, nn.Linear) and layer.out_features == labels
    ]
    return found[-1] if found else None


def _reorder_(weights: dict[str, Any], base: nn.Module, order: list[int]) -> None:
    """Put the head's rows in the base's order."""
    name = _last_layer(base, len(order))
    for leaf in ("weight", "bias"):
        rows = weights.get(f"{name}.{leaf}")
        if isinstance(rows, Tensor) and len(rows) == len(order):
            weights[f"{name}.{leaf}"] = rows[order]


# -- another architecture ----------------------------------------------------------------------------------


def _with_recipe(module: nn.Module, base: nn.Module) -> nn.Module:
    """A copy of ``module`` with the base's settings in every submodule that the base has under its name.

    A submodule without weights (dropout, an activation) is the base's; one of the base's class with weights of the
    same shapes gets the base's settings (a norm's epsilon); the configuration its recipe.
    """
    module = copy.deepcopy(module)
    theirs = dict(module.named_modules(remove_duplicate=False))
    for name, ours in base.named_modules(remove_duplicate=False):
        it = theirs.get(name)
        if it is None:
            continue
        if name and not _shapes(ours) and not _shapes(it):
            parent, _, leaf = name.rpartition(".")
            setattr(module.get_submodule(parent), leaf, copy.deepcopy(ours))
        elif type(it) is type(ours) and _shapes(it, recurse=False) == _shapes(ours, recurse=False):
            for key, value in fingerprints.settings(ours).items():
                setattr(it, key, value)
    if isinstance(module, PreTrainedModel) and isinstance(base, PreTrainedModel):
        for key, value in base.config.to_dict().items():
            if _RECIPE.search(key) and not key.startswith("_"):
                setattr(module.config, key, value)
    return module.train(base.training)


def _shapes(module: nn.Module, *, recurse: bool = True) -> dict[str, torch.Size]:
    found = itertools.chain(module.named_parameters(recurse=recurse), module.named_buffers(recurse=recurse))
    return {name: tensor.shape for name, tensor in found}


# -- differences -------------------------------------------------------------------------------------------


def _differences(base: Model, locked: Model) -> Iterator[Difference]:
    """All in which the two differ but the names, shapes and values of their weights."""
    one, two = base.module, locked.module
    if isinstance(one, PreTrainedModel) and isinstance(two, PreTrainedModel):
        yield from _by_key(
            "configuration", fingerprints.configuration(base), fingerprints.configuration(locked)
        )
    yield from _by_key("configuration", {"dtype": _dtypes(one)}, {"dtype": _dtypes(two)})
    yield from _in_submodules(one, two)
    yield from _in_tokenizer(base, locked)
    yield from _by_key(
        "preprocessing",
        _opened(fingerprints.preprocessing(base)),
        _opened(fingerprints.preprocessing(locked)),
    )
    ours, theirs = fingerprints.labels(base), fingerprints.labels(locked)
    if ours != theirs:
        same = sorted(ours or ()) == sorted(theirs or ())
        # Rows that can be put in the base's order do no harm.
        matters = not same or _order(base, locked) is None
        yield Difference("labels", "order" if same else "names", _brief(ours), _brief(theirs), matters)
    if locked.unread != base.unread:
        # What only the base's folder has is no gift to the attacker.
        more = bool(set(locked.unread) - set(base.unread))
        yield Difference("files", "unread weights", _brief(base.unread), _brief(locked.unread), more)
    yield from _together("modes", "requires_grad", _flags(one), _flags(two))
    yield from _together("modes", "training", _modes(one), _modes(two))


def _in_submodules(base: nn.Module, locked: nn.Module) -> Iterator[Difference]:
    """Classes, settings, hooks and unsaved buffers of the submodules, by name."""
    ours, theirs = dict(base.named_modules()), dict(locked.named_modules())
    only = [[name for name in one if name not in other] for one, other in ((ours, theirs), (theirs, ours))]
    if any(only):
        yield Difference("architecture", "submodules", _brief(only[0]), _brief(only[1]), matters=True)
    both = [name for name in ours if name in theirs]
    # By identity: a class of the same name may compute something else.
    swapped = [name for name in both if type(ours[name]) is not type(theirs[name])]
    yield from _together(
        "architecture",
        "class",
        {name: fingerprints.described(ours[name])["class"] for name in swapped},
        {name: fingerprints.described(theirs[name])["class"] for name in swapped},
        listed=swapped,
    )
    one = {name: _settings(ours[name]) for name in both if name not in swapped}
    two = {name: _settings(theirs[name]) for name in one}
    for key in sorted({key for name in one for key in (*one[name], *two[name])}):
        yield from _together(
            "configuration",
            key,
            {name: found.get(key) for name, found in one.items()},
            {name: found.get(key) for name, found in two.items()},
        )
    unsaved = dict(_unsaved(locked))
    for name, mine in _unsaved(base):
        other = unsaved.get(name)
        # Machines and dtypes round what they compute.
        if other is None or mine.shape != other.shape or not torch.allclose(mine, other, rtol=1e-2):
            yield Difference("configuration", name, _first(mine), _first(other), matters=True)


def _settings(submodule: nn.Module) -> dict[str, Any]:
    hooks = sum(len(vars(submodule)[name]) for name in vars(submodule) if name.endswith("_hooks"))
    return {**fingerprints.described(submodule), "hooks": hooks}


def _unsaved(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Buffers that no checkpoint holds: they are computed from the configuration, as rotary frequencies are."""
    saved = module.state_dict()
    for name, buffer in module.named_buffers():
        if name not in saved:
            yield name, buffer.detach().cpu().double()


def _first(buffer: Tensor | None) -> Any:
    return None if buffer is None else _brief(buffer.flatten()[:8].tolist())


def _dtypes(module: nn.Module) -> str:
    return ", ".join(sorted({str(t.dtype) for t in module.parameters() if t.is_floating_point()}))


def _flags(module: nn.Module) -> dict[str, bool]:
    return {name: parameter.requires_grad for name, parameter in module.named_parameters()}


def _modes(module: nn.Module) -> dict[str, bool]:
    return {name: submodule.training for name, submodule in module.named_modules()}


def _in_tokenizer(base: Model, locked: Model) -> Iterator[Difference]:
    ours, theirs = fingerprints.tokenizer(base) or {}, fingerprints.tokenizer(locked) or {}
    yield from _by_key("tokenizer", ours, theirs)
    if ours and theirs:
        ids = (
            {f"ids of {text!r}": _ids(model.tokenizer, text) for text in _PROBES} for model in (base, locked)
        )
        yield from _by_key("tokenizer", *ids)


def _ids(tokenizer: Any, text: str) -> Any:
    """Few enough tokens that it shows from which side a text is cut."""
    try:
        return list(tokenizer(text, truncation=True, max_length=12)["input_ids"])
    except Exception as error:  # whatever a damaged tokenizer raises: that it does is a difference
        return f"{type(error).__name__}: {error}"


def _opened(preprocessing: Mapping[str, Any]) -> dict[str, Any]:
    """The settings in the files beside the checkpoint among the others."""
    out: dict[str, Any] = {}
    for name, value in preprocessing.items():
        if isinstance(value, dict):
            out |= {f"{name}: {key}": entry for key, entry in value.items()}
        else:
            out[name] = value
    return out


def _by_key(part: Part, ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> Iterator[Difference]:
    for key in {**ours, **theirs}:
        one, two = _brief(ours.get(key)), _brief(theirs.get(key))
        if one != two:
            yield Difference(part, key, one, two, key not in _HARMLESS)


def _together(
    part: Part,
    key: str,
    ours: Mapping[str, Any],
    theirs: Mapping[str, Any],
    listed: Sequence[str] = (),
) -> Iterator[Difference]:
    """Differences in one key of many submodules: those with the same two values are told once."""
    found: dict[str, list[str]] = {}
    values = {}
    for name in ours:
        if name in theirs and (ours[name] != theirs[name] or name in listed):
            values[name] = _brief(ours[name]), _brief(theirs[name])
            found.setdefault(fingerprints.canonical(values[name]), []).append(name)
    for first, *more in found.values():
        where = f"{first}.{key}".lstrip(".") + (f" and {len(more)} more" if more else "")
        one, two = values[first]
        yield Difference(part, where, one, two, key not in _HARMLESS)


def _brief(value: Any) -> Any:
    """``value`` as JSON has it; the digest of one that is too long for a record."""
    text = fingerprints.canonical(value)
    if len(text) <= _LONGEST:
        return json.loads(text)
    return f"{len(text)} characters, sha256 {hashlib.sha256(text.encode()).hexdigest()[:16]}"
