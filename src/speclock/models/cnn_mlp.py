"""The small image classifier of Appendix C."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from speclock.errors import InputError


class CnnMlp(nn.Module):
    """ "A four layer MLP on top of a two layer CNN" [Appendix C], for 28×28 images with three channels.

    The paper gives no widths. Here: 3×3 convolutions to 16 and 32 channels, each followed by ReLU and 2×2
    max-pooling (28 → 14 → 7), then 1568 → 128 → 128 → 128 → ``classes`` with ReLU: 240,234 weights for ten
    classes, nine tenths of them in fully connected layers, as in the models that the theory is about.
    """

    image_size = 28

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.cnn = nn.Sequential(
            nn.Conv2d(3, 16, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
        )
        self.mlp = nn.Sequential(
            nn.Linear(32 * 7 * 7, 128),
            nn.ReLU(),
            nn.Linear(128, 128),
            nn.ReLU(),
            nn.Linear(128, 128),
            nn.ReLU(),
            nn.Linear(128, classes),
        )

    def forward(self, pixel_values: Float[Tensor, "b 3 28 28"]) -> Float[Tensor, "b c"]:
        """Class scores."""
        logits: Tensor = self.mlp(self.cnn(pixel_values))
        return logits

    @property
    def speclock_config(self) -> dict[str, Any]:
        """What ``config.json`` of a saved folder says of this module; :meth:`from_config` builds from it."""
        head = self.mlp[-1]
        assert isinstance(head, nn.Linear)
        return {"speclock_model": "cnn-mlp", "classes": head.out_features}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> CnnMlp:
        """The untrained module that ``config`` describes. Raises :class:`InputError` for bad ``classes``."""
        classes = config.get("classes")
        if not isinstance(classes, int) or isinstance(classes, bool) or classes < 1:
            raise InputError(f'"classes" is {classes!r}; a cnn-mlp needs a whole number of at least 1.')
        return cls(classes)
