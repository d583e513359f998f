"""Load, save and build checkpoints. Names load on first use: importing this package costs no torch import."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from speclock.registry import Registry

if TYPE_CHECKING:
    from speclock.models.checkpoints import Model, adopted, load, named, save, wrap
    from speclock.models.fingerprints import Identity, fingerprint, identity
    from speclock.models.transplant import Difference, Transplant, transplanted

MODELS = Registry(
    "model",
    {
        "cnn-mlp": (
            "speclock.models.zoo:cnn_mlp",
            "four-layer MLP on a two-layer CNN, 28×28, 240k weights, untrained (Appendix C)",
        ),
        "resnet18": (
            "speclock.models.zoo:resnet18",
            "ResNet-18 image classifier, 11M weights, untrained (Appendix B.2)",
        ),
        "bert-l2-h64": (
            "speclock.models.zoo:bert_l2_h64",
            "BERT text encoder of 2 layers, width 64, 2M weights, untrained",
        ),
        "minilm": (
            "speclock.models.zoo:minilm",
            "all-MiniLM-L6-v2, a BERT text encoder, 23M weights, pretrained",
        ),
        "smollm2-135m-instruct": (
            "speclock.models.zoo:smollm2_135m_instruct",
            "SmolLM2-135M-Instruct, a Llama language model, 135M weights, pretrained",
        ),
    },
)

_HOMES = {
    "Difference": "transplant",
    "Identity": "fingerprints",
    "Model": "checkpoints",
    "Transplant": "transplant",
    "adopted": "checkpoints",
    "named": "checkpoints",
    "fingerprint": "fingerprints",
    "identity": "fingerprints",
    "load": "checkpoints",
    "save": "checkpoints",
    "transplanted": "transplant",
    "wrap": "checkpoints",
}

__all__ = [
    "MODELS",
    "Difference",
    "Identity",
    "Model",
    "Transplant",
    "adopted",
    "fingerprint",
    "identity",
    "load",
    "named",
    "save",
    "transplanted",
    "wrap",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
