"""Linear probes: what a frozen model's layers already know, without a single optimizer step."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from speclock.attacks.base import Attack, InapplicableError, Scene
from speclock.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Float, Int
    from torch import Tensor

    from speclock.models import Model
    from speclock.training import Step

_STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""C of the logistic regression, the inverse of its L2 penalty on standardised features."""
_FINALISTS = 2
"""Views whose C is searched; the others are compared at C = 0.1."""
_NEVER = -1e6
"""Logit of a label without a training example."""


@dataclass(frozen=True, kw_only=True)
class Probe(Attack):
    """Logistic regression on standardised features of one frozen layer, where curvature does not matter.

    Every layer is a candidate: of a transformer the embeddings and each hidden state, as mean over the attention mask,
    first token ([CLS]) and last; of another network each submodule's output, pooled over space. The view and C are
    chosen by cross-validation on the training examples. The released weights stay as they are.
    """

    batch_size: int = 16
    """Examples per forward pass."""
    examples: int = 2000
    """Training examples used at most."""

    name: ClassVar[str] = "probe"
    kind: ClassVar[str] = "probe"

    def __post_init__(self) -> None:
        for field in ("batch_size", "examples"):
            if getattr(self, field) < 1:
                raise InputError(f"{field} is {getattr(self, field)}; it must be at least 1.")

    @property
    def needs_labels(self) -> bool:
        return True

    def requires(self) -> None:
        try:
            import sklearn  # noqa: F401
        except ModuleNotFoundError as error:
            raise InputError("probe comes with scikit-learn: pip install scikit-learn.") from error

    def released_(self, attacked: Model, released: Model) -> Model:
        return released  # whose weights have not been touched

    def prepare_(self, model: Model, scene: Scene) -> None:
        if scene.task.kind != "classification":
            raise InapplicableError("a probe answers with labels, and the task asks for tokens")

    def trajectory(self, model: Model, scene: Scene) -> Iterator[Step]:
        import numpy as np
        import torch
        from torch import nn
        from transformers import PreTrainedModel

        from speclock.models.probing import Probed, layer_features
        from speclock.training import Step

        # No step 0: a probe has no state before it that could be gone back to, its module being another.
        task, body = scene.task, model.module.eval().requires_grad_(False)
        if isinstance(body, PreTrainedModel):
            body.config.output_hidden_states = True
        device = next(body.parameters()).device
        labels = task.train.labels[: self.examples]
        encode = task.collate(model)
        parts: dict[str, list[Tensor]] = {}
        passes = 0
        for start in range(0, len(labels), self.batch_size):
            batch = encode(range(start, min(start + self.batch_size, len(labels))))
            batch = {name: value.to(device) for name, value in batch.items()}
            found = layer_features(body, partial(task.answer, batch=batch), batch.get("attention_mask"))
            for view, x in found.items():
                parts.setdefault(view, []).append(x.cpu())
            passes += 1
        views = {view: torch.cat(xs).numpy() for view, xs in parts.items()}
        # Beyond a layer that overflows nothing is finite; those before it still serve.
        views = {view: x for view, x in views.items() if np.isfinite(x).all()}
        if not views:
            yield Step(1, math.nan, diverged=True, passes=passes)
            return
        best = fitted(views, labels, len(task.labels), task.measure, self.seed)
        readout = nn.Linear(best.weight.shape[1], len(task.labels), device=device)
        with torch.no_grad():
            readout.weight.copy_(torch.from_numpy(best.weight))
            readout.bias.copy_(torch.from_numpy(best.bias))
        model.module = Probed(body, task.answer, best.view, readout)
        yield Step(1, best.loss, passes=passes)


class Readout(NamedTuple):
    """A linear classifier of one view, ``weight @ x + bias`` on features as they are."""

    view: str
    weight: Float[np.ndarray, "c d"]
    bias: Float[np.ndarray, " c"]
    loss: float
    """Mean cross-entropy on the training examples, in nats."""


def fitted(
    views: Mapping[str, Float[np.ndarray, "n _"]],
    labels: Int[np.ndarray, " n"],
    classes: int,
    measure: Callable[[Int[np.ndarray, " n"], Int[np.ndarray, " n"]], float],
    seed: int,
) -> Readout:
    """The view and the strength with the best cross-validated ``measure`` of answers, refitted on all examples.

    Up to five stratified folds. Raises :class:`InapplicableError` where no two labels have two examples each.
    """
    import numpy as np
    from sklearn.decomposition import PCA
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import log_loss, make_scorer
    from sklearn.model_selection import GridSearchCV, StratifiedKFold, cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    counts = np.bincount(labels)
    if (counts >= 2).sum() < 2:
        raise InapplicableError("no two labels have two training examples each to cross-validate with")
    folds = StratifiedKFold(int(np.clip(counts[counts > 0].min(), 2, 5)), shuffle=True, random_state=seed)
    # Turned into the span of the examples, which is all that an L2 penalty leaves weight in: where features are many
    # and examples few, the same minimum in a fraction of the time.
    model = make_pipeline(
        StandardScaler(), PCA(svd_solver="full"), LogisticRegression(C=0.1, tol=1e-3, max_iter=100)
    )
    scored = make_scorer(lambda truth, answers: measure(answers, truth))
    settings = {"cv": folds, "scoring": scored}
    with warnings.catch_warnings():
        # Correlated features converge slowly; cross-validation judges what a hundred iterations have come to.
        warnings.simplefilter("ignore", ConvergenceWarning)
        # A view that is the same for all examples, the first token's embedding, has no variance to share out.
        warnings.filterwarnings("ignore", message="invalid value encountered", category=RuntimeWarning)
        # A label with a single example is in one fold's test part alone.
        warnings.filterwarnings("ignore", message="The least populated class", category=UserWarning)
        ranked = sorted(
            views, key=lambda view: -cross_val_score(model, views[view], labels, **settings).mean()
        )
        grid = {"logisticregression__C": _STRENGTHS}
        searches = {
            view: GridSearchCV(model, grid, **settings).fit(views[view], labels)
            for view in ranked[:_FINALISTS]
        }
    best = max(searches, key=lambda view: searches[view].best_score_)
    scaler, turned, regression = (step for _, step in searches[best].best_estimator_.steps)
    W, b = regression.coef_ @ turned.components_, regression.intercept_
    b = b - W @ turned.mean_
    if len(W) == 1:  # of two classes only the second's log-odds are given
        W, b = np.concatenate([-W / 2, W / 2]), np.concatenate([-b / 2, b / 2])
    W = W / scaler.scale_
    weight, bias = np.zeros((classes, W.shape[1])), np.full(classes, _NEVER)
    weight[regression.classes_], bias[regression.classes_] = W, b - W @ scaler.mean_
    probabilities = searches[best].predict_proba(views[best])
    return Readout(best, weight, bias, float(log_loss(labels, probabilities, labels=regression.classes_)))
