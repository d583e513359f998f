from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from speclock.errors import InputError
from speclock.sources import hub


def test_where_no_source_works_all_are_named() -> None:
    def from_hub() -> Path:
        raise InputError("no network.")

    def from_package() -> Path:
        raise InputError("no such package.")

    with pytest.raises(InputError) as caught:
        hub.hub_or_package("letters", "toys/letters", from_hub, "toy==2.0", from_package)
    line = str(caught.value)
    assert line.startswith(
        "letters: no source works. Path: none given; hub toys/letters: no network; "
        "package toy==2.0: no such package. "
    )
    assert line.endswith("or give a path to data of your own.")
    assert "\n" not in line


def test_a_hub_that_does_not_answer_costs_three_seconds_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    asked = []
    released = threading.Event()

    def hang(*_: object, **__: object) -> None:
        asked.append(1)
        released.wait(60)
        raise OSError

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "_HUB_SECONDS", 0.1)
    monkeypatch.setattr(hub.urllib.request, "urlopen", hang)
    hub.network.cache_clear()
    try:
        began = time.monotonic()
        assert not hub.network()
        assert not hub.network()
        assert time.monotonic() - began < 30, "it does not wait for the answer"
        assert asked == [1]
    finally:
        released.set()
        hub.network.cache_clear()


def test_an_offline_hub_is_not_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub.urllib.request, "urlopen", None)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    hub.network.cache_clear()
    try:
        assert not hub.network()
        with pytest.raises(InputError, match="no network, and not in the local hub cache"):
            hub.load_hub("toys/letters")
    finally:
        hub.network.cache_clear()


def test_a_broken_hub_cache_is_an_answer_not_a_crash(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    from huggingface_hub import constants

    (tmp_path / "toys___letters").mkdir()
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    monkeypatch.setattr(hub, "network", lambda: False)
    before = constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    began = time.monotonic()
    with pytest.raises(InputError, match="toys/letters"):
        hub.load_hub("toys/letters")
    assert time.monotonic() - began < 5
    assert before == (constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE)
