"""Arrays out of pickles, without the power of pickle."""

from __future__ import annotations

import io
import pickle
from typing import Any


def load_pickled_arrays(data: bytes) -> Any:
    """The arrays of a pickle, without the power of pickle. Raises ``UnpicklingError`` for any other global.

    >>> load_pickled_arrays(pickle.dumps([1, (2.0, "three")]))
    [1, (2.0, 'three')]
    >>> load_pickled_arrays(pickle.dumps(print))
    Traceback (most recent call last):
    _pickle.UnpicklingError: builtins.print is not allowed here
    """
    return _ArrayUnpickler(io.BytesIO(data), encoding="latin1").load()


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickles numpy arrays in plain containers and nothing else, so that a pickle cannot run code."""

    def find_class(self, module: str, name: str) -> Any:
        import numpy as np

        root = module.replace("numpy._core", "numpy.core")
        if (root, name) == ("numpy.core.multiarray", "_reconstruct"):
            # Private in numpy, but it is what every pickled array names; it moved in numpy 2.
            return np.empty(0).__reduce__()[0]
        if (root, name) == ("numpy.core.numeric", "_frombuffer"):
            return _from_buffer
        if (root, name) in {("numpy", "ndarray"), ("numpy", "dtype")}:
            return getattr(np, name)
        if (root, name) == ("_codecs", "encode"):
            import _codecs

            return _codecs.encode
        raise pickle.UnpicklingError(f"{module}.{name} is not allowed here")


def _from_buffer(data: bytes | bytearray, dtype: Any, shape: tuple[int, ...], order: Any) -> Any:
    """What numpy's private function of the same name does, for pickles of protocol 5."""
    import numpy as np

    return np.frombuffer(data, dtype=dtype).reshape(shape, order=order)
