"""What an attacker has without a network: linear and kernel models on hand-made features, by scikit-learn.

Texts: TF-IDF of words and of characters under ridge regression, logistic regression, a linear support vector machine
or complement naive Bayes. Images: pixels or histograms of oriented gradients [Dalal & Triggs 2005] under a linear or
RBF support vector machine or nearest neighbours. Which, and how regularised, is chosen by cross-validation on the
training split alone.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from speclock.errors import InputError
from speclock.tasks.base import Encoder, Examples, Split, Task

FOLDS = 5
HELD_OUT = 500
"""Held-out answers that a choice rests on: of a small training split cross-validation is repeated, at most five times.

A hundred answers leave ± 3 points to luck, more than there is between most candidates."""

TUNED_ON = 1000
"""Training examples that the choice is made on, stratified; the chosen model is fitted to all of them."""

KERNEL_LIMIT = 10_000
"""Above so many training examples kernel models, whose cost grows with their square, are not tried."""

SIDE = 64
"""Larger images are shrunk to this side for gradients, and to half of it for pixels."""


@dataclass(frozen=True)
class Classical:
    """The chosen model, fitted to the whole training split of ``task``."""

    name: str
    """What it is, in words."""
    score: float | None
    """The task's metric in cross-validation on the training split; None where no class has two examples."""
    task: Task = field(repr=False)
    encoder: Encoder = field(repr=False)
    pipeline: Any = field(repr=False)
    """The fitted scikit-learn pipeline, from rows as :func:`read` gives them to labels."""

    def answers(self, split: Split = "test", task: Task | None = None) -> Int[np.ndarray, " n"]:
        """The label given to each example of a split, of its own task or of one beside it."""
        task = task or self.task
        return self.pipeline.predict(read(task, task.part(split), self.encoder)).astype(np.int64)


def classical(task: Task, encoder: Encoder, seed: int = 0) -> Classical:
    """The best classical model of ``task``'s training split, which sees what ``encoder`` would be fed.

    The choice is by the task's metric over stratified folds of at most :data:`TUNED_ON` training examples. Seconds
    for hundreds of texts, about a minute for thousands of images. Raises :class:`InputError` where the model that
    is attacked does not read such examples.
    """
    from sklearn.base import clone
    from sklearn.pipeline import make_pipeline

    task.check_kind(encoder)
    rows, labels = read(task, task.train, encoder), task.train.labels
    candidates = _text_models(rows, seed) if task.modality == "text" else _image_models(len(rows))
    tuned = task.limit(train=TUNED_ON, seed=seed).train
    sample = rows if len(tuned) == len(rows) else read(task, tuned, encoder)
    scores = _validated(candidates, sample, tuned.labels, task.measure, seed)
    chosen = max(range(len(candidates)), key=lambda i: scores[i]) if scores else 0
    _, look, features, model = candidates[chosen]
    pipeline = make_pipeline(look, clone(features), clone(model))
    with _unconverged_is_no_error():
        pipeline.fit(rows, labels)
    return Classical(candidates[chosen].name, scores[chosen] if scores else None, task, encoder, pipeline)


# -- the choice ------------------------------------------------------------------------------------------


class _Candidate(NamedTuple):
    name: str
    look: Any
    """A transformer of each row by itself, which nothing is fitted for."""
    features: Any
    """An unfitted transformer of what that gives; candidates that share both follow each other."""
    model: Any


def _validated(
    candidates: list[_Candidate],
    rows: np.ndarray,
    labels: Int[np.ndarray, " n"],
    measure: Callable[[np.ndarray, np.ndarray], float],
    seed: int,
) -> list[float]:
    """Each candidate's score on examples held out in turn; none where nothing can be held out."""
    from sklearn.base import clone

    parts = list(_folds(labels, seed))
    if not parts:
        return []
    truth = np.concatenate([labels[held] for held in parts])
    seen = {look: look.transform(rows) for look in {c.look for c in candidates}}
    answers: list[list[np.ndarray]] = [[] for _ in candidates]
    for held in parts:
        features, inside, outside = None, None, None
        for found, candidate in zip(answers, candidates, strict=True):
            if candidate.features is not features:
                features, looked = candidate.features, seen[candidate.look]
                fitted = clone(features)
                inside, outside = fitted.fit_transform(looked[~held]), fitted.transform(looked[held])
            with _unconverged_is_no_error():
                found.append(clone(candidate.model).fit(inside, labels[~held]).predict(outside))
    return [measure(np.concatenate(found), truth) for found in answers]


def _folds(labels: Int[np.ndarray, " n"], seed: int) -> Iterator[Bool[np.ndarray, " n"]]:
    """Who is held out in each fold, every class spread evenly over the folds; repeated for a small split.

    The only example of a class is never held out: nothing else could teach that class.
    """
    rng = np.random.default_rng(seed)
    several = np.flatnonzero(np.bincount(labels)[labels] > 1)
    if len(several) == 0:
        return
    for _ in range(max(1, min(FOLDS, HELD_OUT // len(several)))):
        shuffled = rng.permutation(several)
        by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
        for fold in range(min(FOLDS, len(several))):
            held = np.zeros(len(labels), dtype=bool)
            held[by_class[fold::FOLDS]] = True
            yield held


def _unconverged_is_no_error() -> warnings.catch_warnings:
    """A solver that stopped at its last iteration is a candidate like any other: its answers are what counts."""
    from sklearn.exceptions import ConvergenceWarning

    return warnings.catch_warnings(action="ignore", category=ConvergenceWarning)


# -- what is read ----------------------------------------------------------------------------------------


def read(task: Task, examples: Examples, encoder: Encoder) -> np.ndarray:
    """The examples as a classical model gets them.

    Images as the task holds them, (n, height, width, channels). Texts as an object array of tuples of one text or
    two, each cut to what is left of it in the tokens that the model is fed.
    """
    if task.modality == "image":
        return np.asarray(examples.inputs)
    if encoder.tokenizer is None:
        raise InputError(f"{task.name} is a text task, but the model {encoder.name} has no tokenizer.")
    columns = [
        list(c) for c in zip(*(t if isinstance(t, tuple) else (t,) for t in examples.inputs), strict=True)
    ]
    cut = _cut_by_offsets if encoder.tokenizer.is_fast else _cut_by_decoding
    rows = np.empty(len(examples), dtype=object)
    rows[:] = cut(columns, encoder.tokenizer, getattr(task, "max_length", None))
    return rows


def _cut_by_offsets(columns: list[list[str]], tokenizer: Any, length: int | None) -> list[tuple[str, ...]]:
    """The stretch of each text from its first token that is kept to its last."""
    encoded = tokenizer(*columns, truncation=True, max_length=length, return_offsets_mapping=True)
    rows = []
    for i, row in enumerate(zip(*columns, strict=True)):
        of_text, offsets = encoded.sequence_ids(i), encoded["offset_mapping"][i]
        cut = []
        for number, text in enumerate(row):
            kept = [span for span, of in zip(offsets, of_text, strict=True) if of == number]
            cut.append(text[min(s for s, _ in kept) : max(e for _, e in kept)] if kept else "")
        rows.append(tuple(cut))
    return rows


def _cut_by_decoding(columns: list[list[str]], tokenizer: Any, length: int | None) -> list[tuple[str, ...]]:
    """What the kept tokens of each text decode to, where the tokenizer does not say where they came from."""
    room = None if length is None else length - tokenizer.num_special_tokens_to_add(pair=len(columns) > 1)
    rows = []
    for row in zip(*columns, strict=True):
        ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in row]
        # The tokenizers' own rule, longest_first: tokens go from the longer text, from the second of equals.
        while room is not None and sum(map(len, ids)) > max(0, room):
            longer = 0 if len(ids[0]) > len(ids[-1]) else -1
            ids[longer] = ids[longer][1:] if tokenizer.truncation_side == "left" else ids[longer][:-1]
        rows.append(tuple(tokenizer.decode(kept) for kept in ids))
    return rows


# -- texts -----------------------------------------------------------------------------------------------

_TOKEN = r"\w+|[^\w\s]"
_START = "\u2402 "
"""Stands before every text, so that first words are features, and an empty text has one."""


@dataclass(frozen=True)
class _Column:
    """One text of a row, lower-cased, behind the start mark."""

    number: int

    def __call__(self, row: tuple[str, ...]) -> str:
        return _START + row[self.number].lower()


def words_of(column: int) -> Any:
    """TF-IDF of the words and pairs of words of one text of each row."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    look = _Column(column)
    return TfidfVectorizer(preprocessor=look, token_pattern=_TOKEN, ngram_range=(1, 2), sublinear_tf=True)


def _text_models(rows: np.ndarray, seed: int) -> list[_Candidate]:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression, RidgeClassifier
    from sklearn.naive_bayes import ComplementNB
    from sklearn.pipeline import make_union
    from sklearn.preprocessing import FunctionTransformer
    from sklearn.svm import LinearSVC

    columns = range(len(rows[0]))
    words = [words_of(i) for i in columns]
    characters = [
        TfidfVectorizer(preprocessor=_Column(i), analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True)
        for i in columns
    ]
    overlap = [FunctionTransformer(overlaps)] if len(columns) > 1 else []
    views = {
        "words and characters": make_union(*words, *characters, *overlap),
        "words": make_union(*words, *overlap),
        "characters": make_union(*characters, *overlap),
    }
    models: dict[str, Any] = {
        **{f"ridge regression, alpha {a:g}": RidgeClassifier(alpha=a) for a in (1.0, 0.1, 10.0)},
        **{"logistic regression, C 10": LogisticRegression(C=10.0, max_iter=300)},
        **{f"linear SVM, C {c:g}": LinearSVC(C=c, random_state=seed) for c in (1.0, 0.1, 10.0)},
        **{f"naive Bayes, alpha {a:g}": ComplementNB(alpha=a) for a in (1.0, 0.1, 0.01)},
    }
    plain = FunctionTransformer()
    return [
        _Candidate(f"TF-IDF of {view}, {name}", plain, features, model)
        for view, features in views.items()
        for name, model in models.items()
    ]


def overlaps(rows: Iterable[tuple[str, str]]) -> Float[np.ndarray, "n 4"]:
    """What two texts share: parts of the words of each that the other has, Jaccard's index, ratio of lengths."""
    found = []
    for row in rows:
        first, second = (set(text.lower().split()) for text in row)
        both, either = len(first & second), max(1, len(first | second))
        shorter, longer = sorted(len(text) for text in row)
        found.append(
            (both / max(1, len(first)), both / max(1, len(second)), both / either, shorter / max(1, longer))
        )
    return np.array(found)


# -- images ----------------------------------------------------------------------------------------------


def _image_models(n: int) -> list[_Candidate]:
    from sklearn.decomposition import PCA
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer, StandardScaler
    from sklearn.svm import SVC, LinearSVC

    def view(look: Callable[[np.ndarray], np.ndarray], scale: bool) -> tuple[Any, Any]:
        # All but a hundredth of the variance: a support vector machine's time goes with the number of dimensions.
        return FunctionTransformer(look), make_pipeline(StandardScaler(with_std=scale), PCA(0.99))

    views = {
        "pixels": view(_pixels, scale=False),
        "standardised pixels": view(_pixels, scale=True),
        "oriented gradients": view(_gradients, scale=False),
    }
    kernels: dict[str, Any] = {
        **{f"RBF support vectors, C {c:g}": SVC(C=c) for c in (10.0, 1.0)},
        **{f"linear support vectors, C {c:g}": SVC(kernel="linear", C=c) for c in (0.1, 0.01)},
    }
    linear: dict[str, Any] = {
        f"linear SVM, C {c:g}": LinearSVC(C=c, random_state=0) for c in (0.001, 0.01, 0.1)
    }
    models = {
        **(kernels if n <= KERNEL_LIMIT else linear),
        # Neighbours must be fewer than the examples that a fold is fitted to.
        **{
            f"{k} nearest neighbours": KNeighborsClassifier(k, weights="distance")
            for k in (1, 3, 5)
            if 2 * k <= n
        },
    }
    return [
        _Candidate(f"{name} on {view}", look, features, model)
        for view, (look, features) in views.items()
        for name, model in models.items()
    ]


def _shrunk(images: np.ndarray, side: int) -> Float[np.ndarray, "n h w c"]:
    """The images in [0, 1], none of their sides longer than ``side``."""
    from skimage.transform import resize

    scaled = images.astype(np.float32) / np.iinfo(images.dtype).max
    if max(scaled.shape[1:3]) <= side:
        return scaled
    factor = side / max(scaled.shape[1:3])
    shape = [max(1, round(length * factor)) for length in scaled.shape[1:3]]
    return np.stack([resize(image, shape, anti_aliasing=True) for image in scaled])


def _pixels(images: np.ndarray) -> Float[np.ndarray, "n d"]:
    return _shrunk(images, SIDE // 2).reshape(len(images), -1)


def _gradients(images: np.ndarray) -> Float[np.ndarray, "n d"]:
    """Histograms of nine orientations in some seven cells a side, normalised over blocks of two by two."""
    from skimage.feature import hog

    small = _shrunk(images, SIDE)
    side = min(small.shape[1:3])
    cell = max(1, side // 7)
    block = min(2, side // cell)
    return np.stack(
        [
            hog(image, pixels_per_cell=(cell, cell), cells_per_block=(block, block), channel_axis=-1)
            for image in small
        ]
    )
