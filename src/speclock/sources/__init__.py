"""Where data and weights come from: the user's own files, the hub, packages; fetched, checked and cached."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Source:
    """Where data or weights came from; part of every record."""

    kind: Literal["file", "hub", "package", "built", "module"]
    """A path of the user's, the hub, a package, a model built from its definition, a module handed over."""
    origin: str
    """The path, the hub id, or ``package==version``."""
    sha256: str | None = None
    """Digest of the file read, where there is one."""
    stand_in: str | None = None
    """What these data stand in for, where they are not the paper's own."""
