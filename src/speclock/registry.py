"""Names that load on first use, so that listing them costs no torch import."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterator, Mapping
from typing import Any

from speclock.errors import InputError


class Registry(Mapping[str, Any]):
    """A read-only map from a name to the object at ``"module:attribute"``, imported when asked for.

    Each entry also has the one line that ``speclock ls`` prints.

    >>> errors = Registry("error", {"input": ("speclock.errors:InputError", "bad input")})
    >>> errors.descriptions
    {'input': 'bad input'}
    >>> errors["input"].__name__
    'InputError'
    >>> errors["inptu"]
    Traceback (most recent call last):
    speclock.errors.InputError: unknown error 'inptu'. Did you mean 'input'? Known: input.
    """

    def __init__(self, kind: str, entries: Mapping[str, tuple[str, str]]) -> None:
        self.kind = kind
        self._entries = {name: target for name, (target, _) in entries.items()}
        self.descriptions = {name: line for name, (_, line) in entries.items()}

    def __getitem__(self, name: str) -> Any:
        if name not in self._entries:
            raise InputError(unknown(self.kind, name, self._entries))
        module, attribute = self._entries[name].split(":")
        return getattr(importlib.import_module(module), attribute)

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, name: object) -> bool:
        # Mapping's own test calls __getitem__, which imports and raises InputError.
        return name in self._entries


def unknown(kind: str, name: str, known: Mapping[str, Any] | list[str]) -> str:
    """The message for a name that is not among ``known``, with the nearest one suggested."""
    near = difflib.get_close_matches(name.lower(), list(known), n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"unknown {kind} {name!r}.{hint} Known: {', '.join(known)}."
