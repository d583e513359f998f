"""Show an audit: one self-contained HTML page from the record that the audit left."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from speclock.report.html import render, write, write_comparison, write_frontier

__all__ = ["render", "write", "write_comparison", "write_frontier"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        # matplotlib is slow to import, and only drawing needs it.
        from speclock.report import html

        return getattr(html, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
