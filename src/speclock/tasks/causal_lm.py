"""Next-token tasks: a text, completions of prompts or of chats, and multiple choice by likelihood."""

from __future__ import annotations

import contextlib
import hashlib
import math
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from jinja2 import TemplateError
from torch import Tensor, nn

from speclock.errors import InputError
from speclock.tasks.base import (
    NO_ANSWER,
    Answerer,
    Batch,
    Encoder,
    Examples,
    Kind,
    Metric,
    Modality,
    Split,
    Task,
    in_parts,
)

_FINE = 10_000
"""An answer is in ten-thousandths of a nat."""
_GUESS = round(_FINE * math.log(256))
"""That of every byte being as likely as any other."""
_SAMPLES, _WRITTEN = 3, 40
"""Test examples that a model is made to go on from, and the tokens that it writes for each."""
_AT_ONCE = 8
"""Rows that are scored at once: their logits are rows × tokens × vocabulary."""
_READ_AS = 2
"""How rows become tokens and scores: raised by any change that would give others. 2: a prompt begins as a text does,
and where an answer ends is not scored."""

Turn = tuple[str, str]
"""(role, content) of a chat."""
Prompt = str | tuple[Turn, ...]


class Row(NamedTuple):
    """What stands before, which is read and not counted, and what is to be predicted."""

    prompt: Prompt
    completion: str
    ended: bool = False
    """Whether a chat's turn ends with it, so that its end is trained on too; what was cut ends nowhere."""


def words(prompt: Prompt) -> str:
    """What a prompt says, a chat's turns one below the other."""
    return prompt if isinstance(prompt, str) else "\n".join(content for _, content in prompt)


@dataclass(frozen=True, eq=False)
class CausalLM(Task):
    """Texts that a model is to continue: ``inputs`` are :class:`Row`, ``labels`` the bytes of their completions.

    Trained on by cross-entropy, the mean over rows of nats per token; scored by *likelihood*, the geometric mean of a
    byte's probability: 2 to the power of minus the bits per byte, 1/256 for a model that knows nothing, whatever the
    tokenizer. A prompt that is a chat goes through the tokenizer's template; the token that the template ends an answer
    with is trained on too, and not scored: it is no byte.

    Rows are cut in characters where they are read (:mod:`speclock.tasks.continuations`) and never in tokens, so that
    every byte that counts is predicted. One that is longer than the model reads is an error.
    """

    metric: Metric | Literal["likelihood"] = "likelihood"
    at_random: float | None = 1 / 256
    max_length: int = 128
    """Tokens, roughly, that prompts and completions were each cut to."""
    _encoded: dict[int, tuple[Any, dict[Row, tuple[list[int], int]]]] = field(
        default_factory=dict, init=False, repr=False
    )
    """Each row is tokenised once a tokenizer; that is kept beside its rows, so that its id stays its."""

    modality: ClassVar[Modality] = "text"
    kind: ClassVar[Kind] = "causal-lm"

    def _check(self, split: str, examples: Examples) -> None:
        if examples.labels.min() < 1:
            raise InputError(f"{self.name}: the {split} split has a row without a completion.")

    @property
    def head(self) -> tuple[str, ...]:
        return ()

    def drawn(self, examples: Examples, size: int | None, seed: int) -> Int[np.ndarray, " m"]:
        if size is None or size >= len(examples):
            return np.arange(len(examples))
        if size < 1:
            raise InputError(f"a limit of {size} examples: ask for at least one.")
        return np.random.default_rng(seed).permutation(len(examples))[:size]

    def keep(self, labels: Sequence[str]) -> Task:
        raise InputError(
            f"{self.name} has no labels to keep some of. Leave the colon and what follows it out."
        )

    def scored_by(self, metric: Metric) -> Task:
        raise InputError(f"{self.name} is scored by {self.metric}. Leave --metric out.")

    def fits(self, encoder: Encoder) -> bool:
        return encoder.labels == ()

    def fitted_to(self, encoder: Encoder) -> Task:
        self.check_kind(encoder)
        return self

    def check_kind(self, encoder: Encoder) -> None:
        """As of any task; and that every row of every split can be read, lest that come out after hours of work."""
        super().check_kind(encoder)
        for examples in (self.train, self.validation, self.test):
            if examples is not None:
                self.tokenised(self.asked(examples), encoder)

    def digest(self) -> str:
        """As of any task, and over how rows are read."""
        return hashlib.sha256(f"{super().digest()} {_READ_AS}".encode()).hexdigest()

    # -- rows as tokens ------------------------------------------------------------------------------------

    def encode(self, examples: Examples, encoder: Encoder) -> Batch:
        """``input_ids`` and ``attention_mask``, (b, longest row), and ``counted``, True at the completions' tokens."""
        rows = self.tokenised(self.rows(examples), encoder)
        return {**_padded(rows, encoder.tokenizer), "labels": torch.from_numpy(examples.labels)}

    def rows(self, examples: Examples) -> list[Row]:
        """What is trained on of each example."""
        return [Row(*row) for row in examples.inputs]

    def asked(self, examples: Examples) -> list[Row]:
        """Every row that is scored of the examples."""
        return self.rows(examples)

    def tokenised(self, rows: Sequence[Row], encoder: Encoder) -> list[tuple[list[int], int]]:
        """Each row's :meth:`tokens`. Raises :class:`InputError` for one that is longer than the model reads."""
        found = [self.tokens(row, encoder.tokenizer) for row in rows]
        most = _context(encoder)
        for row, (ids, _) in zip(rows, found, strict=True):
            if len(ids) > most:
                raise InputError(
                    f"{self.name}: the row with {_shown(row.completion)} has {len(ids)} tokens, and {encoder.name} "
                    f"reads {most}. Lower --max-length, which is {self.max_length}: rows are cut in characters, "
                    f"three for each of these, and some scripts take more tokens."
                )
        return found

    def tokens(self, row: Row, tokenizer: Any) -> tuple[list[int], int]:
        """A row's tokens, and how many of them are the prompt's.

        It starts as documents do for the tokenizer, so that the first token of a row without a prompt is predicted, or
        as its prompt says itself: a chat's template does, and so may a text's first token.
        Raises :class:`InputError` for a completion that the tokenizer does not keep: what it folds into an unknown
        token, or drops, would be predicted for nothing.
        """
        _, known = self._encoded.setdefault(id(tokenizer), (tokenizer, {}))
        if row not in known:
            known[row] = self._tokenised(row, tokenizer)
        return known[row]

    def _tokenised(self, row: Row, tokenizer: Any) -> tuple[list[int], int]:
        end: list[int] = []
        if isinstance(row.prompt, str):
            before = _ids(row.prompt, tokenizer)
            if not before or before[0] not in tokenizer.all_special_ids:
                before = [*_start(tokenizer), *before]
        else:
            text, end = self._templated(row, tokenizer)
            before = _ids(text, tokenizer)
        if not before:
            raise InputError(f"{self.name}: the model's tokenizer has no token that a text starts with.")
        after = _ids(row.completion, tokenizer)
        again = tokenizer.decode(after, clean_up_tokenization_spaces=False)
        # What a text itself calls <|endoftext|> may be the token for what is unknown too.
        if _kept(again) != _kept(row.completion):
            lost, found = (_shown(text) for text in _parted(row.completion, again))
            unknown = tokenizer.unk_token_id in after
            raise InputError(
                f"{self.name}: the model's tokenizer does not keep {lost}; it reads {found}"
                f"{f', {tokenizer.unk_token} for what it does not know' if unknown else ''}. Remove the row, or choose "
                f"a model that knows its characters."
            )
        return [*before, *after, *end], len(before)

    def _templated(self, row: Row, tokenizer: Any) -> tuple[str, list[int]]:
        """A chat as the model reads it, up to the answer, and the token that ends the answer."""
        if tokenizer.chat_template is None:
            raise InputError(
                f"{self.name} has chats, and the model's tokenizer has no chat template. Give it one, or prompts."
            )
        assert not isinstance(row.prompt, str)
        turns = [{"role": role, "content": content} for role, content in row.prompt]
        try:
            text = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
            return text, _end_of_turn(tokenizer, turns, text, row.completion) if row.ended else []
        except (TemplateError, TypeError, ValueError) as error:
            roles = ", ".join(turn["role"] for turn in turns)
            raise InputError(
                f"{self.name}: the model's chat template does not take a chat of the roles {roles}: "
                f"{' '.join(str(error).split())}. Change the row, or choose a model whose template takes it."
            ) from error

    def lengths(self, examples: Examples, encoder: Encoder) -> Int[np.ndarray, " n"]:
        return np.array([len(ids) for ids, _ in self.tokenised(self.rows(examples), encoder)])

    # -- loss and score ------------------------------------------------------------------------------------

    def answer(self, module: nn.Module, batch: Mapping[str, Tensor]) -> Any:
        return module(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])

    def logits(self, module: nn.Module, batch: Mapping[str, Tensor]) -> Float[Tensor, "n v"]:
        """What the module says of each counted token, row after row, from those before it."""
        logits: Tensor = self.answer(module, batch).logits
        return logits[:, :-1][batch["counted"][:, 1:]]

    def loss_of(self, logits: Float[Tensor, "n v"], batch: Mapping[str, Tensor]) -> Float[Tensor, ""]:
        """The mean over rows of their nats a token."""
        return self.averaged(_nats_of(logits, batch), batch)

    def averaged(self, each: Float[Tensor, " n"], batch: Mapping[str, Tensor]) -> Float[Tensor, ""]:
        """The mean over rows of the mean over a row's tokens: the same in however many parts a batch goes."""
        sums, counts = _by_row(each, batch)
        return (sums / counts).mean()

    @torch.no_grad()
    def nats(
        self, model: Answerer, rows: Sequence[Row], batch_size: int = _AT_ONCE
    ) -> tuple[Float[np.ndarray, " n"], Int[np.ndarray, " n"]]:
        """Minus the log-likelihood of each row's completion, in nats, and its tokens; NaN where that is not finite.

        Of its bytes alone: where an answer ends counts for no one, since what knows of no turns could not tell it.
        """
        module = model.module
        device = next(module.parameters()).device
        was_training = module.training
        module.eval()
        # Rows of one length side by side: less of a batch is padding.
        tokens = self.tokenised([row._replace(ended=False) for row in rows], model)
        order = np.argsort([len(ids) for ids, _ in tokens], kind="stable")
        nats, counts = np.empty(len(rows)), np.array([len(ids) - before for ids, before in tokens])

        def summed(part: Batch) -> Tensor:
            return _by_row(_nats_of(self.logits(module, part).float(), part), part)[0].cpu()

        try:
            for start in range(0, len(rows), batch_size):
                at = order[start : start + batch_size]
                batch = {**_padded([tokens[i] for i in at], model.tokenizer), "labels": torch.from_numpy(at)}
                nats[at] = in_parts(summed, {name: value.to(device) for name, value in batch.items()}).numpy()
        finally:
            module.train(was_training)
        return np.where(np.isfinite(nats), nats, np.nan), counts

    def confidences(
        self, model: Answerer, split: Split = "test", batch_size: int = _AT_ONCE
    ) -> tuple[Int[np.ndarray, " n"], Float[np.ndarray, " n"]]:
        """Of each row the ten-thousandths of a nat that a byte of its completion takes, and a byte's likelihood."""
        examples = self.part(split)
        nats, _ = self.nats(model, self.rows(examples), min(batch_size, _AT_ONCE))
        return answers_of(nats, examples.labels), np.exp(-np.nan_to_num(nats / examples.labels, nan=np.inf))

    def perplexity(self, likelihood: float, encoder: Encoder) -> float:
        """The perplexity of a token of the test split that goes with this likelihood of a byte of it."""
        rows = self.tokenised([row._replace(ended=False) for row in self.rows(self.test)], encoder)
        bytes_a_token = int(self.test.labels.sum()) / sum(len(ids) - before for ids, before in rows)
        return float(likelihood**-bytes_a_token)

    def measure(self, answers: Int[np.ndarray, " n"], truth: Int[np.ndarray, " n"]) -> float:
        """The likelihood of a byte over all rows; a row without an answer counts as bytes drawn at random."""
        each = np.where(answers == NO_ANSWER, _GUESS, answers)
        return math.exp(-float((each * truth).sum()) / (_FINE * float(truth.sum())))

    def guessed(self) -> Int[np.ndarray, " n"]:
        return np.full_like(self.test.labels, _GUESS)

    @torch.no_grad()
    def samples(self, model: Answerer) -> list[tuple[str, str]]:
        """What follows the first test prompts (of a text its passages' first words), the likeliest token each time."""
        from transformers import GenerationConfig, GenerationMixin

        module, tokenizer = model.module, model.tokenizer
        if not isinstance(module, GenerationMixin):
            return []
        device = next(module.parameters()).device
        was_training = module.training
        module.eval()
        found = []
        try:
            for row in self.rows(self.test.take(np.arange(min(_SAMPLES, len(self.test))))):
                # A text's opening is what a document starts with, as in training.
                opening = "" if row.prompt else row.completion[: len(row.completion) // 3]
                ids, before = self.tokens(Row("", opening) if opening else row, tokenizer)
                before = len(ids) if opening else before
                settings = GenerationConfig(
                    do_sample=False,
                    max_new_tokens=min(_WRITTEN, _context(model) - before),
                    pad_token_id=_fill(tokenizer),
                    eos_token_id=tokenizer.eos_token_id,
                )
                given = torch.tensor([ids[:before]], device=device)
                mask = torch.ones_like(given)
                out = module.generate(given, attention_mask=mask, generation_config=settings)
                said = opening or (row.prompt if isinstance(row.prompt, str) else row.prompt[-1][1])
                found.append((said, tokenizer.decode(out[0, before:], skip_special_tokens=True)))
        finally:
            module.train(was_training)
        return found


@dataclass(frozen=True, eq=False)
class MultipleChoice(CausalLM):
    """Questions with options, ``inputs`` being (prompt, options) and ``labels`` the right one's number.

    Trained on by the right option's likelihood; scored by accuracy, where the answer is the option whose tokens are the
    likeliest on average.
    """

    metric: Metric | Literal["likelihood"] = "accuracy"
    at_random: float | None = None

    def _check(self, split: str, examples: Examples) -> None:
        for (_, options), label in zip(examples.inputs, examples.labels, strict=True):
            if not 0 <= label < len(options) or len(options) < 2:
                raise InputError(f"{self.name}: the {split} split has a question without its answer.")

    # As of labels.
    measure = Task.measure
    guessed = Task.guessed

    @property
    def chance(self) -> float:
        """Of a guess, or of always answering what stands where the right choice mostly does."""
        guess = float(np.mean([1 / len(options) for _, options in self.test.inputs]))
        return max(guess, super().chance)

    def rows(self, examples: Examples) -> list[Row]:
        pairs = zip(examples.inputs, examples.labels, strict=True)
        return [Row(prompt, options[label]) for (prompt, options), label in pairs]

    def asked(self, examples: Examples) -> list[Row]:
        return [Row(prompt, option) for prompt, options in examples.inputs for option in options]

    def confidences(
        self, model: Answerer, split: Split = "test", batch_size: int = _AT_ONCE
    ) -> tuple[Int[np.ndarray, " n"], Float[np.ndarray, " n"]]:
        """The option that a model finds likeliest for each question, and its softmax among them."""
        examples = self.part(split)
        nats, counts = self.nats(model, self.asked(examples), min(batch_size, _AT_ONCE))
        ends = np.cumsum([len(options) for _, options in examples.inputs])[:-1]
        answers, sure = [], []
        for scores in np.split(-nats / counts, ends):
            if np.isnan(scores).any():
                answers.append(NO_ANSWER)
                sure.append(0.0)
                continue
            answers.append(int(scores.argmax()))
            sure.append(float(1 / np.exp(scores - scores.max()).sum()))
        return np.array(answers), np.array(sure)


def answers_of(nats: Float[np.ndarray, " n"], truth: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """What a text's likelihood is as an answer, ``truth`` being its bytes; NaN is none."""
    lost = np.isnan(nats)
    return np.where(lost, NO_ANSWER, np.rint(_FINE * np.where(lost, 0, nats) / truth)).astype(np.int64)


def _context(encoder: Encoder) -> int:
    """Tokens that a model reads at once, as its tokenizer or its configuration says."""
    config = getattr(getattr(encoder, "module", None), "config", None)
    limits = (encoder.tokenizer.model_max_length, getattr(config, "max_position_embeddings", None))
    return min(int(limit) for limit in limits if limit)


def _ids(text: str, tokenizer: Any) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"] if text else []
    return ids


def _start(tokenizer: Any) -> list[int]:
    """The token that a document starts with: the first special one of the tokenizer that marks no turn of a chat.

    SmolLM2-Instruct's ``bos_token`` stands before every turn, for one.
    """
    chat = ""
    if tokenizer.chat_template:
        turns = [{"role": role, "content": "a"} for role in ("user", "assistant")]
        with contextlib.suppress(Exception):  # templates raise whatever their authors wrote into them
            chat = tokenizer.apply_chat_template(turns, tokenize=False)
    named = (tokenizer.bos_token, tokenizer.eos_token, *tokenizer.all_special_tokens)
    first = next((token for token in named if token is not None and chat.count(token) < 2), None)
    return [] if first is None else [tokenizer.convert_tokens_to_ids(first)]


def _end_of_turn(tokenizer: Any, turns: list[dict[str, str]], text: str, completion: str) -> list[int]:
    """The token that the chat template ends an answer to ``text`` with, where it does so with a special one."""
    answer = completion.strip()  # a template may trim what is said, and one that does not keeps it as it is
    whole = tokenizer.apply_chat_template([*turns, {"role": "assistant", "content": answer}], tokenize=False)
    if not whole.startswith(text + answer):  # it may rewrite what is said, too
        return []
    after = _ids(whole[len(text + answer) :], tokenizer)
    return after[:1] if after and after[0] in tokenizer.all_special_ids else []


def _kept(text: str) -> str:
    """What of a text a tokenizer is to keep: not how it spells characters of one meaning, nor case and white space.

    >>> _kept("A\u00a0ﬁne day") == _kept("a fine  DAY")
    True
    """
    return "".join(unicodedata.normalize("NFKC", text).casefold().split())


def _parted(one: str, other: str) -> tuple[str, str]:
    """Two texts from shortly before where what is to be kept of them parts.

    >>> _parted("It was on the 3rd of May, in an où", "it was on the 3rd of May , in an ou")
    ('of May, in an où', 'f May , in an ou')
    """
    spelt = [[(c, at) for at, char in enumerate(text) for c in _kept(char)] for text in (one, other)]
    last = 0, 0
    for (c, i), (d, j) in zip(*spelt, strict=False):
        if c != d:
            break
        last = i, j
    return one[max(0, last[0] - 14) :], other[max(0, last[1] - 14) :]


def _shown(text: str) -> str:
    return repr(text if len(text) <= 40 else f"{text[:39]}…")


def _fill(tokenizer: Any) -> int:
    """The token that stands where nothing is; it is masked, so that any does."""
    found: int | None = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    return found or 0


def _padded(rows: Sequence[tuple[list[int], int]], tokenizer: Any) -> Batch:
    """Rows of (tokens, of which so many are the prompt's), filled up on the right."""
    longest = max(len(ids) for ids, _ in rows)
    ids = torch.full((len(rows), longest), _fill(tokenizer))
    mask, counted = torch.zeros_like(ids), torch.zeros_like(ids, dtype=torch.bool)
    for i, (row, before) in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
        mask[i, : len(row)] = 1
        counted[i, before : len(row)] = True
    return {"input_ids": ids, "attention_mask": mask, "counted": counted}


def _nats_of(logits: Float[Tensor, "n v"], batch: Mapping[str, Tensor]) -> Float[Tensor, " n"]:
    """The cross-entropy of each counted token, in nats."""
    wanted = batch["input_ids"][:, 1:][batch["counted"][:, 1:]]
    return nn.functional.cross_entropy(logits, wanted, reduction="none")


def _by_row(
    each: Float[Tensor, " n"], batch: Mapping[str, Tensor]
) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
    """The sum over each row's counted tokens of something that they have, and how many they are."""
    counts = batch["counted"][:, 1:].sum(1)
    row = torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)
    return each.new_zeros(len(counts)).index_add(0, row, each), counts.to(each.dtype)
