"""What a model is trained on and judged by: examples, a loss and a score."""

from __future__ import annotations

import hashlib
import inspect
import json
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from speclock.environment import ran_out_of_memory, release_memory
from speclock.errors import InputError
from speclock.registry import unknown
from speclock.sources import Source
from speclock.tasks.splits import group_split

# What transformers calls the outputs of a head that nobody named.
_UNNAMED = re.compile(r"LABEL_\d+")

Batch = dict[str, Tensor]
Split = Literal["train", "validation", "test"]
Modality = Literal["image", "text"]
Metric = Literal["accuracy", "f1"]
Kind = Literal["classification", "causal-lm"]
"""What a model is loaded as: by which outputs it answers."""

_BESIDE = 1000
"""Validation examples on which what stands beside a task is scored at least, where a score counts by it."""
NOTABLE: Mapping[str, float] = {"accuracy": 0.05, "f1": 0.05, "likelihood": 0.01}
"""By metric, how much of a score means something to whoever uses the model. A hundredth of a byte's likelihood is a
thirtieth of a bit, or a tenth of a token's perplexity, where a byte's likelihood is about one half."""
LEAST_VISIBLE: Mapping[str, float] = {"accuracy": 0.1, "f1": 0.1, "likelihood": 0.01}
"""By metric, what the best of a few runs may lie above what they all started from without having learnt anything. A
likelihood moves alike on all examples, whichever they are: what is notable is visible."""


def is_proportion(metric: str) -> bool:
    """Whether a metric counts right answers, so that it is 1 only as long as no mistake has been seen."""
    return metric != "likelihood"


NO_ANSWER = -1
"""Stands for the label where a model's logits are not finite."""

VALIDATION = 1000
"""Most examples of a validation split where no number is asked for: utility is guarded to a point or so."""


@dataclass(frozen=True)
class Preprocessing:
    """What a model's images go through: resized, cropped, then ``(rescale · x − mean) / std`` of 0…255.

    As it stands: 0…255 ↦ [−1, 1], and no size but the one that the model insists on.
    """

    mean: tuple[float, ...] = (1.0,)
    """One number for each channel, or one for all."""
    std: tuple[float, ...] = (1.0,)
    """As ``mean``."""
    rescale: float = 1 / 127.5
    """What the values are multiplied by first."""
    size: tuple[int, int] | int | None = None
    """Height and width to resize to; a single number is the shorter side's, the other in proportion."""
    crop: tuple[int, int] | None = None
    """Height and width of the middle that is kept after resizing; what lies outside the image is black."""
    resample: Literal["nearest-exact", "bilinear", "bicubic"] = "bilinear"
    """How images are resized; the latter two with antialiasing."""

    def __call__(self, images: Float[Tensor, "b c h w"], side: int | None) -> Float[Tensor, "b c h2 w2"]:
        """``images``, 0…255, as the model takes them; ``side`` is the size where none is said here."""
        height, width = images.shape[2:]
        size = self.size if self.size is not None or side is None else (side, side)
        if isinstance(size, int):
            short = min(height, width)
            size = (int(size * height / short), int(size * width / short))
        if size is not None and size != (height, width):
            smooth = self.resample != "nearest-exact"
            images = nn.functional.interpolate(images, size, mode=self.resample, antialias=smooth)
            images = images.clamp(0, 255)  # bicubic weights overshoot
        if self.crop is not None:
            down, right = (have - want for have, want in zip(images.shape[2:], self.crop, strict=True))
            # A negative pad cuts off.
            images = nn.functional.pad(
                images, (-(right // 2), right // 2 - right, -(down // 2), down // 2 - down)
            )
        mean, std = (images.new_tensor(values).view(-1, 1, 1) for values in (self.mean, self.std))
        return (images * self.rescale - mean) / std


PLAIN_PIXELS = Preprocessing()
"""For a model that says nothing of its images."""


@runtime_checkable
class Encoder(Protocol):
    """What a task needs of a model to turn its examples into tensors (see ``speclock.models.Model``)."""

    name: str
    modality: Modality
    tokenizer: Any
    channels: int
    image_size: int | None
    preprocessing: Preprocessing
    labels: tuple[str, ...] | None


@runtime_checkable
class Answerer(Encoder, Protocol):
    """What a task needs of a model to score it: how to feed it, and the module that answers."""

    module: nn.Module


@dataclass(frozen=True)
class Examples:
    """Inputs and their labels; ``inputs`` is indexable by an integer array."""

    inputs: Any
    labels: Int[np.ndarray, " n"]
    groups: Int[np.ndarray, " n"] | None = field(default=None, repr=False)
    """Numbers of what must stand on one side of a split, near copies for one, where there are any."""

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: Int[np.ndarray, " m"]) -> Examples:
        """The examples at ``rows``, in that order."""
        groups = None if self.groups is None else self.groups[rows]
        return replace(self, inputs=self.inputs[rows], labels=self.labels[rows], groups=groups)


@dataclass(frozen=True, eq=False)
class Task(ABC):
    """Single-label classification with train, validation and test splits; a subclass may ask for something else.

    What is trained sees ``train``; every choice (a lock's state, a run's best step, a configuration) is made on
    ``validation``; ``test`` is scored for what is quoted. A task without a validation split is *undivided*:
    :meth:`divided` gives it one, as :func:`speclock.tasks.load` and every lock, attack and audit do.

    A subclass says how its inputs become tensors (:meth:`encode`); the loss, the score and the batches
    are the same for all. The module may return logits or an object with ``.logits``.
    """

    name: str
    train: Examples
    test: Examples
    labels: tuple[str, ...]
    source: Source
    metric: Metric | Literal["likelihood"] = "accuracy"
    at_random: float | None = None
    """What the metric comes to without having learnt, where that is not the commonest label's share."""
    validation: Examples | None = None
    """What choices are made on; None while the task is undivided."""
    beside: Mapping[str, Task] = field(default_factory=dict)
    """Tasks with the same labels whose scores belong beside this one's: the clean task of a poisoned one."""
    in_place: bool = False
    """Whether what is wanted is of use in this model alone, as a backdoor is: another kind of model with it is none."""
    collapses: bool = False
    """Whether a score here counts only while those beside it are kept: a backdoor's, a relearning's."""
    positive: int = 1
    """Number of the label that F1 is of."""

    modality: ClassVar[Modality]
    kind: ClassVar[Kind] = "classification"

    def __post_init__(self) -> None:
        for split in ("train", "validation", "test"):
            examples: Examples | None = getattr(self, split)
            if examples is None:
                continue
            if len(examples) == 0:
                raise InputError(
                    f"{self.name}: the {split} split is empty. Give it at least one example a class."
                )
            self._check(split, examples)

    def _check(self, split: str, examples: Examples) -> None:
        # uint16 images and object texts alike: only the labels are checked here.
        if examples.labels.min() < 0 or examples.labels.max() >= len(self.labels):
            raise InputError(f"{self.name}: the {split} split has a label outside 0…{len(self.labels) - 1}.")
        if split == "train" and len(np.unique(examples.labels)) < 2:
            raise InputError(
                f"{self.name}: every training example has the same label; a task needs at least two classes."
            )

    # -- data ----------------------------------------------------------------------------------------

    @property
    def head(self) -> tuple[str, ...]:
        """What the outputs of a model's head must mean for it to do the task as it is."""
        return self.labels

    @property
    def chance(self) -> float:
        """The score of always answering the commonest test label (accuracy) or the positive one (F1)."""
        if self.at_random is not None:
            return self.at_random
        counts = np.bincount(self.test.labels, minlength=len(self.labels)) / len(self.test)
        if self.metric == "f1":
            return float(2 * counts[self.positive] / (1 + counts[self.positive]))
        return float(counts.max())

    def part(self, split: Split) -> Examples:
        """The examples of a split. Raises :class:`InputError` for the validation split of an undivided task."""
        examples: Examples | None = getattr(self, split)
        if examples is None:
            raise InputError(f"{self.name} has no {split} split yet. Call its divided() first.")
        return examples

    def digest(self) -> str:
        """SHA-256 over every input and label of the task and of those beside it, and over how it is scored: what a
        kept run is bound to."""
        scored = (self.labels, self.metric, self.at_random, self.positive, self.collapses)
        total = hashlib.sha256(repr(scored).encode())
        for examples in (self.train, self.validation, self.test):
            if examples is not None:
                total.update(f"{len(examples)}".encode())
                total.update(np.ascontiguousarray(examples.labels, dtype=np.int64).data)
                total.update(content(np.asarray(examples.inputs)))
        for name, task in sorted(self.beside.items()):
            total.update(f"{name} {task.digest()}".encode())
        return total.hexdigest()

    def describe(self) -> dict[str, Any]:
        """What a record says of the task, JSON-able."""
        return {
            "name": self.name,
            "labels": list(self.labels),
            "train": len(self.train),
            "validation": 0 if self.validation is None else len(self.validation),
            "test": len(self.test),
            "digest": self.digest(),
            "chance": self.chance,
            "metric": self.metric,
            "collapses": self.collapses,
            "source": asdict(self.source),
        }

    def limit(
        self,
        train: int | None = None,
        test: int | None = None,
        validation: int | None = None,
        *,
        seed: int = 0,
    ) -> Task:
        """The same task on a stratified random subset of each split, of at most so many rows.

        The tasks beside it are limited alike, except in what is trained on, which is this task's own, and where a
        score counts only beside theirs: a bar of a few points takes a thousand examples to see.
        """
        beside = max(validation, _BESIDE) if self.collapses and validation is not None else validation

        def some(examples: Examples, size: int | None) -> Examples:
            return examples.take(self.drawn(examples, size, seed))

        return replace(
            self,
            train=some(self.train, train),
            validation=None if self.validation is None else some(self.validation, validation),
            test=some(self.test, test),
            beside={
                name: task.limit(test=test, validation=beside, seed=seed)
                for name, task in self.beside.items()
            },
        )

    def divided(
        self,
        train: int | None = None,
        test: int | None = None,
        validation: int | None = None,
        *,
        seed: int = 0,
    ) -> Task:
        """The task with three splits; one that is divided already stays as it is but for the limits.

        ``train`` rows are drawn by ``seed``, stratified. Validation comes from what the training split holds
        beyond them: an attacker with 32 posts cannot spare eight, and to let the auditor choose for it errs on
        the attacker's side. Where that is too little, half of the test split is taken instead. The test rows are
        the same under every seed; the validation rows (at most ``validation``, or :data:`VALIDATION`) are drawn from
        what a seed's training rows leave, and so are others under another seed. Of examples in groups they are whole
        groups, the same under every seed, of which nothing is trained on: to choose by near copies of what was trained
        on is to choose by what was learnt by heart.
        """
        if self.validation is not None:
            asked = any(limit is not None for limit in (train, test, validation))
            return self.limit(train, test, validation, seed=seed) if asked else self
        size = VALIDATION if validation is None else validation
        kept, held, tested = *self._held_back(train, size, seed), self.test
        if held is None:
            kept = self.train.take(self.drawn(self.train, train, seed))
            held, tested = self._halved()
        return replace(
            self,
            train=kept,
            validation=held.take(self.drawn(held, size, 0)),
            test=tested.take(self.drawn(tested, test, 0)),
        )

    def _held_back(self, train: int | None, size: int, seed: int) -> tuple[Examples, Examples | None]:
        """What is trained on, and what the training split holds beyond it; none of it where that is too little."""
        source, least = self.train, min(size, max(1, len(self.test) // 2))
        if source.groups is None:
            drawn = self.drawn(source, train, seed)
            beyond = source.take(np.setdiff1d(np.arange(len(source)), drawn))
            return source.take(drawn), beyond if len(beyond) >= least else None
        spare = len(source) - min(len(source), train or len(source))
        rest, apart = group_split(source.groups, min(size, spare) / len(source))
        source, beyond = source.take(np.sort(rest)), source.take(np.sort(apart))
        # Whole groups fill the room but for a few rows.
        return source.take(self.drawn(source, train, seed)), beyond if len(beyond) >= 0.9 * least else None

    def _halved(self) -> tuple[Examples, Examples]:
        """The test split as one half that things are chosen on and one that is quoted."""
        pool = self.test
        if pool.groups is None:
            quoted = self.drawn(pool, (len(pool) + 1) // 2, 0)
            others = np.setdiff1d(np.arange(len(pool)), quoted)
        else:
            quoted, others = group_split(pool.groups, 0.5)
        if len(others) == 0:
            raise InputError(
                f"{self.name}: one test example cannot be both chosen by and scored on. Give it two or more."
            )
        return pool.take(np.sort(others)), pool.take(np.sort(quoted))

    def drawn(self, examples: Examples, size: int | None, seed: int) -> Int[np.ndarray, " m"]:
        """At most ``size`` row numbers of ``examples``, each class in proportion (largest remainders), shuffled by
        ``seed``.

        All of them, in order, where there are no more. A class too rare for its share to round up to one row still
        keeps one, where ``size`` allows, at the expense of the commonest.
        """
        classes = len(self.labels)
        if size is None or size >= len(examples):
            return np.arange(len(examples))
        if size < 1:
            raise InputError(f"a limit of {size} examples: ask for at least one.")
        rng = np.random.default_rng(seed)
        exact = np.bincount(examples.labels, minlength=classes) * (size / len(examples))
        quota = np.floor(exact).astype(int)
        quota[np.argsort(quota - exact, kind="stable")[: size - quota.sum()]] += 1
        present = exact > 0
        if size >= present.sum():
            for rare in np.flatnonzero(present & (quota == 0)):
                quota[quota.argmax()] -= 1
                quota[rare] = 1
        rows = [rng.permutation(np.flatnonzero(examples.labels == c))[: quota[c]] for c in range(classes)]
        return rng.permutation(np.concatenate(rows))

    def keep(self, labels: Sequence[str]) -> Task:
        """The task on the examples of some labels, numbered anew in the order of :attr:`labels`.

        A name that is no label selects every label it is a prefix of: ``sci`` keeps all of ``sci.*``.
        """
        kept: set[str] = set()
        for name in labels:
            chosen = (
                [name] if name in self.labels else [label for label in self.labels if label.startswith(name)]
            )
            if not name or not chosen:
                raise InputError(f"{self.name}: {unknown('label', name, list(self.labels))}")
            kept.update(chosen)
        if len(kept) < 2:
            raise InputError(f"{self.name}: only the label {kept.pop()!r} is kept. Name at least two.")
        number = np.cumsum([label in kept for label in self.labels]) - 1

        def only(examples: Examples) -> Examples:
            rows = np.flatnonzero([self.labels[label] in kept for label in examples.labels])
            return replace(examples.take(rows), labels=number[examples.labels[rows]])

        names = tuple(label for label in self.labels if label in kept)
        validation = None if self.validation is None else only(self.validation)
        return replace(
            self, train=only(self.train), validation=validation, test=only(self.test), labels=names
        )

    def scored_by(self, metric: Metric) -> Task:
        """The same task under another metric. Raises :class:`InputError` for an F1 of more than two labels."""
        if metric == "f1" and len(self.labels) != 2:
            raise InputError(f"{self.name} has {len(self.labels)} labels; f1 is of the second of two.")
        return replace(self, metric=metric)

    @abstractmethod
    def encode(self, examples: Examples, encoder: Encoder) -> Batch:
        """Tensors that the module takes as keyword arguments, plus ``labels``; padded to the longest row."""

    def batches(
        self,
        encoder: Encoder,
        split: Split,
        batch_size: int,
    ) -> Iterator[Batch]:
        """The split in its own order, in batches of ``batch_size``."""
        examples = self.part(split)
        for start in range(0, len(examples), batch_size):
            yield self.encode(
                examples.take(np.arange(start, min(start + batch_size, len(examples)))), encoder
            )

    def collate(self, encoder: Encoder) -> Callable[[Sequence[int]], Batch]:
        """A ``DataLoader`` collate function from training row numbers to a batch."""
        return lambda rows: self.encode(self.train.take(np.asarray(rows)), encoder)

    def lengths(self, examples: Examples, encoder: Encoder) -> Int[np.ndarray, " n"] | None:
        """Tokens of each example, the shorter of which a batch fills up; None where all are of one size."""
        return None

    def check_kind(self, encoder: Encoder) -> None:
        """Raise :class:`InputError` unless the model reads what this task is made of."""
        if encoder.modality != self.modality:
            raise InputError(
                f"{self.name} is made of {self.modality}s, but {encoder.name} reads {encoder.modality}s. "
                f"Choose a task or a model that fits the other."
            )
        if (encoder.labels == ()) != (self.kind == "causal-lm"):
            answers = "the next token" if encoder.labels == () else "labels"
            raise InputError(
                f"{self.name} is a {self.kind} task, but {encoder.name} answers with {answers}. "
                f"Choose a task of the other kind."
            )

    def fits(self, encoder: Encoder) -> bool:
        """Whether the labels of the model's head are this task's, whatever their order: see :meth:`fitted_to`."""
        return self._numbering(encoder.labels or ()) is not None

    def fitted_to(self, encoder: Encoder) -> Task:
        """This task with its labels numbered, and spelt, as the outputs of the model's head are.

        They are matched by name, whatever their order: exactly, or else without regard to case and with
        ``LABEL_1`` for ``1``. Raises :class:`InputError` where that leaves any label over on either side.
        """
        self.check_kind(encoder)
        if encoder.labels is None:
            raise InputError(
                f"{encoder.name} has no head trained for a task. Make a base that does {self.name} with: "
                f"speclock train {encoder.name} --task {self.name} --out DIR"
            )
        number = self._numbering(encoder.labels)
        if number is not None:
            return self._renumbered(number, encoder.labels)
        if len(encoder.labels) == len(self.labels) and all(map(_UNNAMED.fullmatch, encoder.labels)):
            raise InputError(
                f"{encoder.name} does not say what its outputs mean ({_listed(encoder.labels)}). Name them in "
                f"their order, in the words of {self.name}: --labels {','.join(self.labels)} if that is it."
            )
        raise InputError(
            f"the labels of {self.name} ({_listed(self.labels)}) do not fit the head of {encoder.name} "
            f"({_listed(encoder.labels)}). Name the task that it was trained for."
        )

    def _numbering(self, labels: tuple[str, ...]) -> Int[np.ndarray, " c"] | None:
        """Where each label of the task stands among ``labels``; None unless they match one to one."""
        for spelt in (str, _plain):
            ours, theirs = [spelt(label) for label in self.labels], [spelt(label) for label in labels]
            if len(ours) == len(theirs) == len(set(ours)) and set(ours) == set(theirs):
                return np.array([theirs.index(label) for label in ours])
        return None

    def _renumbered(self, number: Int[np.ndarray, " c"], labels: tuple[str, ...]) -> Task:
        """The label that was i is ``number[i]``, by the name ``labels[number[i]]``, here and in what is beside."""
        splits: dict[str, Any] = {
            name: replace(examples, labels=number[examples.labels])
            for name, examples in vars(self).items()
            if isinstance(examples, Examples)
        }
        beside = {name: task._renumbered(number, labels) for name, task in self.beside.items()}
        positive = int(number[self.positive])
        return replace(self, **splits, labels=labels, beside=beside, positive=positive)

    # -- loss and score ------------------------------------------------------------------------------

    def answer(self, module: nn.Module, batch: Mapping[str, Tensor]) -> Any:
        """What the module returns for a batch.

        Inputs go by name, as Hugging Face models take them; a single input goes by position where the
        module's ``forward`` calls it something else, as plain modules do. Pixels take the module's dtype.
        """
        dtype = next((p.dtype for p in module.parameters() if p.is_floating_point()), None)
        inputs = {
            name: value.to(dtype) if value.is_floating_point() else value
            for name, value in batch.items()
            if name != "labels"
        }
        return module(**inputs) if len(inputs) > 1 or _takes(module, *inputs) else module(*inputs.values())

    def logits(self, module: nn.Module, batch: Mapping[str, Tensor]) -> Float[Tensor, "b c"]:
        """The module's class scores on a batch."""
        out = self.answer(module, batch)
        logits = getattr(out, "logits", out)
        if logits.ndim != 2 or logits.shape[-1] != len(self.labels):
            raise InputError(
                f"{self.name} has {len(self.labels)} labels, but the model answers with shape "
                f"{tuple(logits.shape)}. Use a task whose labels fit the model's head."
            )
        return logits

    def loss(self, module: nn.Module, batch: Mapping[str, Tensor]) -> Float[Tensor, ""]:
        """Mean cross-entropy in nats, in fp32 whatever the module's dtype."""
        return self.loss_of(self.logits(module, batch).float(), batch)

    def loss_of(self, logits: Float[Tensor, "b c"], batch: Mapping[str, Tensor]) -> Float[Tensor, ""]:
        """The loss of logits that are there already."""
        return nn.functional.cross_entropy(logits, batch["labels"])

    def averaged(self, each: Float[Tensor, " n"], batch: Mapping[str, Tensor]) -> Float[Tensor, ""]:
        """The mean over a batch's examples of something that each row of its logits has."""
        return each.mean()

    def score(self, model: Answerer, split: Split = "test", batch_size: int = 64) -> float:
        """The metric of a model's answers over a split; NaN where the model has broken down: see :func:`broken`."""
        answers = self.answers(model, split, batch_size)
        return math.nan if broken(answers) else self.measured(answers, split)

    def measured(self, answers: Int[np.ndarray, " n"], split: Split = "test") -> float:
        """The metric of these answers to a split's examples; :data:`NO_ANSWER` is a wrong one."""
        return self.measure(answers, self.part(split).labels)

    def measure(self, answers: Int[np.ndarray, " n"], truth: Int[np.ndarray, " n"]) -> float:
        """The metric of these answers where those would be right."""
        return _metric(self.metric, answers, truth, self.positive)

    def guessed(self) -> Int[np.ndarray, " n"]:
        """Answers to the test split without having learnt: one label for all, that which comes closest to chance."""
        truth = self.test.labels
        same = [np.full_like(truth, label) for label in range(int(truth.max()) + 1)]
        return min(same, key=lambda answers: abs(self.measure(answers, truth) - self.chance))

    def answers(self, model: Answerer, split: Split = "test", batch_size: int = 64) -> Int[np.ndarray, " n"]:
        """The label that a model gives each example of a split: see :meth:`confidences`."""
        return self.confidences(model, split, batch_size)[0]

    def samples(self, model: Answerer) -> list[tuple[str, str]]:
        """(what is asked, what the model writes) for a few test examples; of a language model alone."""
        return []

    @torch.no_grad()
    def confidences(
        self, model: Answerer, split: Split = "test", batch_size: int = 64
    ) -> tuple[Int[np.ndarray, " n"], Float[np.ndarray, " n"]]:
        """The label that a model gives each example of a split, and its softmax there.

        In evaluation mode, which is put back afterwards. :data:`NO_ANSWER` and 0 where a logit is not finite. A batch
        that does not fit into memory is halved.
        """
        module = model.module
        device = next(module.parameters()).device
        was_training = module.training
        module.eval()
        examples = self.part(split)
        lengths = self.lengths(examples, model)
        # Examples of one length side by side: less of a batch is padding.
        order = np.arange(len(examples)) if lengths is None else np.argsort(lengths, kind="stable")
        found, sure = [], []
        try:
            for start in range(0, len(order), batch_size):
                batch = self.encode(examples.take(order[start : start + batch_size]), model)
                logits = in_parts(
                    lambda part: self.logits(module, part).float().cpu(),
                    {name: value.to(device) for name, value in batch.items()},
                )
                finite = logits.isfinite().all(-1)
                found.append(logits.argmax(-1).where(finite, torch.tensor(NO_ANSWER)))
                sure.append(logits.softmax(-1).max(-1).values.where(finite, torch.zeros(())))
        finally:
            module.train(was_training)
        back = np.argsort(order)
        return torch.cat(found).numpy()[back], torch.cat(sure).double().numpy()[back]


def content(inputs: np.ndarray) -> bytes | memoryview:
    """What a digest of inputs is taken over: their bytes, or as JSON where they are texts."""
    if inputs.dtype == object:
        return json.dumps(inputs.tolist()).encode()
    return np.ascontiguousarray(inputs).data


def broken(answers: Int[np.ndarray, " n"]) -> bool:
    """Whether more than a tenth of the answers are none: fewer are as many wrong ones, for whoever uses the model."""
    return bool((answers == NO_ANSWER).mean() > 0.1)


def in_parts(answer: Callable[[Batch], Tensor], batch: Batch) -> Tensor:
    """``answer(batch)``, or the answers of its halves one after the other where memory does not hold the whole."""
    try:
        return answer(batch)
    except RuntimeError as error:
        rows = len(batch["labels"])
        if not ran_out_of_memory(error) or rows == 1:
            raise
    release_memory()
    halves = [{name: value[part] for name, value in batch.items()} for part in _halves(rows)]
    return torch.cat([in_parts(answer, half) for half in halves])


def _halves(rows: int) -> tuple[slice, slice]:
    return slice(0, rows // 2), slice(rows // 2, rows)


def _plain(label: str) -> str:
    """A label as it is compared where spellings differ.

    >>> _plain("LABEL_1"), _plain("Not_Entailment")
    ('1', 'not_entailment')
    """
    return label.casefold().removeprefix("label_") if _UNNAMED.fullmatch(label) else label.casefold()


def _listed(labels: Sequence[str]) -> str:
    shown = ", ".join(labels[:4])
    return f"{len(labels)}: {shown}, …" if len(labels) > 4 else shown


def _takes(module: nn.Module, name: str) -> bool:
    """Whether the module's ``forward`` has an argument of this name, or takes any."""
    parameters = inspect.signature(module.forward).parameters
    return name in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def _metric(
    metric: str, answers: Int[np.ndarray, " n"], truth: Int[np.ndarray, " n"], positive: int = 1
) -> float:
    """Accuracy, or F1 of the ``positive`` class, as fractions.

    >>> _metric("accuracy", np.array([1, 0, 1]), np.array([1, 1, 1])) == 2 / 3
    True
    >>> _metric("f1", np.array([1, 0, 1]), np.array([1, 1, 0]))
    0.5
    """
    if metric == "accuracy":
        return float((answers == truth).mean())
    said, true = answers == positive, truth == positive
    return 2 * int((said & true).sum()) / max(1, int(said.sum()) + int(true.sum()))
