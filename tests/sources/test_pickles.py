from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from speclock.sources.pickles import load_pickled_arrays


def test_arrays_are_unpickled() -> None:
    arrays = (np.arange(6, dtype=np.float32).reshape(2, 3), np.array([1, 2]))
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        for read, array in zip(load_pickled_arrays(pickle.dumps(arrays, protocol)), arrays, strict=True):
            np.testing.assert_array_equal(read, array)


class Evil:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, ...]:
        return (open, (str(self.target), "w"))


def test_a_pickle_cannot_run_code(tmp_path: Path) -> None:
    with pytest.raises(pickle.UnpicklingError, match="not allowed"):
        load_pickled_arrays(pickle.dumps([np.zeros(2), Evil(tmp_path / "mark")]))
    with pytest.raises(pickle.UnpicklingError, match="not allowed"):
        load_pickled_arrays(pickle.dumps(np.array([Evil(tmp_path / "mark")], dtype=object)))
    assert not (tmp_path / "mark").exists()
