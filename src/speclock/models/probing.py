"""Features of every layer of a frozen module, and the module that answers from one of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from speclock.models.wiring import Run


class Probed(nn.Module):
    """A frozen body with a linear readout of one of its views (see :func:`layer_features`)."""

    def __init__(
        self,
        body: nn.Module,
        answer: Callable[[nn.Module, Mapping[str, Tensor]], Any],
        view: str,
        readout: nn.Linear,
    ) -> None:
        """``answer(body, batch)`` runs the body on a batch, as :meth:`speclock.tasks.base.Task.answer` does."""
        super().__init__()
        self.body = body
        self.answer = answer
        self.view = view
        self.readout = readout

    def forward(self, **batch: Tensor) -> Float[Tensor, "b c"]:
        """Class scores."""
        views = layer_features(self.body, lambda body: self.answer(body, batch), batch.get("attention_mask"))
        logits: Tensor = self.readout(views[self.view])
        return logits


@torch.no_grad()
def layer_features(
    module: nn.Module, run: Run, mask: Tensor | None = None
) -> dict[str, Float[Tensor, "b d"]]:
    """What each layer makes of a batch, as one fp32 vector an example; in the order of the forward pass.

    The layers are a transformer's hidden states, its embeddings first, where the configuration says
    ``output_hidden_states``, else the outputs of all submodules. Tokens (b, t, d) give three views: their mean over
    ``mask`` (b, t), the first and the last of them; maps (b, d, h, w) their mean over space. Each hidden state is there
    once more as a layer behind it reads it where that normalises first, which may be all that it is fit for: every
    token less its mean, over its deviation.
    """
    seen: dict[str, Tensor] = {}
    noted: dict[int, Tensor] = {}  # held, for an identity is reused once its object is gone

    def note(name: str, output: Any) -> None:
        # A container returns what its last part has returned already.
        if isinstance(output, Tensor) and output.is_floating_point() and id(output) not in noted:
            noted[id(output)] = output
            for view, x in _pooled(output, mask).items():
                seen[f"{name} {view}".strip()] = x.float().clone()  # what follows may work in place

    if getattr(getattr(module, "config", None), "output_hidden_states", False):
        for i, state in enumerate(run(module).hidden_states):
            note(f"hidden state {i}", state)
            # In fp64: what is common to all units may be a million times what tells them apart.
            wide = state.double()
            note(f"hidden state {i}, normalised", nn.functional.layer_norm(wide, wide.shape[-1:]))
        return seen
    hooks = [
        part.register_forward_hook(lambda _, __, output, name=name: note(name, output))
        for name, part in module.named_modules()
    ]
    try:
        run(module)
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def _pooled(x: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
    """The views of one layer's output; none where it is not laid out by example."""
    match x.ndim:
        case 2:
            return {"": x}
        case 3:
            if mask is None or mask.shape != x.shape[:2]:
                mask = torch.ones(x.shape[:2], device=x.device)
            kept = mask.to(x.dtype)[..., None]  # (b, t, 1)
            positions = torch.arange(x.shape[1], device=x.device)
            rows = torch.arange(len(x), device=x.device)
            first, last = (mask != 0).int().argmax(dim=1), ((mask != 0) * positions).argmax(dim=1)
            mean = (x * kept).sum(dim=1) / kept.sum(dim=1).clamp_min(1)
            return {"mean": mean, "first": x[rows, first], "last": x[rows, last]}
        case 4:
            return {"mean": x.mean(dim=(2, 3))}
    return {}
