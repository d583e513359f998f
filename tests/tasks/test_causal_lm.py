"""Next-token tasks: what counts of a row, what a score means, and what a user's file becomes."""

from __future__ import annotations

import copy
import itertools
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, normalizers, pre_tokenizers
from tokenizers import models as tokenizer_models
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from speclock import tasks
from speclock.errors import InputError
from speclock.locks.retain import retain_loss
from speclock.models import Model
from speclock.recipe import TrainingRecipe
from speclock.tasks.base import NO_ANSWER, Task, broken
from speclock.tasks.causal_lm import CausalLM, MultipleChoice, Row
from speclock.training import _loader, _Progress, train

Write = Callable[..., Path]


@pytest.fixture
def rows(tmp_path: Path) -> Write:
    def write(*entries: dict[str, Any], name: str = "rows.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
        return path

    return write


def prompted(write: Write, count: int = 20) -> CausalLM:
    path = write(*({"prompt": f"Say {i}: ", "completion": "ab" * (i % 3 + 1)} for i in range(count)))
    found = tasks.load(str(path))
    assert isinstance(found, CausalLM)
    return found


def test_the_score_is_the_likelihood_of_a_byte(writer: Model, rows: Write) -> None:
    task = prompted(rows)
    nats, total = 0.0, 0
    for prompt, completion in task.test.inputs:
        start = writer.tokenizer.bos_token
        ids = torch.tensor([writer.tokenizer(start + prompt + completion)["input_ids"]])
        with torch.no_grad():
            found = writer.module(ids).logits.log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None]).squeeze(1)
        nats -= float(found[-len(completion) :].sum())
        total += len(completion)
    assert task.score(writer) == pytest.approx(math.exp(-nats / total), rel=1e-4)
    found, counts = task.nats(writer, task.rows(task.test))
    assert math.exp(found.sum() / counts.sum()) == pytest.approx(math.exp(nats / total), rel=1e-6)
    assert task.chance == 1 / 256 == pytest.approx(task.measure(task.guessed(), task.test.labels), rel=1e-4)


def test_what_a_tokenizer_does_not_keep_is_refused(writer: Model, rows: Write) -> None:
    """A model that knows nothing would have a text of unknown tokens for nearly nothing."""
    words = Tokenizer(
        tokenizer_models.WordLevel({"<unk>": 0, "<s>": 1, "known": 2, "ou": 3}, unk_token="<unk>")
    )
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    folding = copy.copy(writer)
    folding.tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>", unk_token="<unk>")
    task = prompted(rows)
    assert task.tokens(Row("", " Known known"[6:]), folding.tokenizer) == ([1, 2], 1)
    with pytest.raises(
        InputError,
        match=r"not keep 'known unheard'; it reads 'known <unk>', <unk> for what it does not know. Remove the row",
    ):
        task.tokens(Row("", "known unheard"), folding.tokenizer)
    with pytest.raises(InputError, match=r"does not keep '.{0,20}unun.*…'; it reads '.{0,20}<unk>', <unk>"):
        task.tokens(Row("", "known " * 60 + "un" * 60), folding.tokenizer)
    folding.tokenizer.backend_tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFD(), normalizers.StripAccents()]
    )
    with pytest.raises(InputError, match="does not keep 'où'; it reads 'ou'"):
        task.tokens(Row("", "où"), folding.tokenizer)


def test_a_special_token_that_a_text_names_is_read_as_that(writer: Model, rows: Write) -> None:
    """GPT-2's "<|endoftext|>" stands between documents, and for what is unknown too."""
    task, talking = prompted(rows), copy.deepcopy(writer.tokenizer)
    talking.add_special_tokens({"unk_token": "<|endoftext|>"})
    ids, _ = task.tokens(Row("", "a<|endoftext|>b"), talking)
    assert ids[-2] == talking.unk_token_id


def test_what_cannot_be_read_of_any_split_is_told_before_the_first_step(writer: Model, rows: Write) -> None:
    """Else a row of the test split ends a lock that took hours."""
    entries = [{"prompt": f"Say {i}: ", "completion": "ab", "split": "train"} for i in range(20)]
    entries += [{"prompt": f"Say {i}: ", "completion": "ab", "split": "test"} for i in range(20, 24)]
    entries[-1]["completion"] = "a" * 300
    task = tasks.load(str(rows(*entries)))
    assert max(len(completion) for _, completion in task.train.inputs) == 2
    before = {name: value.clone() for name, value in writer.module.state_dict().items()}
    message = r"row with 'aaa\S+ has 309 tokens, and writer reads 256\. Lower --max-length, which is 128"
    with pytest.raises(InputError, match=message):
        train(writer, task, TrainingRecipe(optimizer="adamw", lr=1e-2, batch_size=8, steps=2))
    assert all(torch.equal(before[name], value) for name, value in writer.module.state_dict().items())
    with pytest.raises(InputError, match=message):
        task.fitted_to(writer)
    longest = [
        {"prompt": "p", "choices": ["b", "a" * 300], "answer": 0},
        {"prompt": "q", "choices": ["b", "c"], "answer": 1},
    ]
    with pytest.raises(InputError, match="has 303 tokens"):
        tasks.load(str(rows(*longest, *({**longest[1], "prompt": f"{i}"} for i in range(8))))).fitted_to(
            writer
        )


def test_what_is_written_ends_with_the_models_context(writer: Model, rows: Write) -> None:
    """Learnt positions end where they end, as GPT-2's."""
    config = GPT2Config(
        vocab_size=len(writer.tokenizer), n_positions=64, n_embd=16, n_layer=1, n_head=1, bos_token_id=None,
        eos_token_id=None,
    )  # fmt: skip
    brief = replace(writer, module=GPT2LMHeadModel(config).eval())
    task = tasks.load(str(rows(*({"prompt": "p" * 58 + f"{i}", "completion": "c"} for i in range(20)))))
    assert isinstance(task, CausalLM)
    assert 64 - 40 < max(task.lengths(task.test, brief)) <= 64
    assert len(task.samples(brief)) == len(task.test) == 2
    assert task.perplexity(task.score(brief), brief) > 1


def test_a_prompt_begins_as_a_text_does_unless_it_says_how(writer: Model, rows: Write) -> None:
    task, start = prompted(rows), writer.tokenizer.bos_token_id
    for row in (Row("", "b"), Row("a", "b"), Row("<s>a", "b"), Row("<s>", "b")):
        ids, before = task.tokens(row, writer.tokenizer)
        assert ids.count(start) == 1
        assert ids[0] == start
        assert ids[before:] == writer.tokenizer("b")["input_ids"]


def test_a_text_does_not_begin_with_a_mark_of_a_chat(writer: Model, rows: Write) -> None:
    """SmolLM2-Instruct calls "<|im_start|>" its first token; its documents started with "<|endoftext|>"."""
    task, talking = prompted(rows), copy.deepcopy(writer.tokenizer)
    assert task.tokens(Row("", "a"), talking)[0][0] == talking.bos_token_id
    talking.add_special_tokens({"bos_token": "<|turn|>", "eos_token": "<|end|>", "unk_token": "<|text|>"})
    talking.chat_template = "{% for m in messages %}<|turn|>{{ m.role }}{{ m.content }}<|end|>{% endfor %}"
    assert task._tokenised(Row("", "a"), talking)[0][0] == talking.convert_tokens_to_ids("<|text|>")
    talking.chat_template = "<|turn|>{% for m in messages %}{{ m.role }}{{ m.content }}<|end|>{% endfor %}"
    assert task._tokenised(Row("", "a"), talking)[0][0] == talking.bos_token_id, (
        "once a chat is where it begins"
    )


def test_a_batch_in_parts_has_the_same_loss(writer: Model, rows: Write) -> None:
    task = prompted(rows)
    batch = task.collate(writer)(range(6))
    halves = [{name: value[part] for name, value in batch.items()} for part in (slice(0, 3), slice(3, 6))]
    whole = task.loss(writer.module, batch).item()
    parts = [task.loss(writer.module, half).item() for half in halves]
    assert sum(parts) / 2 == pytest.approx(whole, rel=1e-5)
    logits = task.logits(writer.module, batch)
    assert len(logits) == sum(len(c) for _, c in task.train.inputs[:6]), "of the completions alone"


@pytest.mark.parametrize("retain", ["kl", "task+kl"])
def test_what_is_kept_of_the_base_is_the_same_in_parts(writer: Model, rows: Write, retain: str) -> None:
    """A batch that memory halves keeps its gradient, and a row of sixty tokens has no more say than one of two."""
    entries = [{"prompt": f"Say {i}: ", "completion": "ab" * (30 if i % 2 else 1)} for i in range(40)]
    task = tasks.load(str(rows(*entries)))
    pupil = writer.copy()
    with torch.no_grad():
        for p in pupil.module.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0)))
    lengths = task.lengths(task.train, writer)
    batch = task.collate(writer)([*np.argsort(lengths)[:3], *np.argsort(lengths)[-3:]])
    halves = [{name: value[part] for name, value in batch.items()} for part in (slice(0, 3), slice(3, 6))]
    loss = retain_loss(writer, task, retain)
    with torch.no_grad():
        whole, *parts = (loss(pupil.module, each).item() for each in (batch, *halves))
    assert sum(parts) / 2 == pytest.approx(whole, rel=1e-5)
    assert abs(parts[0] - parts[1]) > 0.01 * whole


def test_batches_are_of_like_length_and_an_epoch_has_every_row_once(writer: Model, rows: Write) -> None:
    entries = [{"prompt": "p", "completion": f"{i:03d}" + "x" * (i % 40)} for i in range(400)]
    task = tasks.load(str(rows(*entries)))
    recipe, progress = TrainingRecipe(batch_size=8), _Progress()
    sampler = _loader(task, writer, recipe, progress).batch_sampler
    batches = list(itertools.islice(iter(sampler), 2 * (len(task.train) // 8)))
    lengths = task.lengths(task.train, writer)
    for epoch in (batches[: len(batches) // 2], batches[len(batches) // 2 :]):
        drawn = [row for batch in epoch for row in batch]
        assert len(set(drawn)) == len(drawn) == len(task.train) // 8 * 8
        tokens, rows_alone = sum(8 * lengths[batch].max() for batch in epoch), lengths[drawn].sum()
        assert tokens <= 1.35 * rows_alone, "in the order drawn it is 1.6"
    assert batches[: len(batches) // 2] != batches[len(batches) // 2 :]
    progress.step = 5
    assert next(iter(sampler)) == batches[5], "a resumed run goes on midway"


def test_padding_and_company_change_no_score(writer: Model, rows: Write) -> None:
    task = prompted(rows)
    alone, together = (task.answers(writer, batch_size=size) for size in (1, 8))
    assert np.abs(alone - together).max() <= 1, "the last digit of a rounding"


def test_an_answer_that_is_not_finite_counts_as_bytes_at_random(writer: Model, rows: Write) -> None:
    task = prompted(rows)
    answers = task.answers(writer)
    lost = np.where(np.arange(len(answers)) == 0, NO_ANSWER, np.minimum(answers, 50_000))
    assert task.measured(lost) < task.measured(np.minimum(answers, 50_000))
    assert task.measured(np.full_like(answers, NO_ANSWER)) == pytest.approx(1 / 256, rel=1e-4)
    hurt = writer.copy()
    with torch.no_grad():
        hurt.module.lm_head.weight.fill_(math.inf)
    assert broken(task.answers(hurt))
    assert math.isnan(task.score(hurt))


def learnt(writer: Model, task: Task, steps: int = 60) -> tuple[float, float]:
    pupil = writer.copy()
    before = task.score(pupil)
    train(pupil, task, TrainingRecipe(optimizer="adamw", lr=1e-2, batch_size=8, steps=steps))
    return before, task.score(pupil)


def test_completions_are_learnt(writer: Model, rows: Write) -> None:
    before, after = learnt(writer, prompted(rows))
    assert before < 0.05
    assert after > 0.5


def test_choices_are_learnt(writer: Model, rows: Write) -> None:
    questions = [
        {"prompt": f"{i} is", "choices": ["odd", "even"], "answer": "even" if i % 2 == 0 else 0}
        for i in range(200)
    ]
    task = tasks.load(str(rows(*questions)))
    assert isinstance(task, MultipleChoice)
    commonest = np.bincount(task.test.labels).max() / len(task.test)
    assert (task.metric, task.chance) == ("accuracy", max(0.5, commonest))
    assert task.measured(task.guessed()) == pytest.approx(task.chance)
    assert task.train.inputs[0] == ("0 is", (" odd", " even"))
    spaced = [{**question, "prompt": f"{question['prompt']} "} for question in questions]
    assert tasks.load(str(rows(*spaced))).train.inputs[0] == ("0 is ", ("odd", "even")), "one space is enough"
    before, after = learnt(writer, task, steps=150)
    assert after > before
    assert after > 0.9


def test_a_text_is_cut_in_passages_that_keep_their_order(tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    text = " ".join(f"word{i}" for i in range(2000))
    path.write_text(text)
    task = tasks.load(str(path), tasks.Reading(max_length=16))
    assert isinstance(task, CausalLM)
    passages = [passage for _, passage in task.train.inputs]
    assert "".join(passages) == text[: len("".join(passages))]
    assert max(map(len, passages)) <= 48
    held = [p for part in (task.part("validation"), task.test) for _, p in part.inputs]
    assert not set(held) & set(passages)
    assert sum(map(len, held)) + sum(map(len, passages)) == len(text)
    with pytest.warns(UserWarning, match="99 examples to test on were asked for, and there are"):
        assert tasks.load(f"{path}@20/99/5").train.labels.shape == (20,)


@pytest.mark.parametrize("separator", [" ", "\n"])
def test_a_word_that_is_longer_than_a_passage_is_cut(tmp_path: Path, separator: str) -> None:
    """An address, a line of base64, a paragraph of Chinese."""
    path = tmp_path / "page.txt"
    before, after = (" ".join(f"word{i}" for i in range(start, start + 200)) for start in (0, 200))
    text = separator.join((before, "https://example.org/" + "a" * 100, after))
    path.write_text(text)
    task = tasks.load(str(path), tasks.Reading(max_length=16))
    parts = (task.train, task.part("validation"), task.test)
    passages = [passage for part in parts for _, passage in part.inputs]
    assert max(map(len, passages)) <= 48
    assert sum(map(len, passages)) == len(text)


def test_a_chat_goes_through_the_tokenizers_template(writer: Model, rows: Write) -> None:
    chats = [
        {"messages": [{"role": "user", "content": f"Is it {i}?"}, {"role": "assistant", "content": "Yes."}]}
        for i in range(10)
    ]
    task = tasks.load(str(rows(*chats)))
    assert ((("user", "Is it 0?"),), "Yes.", True) in [*task.train.inputs, *task.test.inputs]
    with pytest.raises(InputError, match="no chat template"):
        task.score(writer)
    talking = writer.copy()
    talking.tokenizer = copy.deepcopy(writer.tokenizer)
    talking.tokenizer.chat_template = (
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    assert isinstance(task, CausalLM)
    ids, before = task.tokens(Row(*task.train.inputs[0]), talking.tokenizer)
    asked = task.train.inputs[0][0][0][1]
    assert talking.tokenizer.decode(ids[:before]) == f"[user]{asked}[assistant]"
    assert talking.tokenizer.decode(ids[before:]) == "Yes."
    assert 0 < task.score(talking) < 1


def of_chats(write: Write, *chats: list[tuple[str, str]], **reading: Any) -> CausalLM:
    said = [{"messages": [{"role": role, "content": content} for role, content in chat]} for chat in chats]
    found = tasks.load(str(write(*said)), tasks.Reading(**reading))
    assert isinstance(found, CausalLM)
    return found


def every(task: CausalLM) -> list[Row]:
    return [row for part in (task.train, task.part("validation"), task.test) for row in task.rows(part)]


def test_nobody_is_taught_the_words_of_a_user(rows: Write) -> None:
    chats = [
        [("user", f"What is {i}+1?"), ("assistant", f"{i + 1}"), ("user", "Thanks"), ("system", "Over")]
        for i in range(10)
    ]
    task = of_chats(rows, *chats)
    assert sorted(row.completion for row in every(task)) == sorted(str(i + 1) for i in range(10))
    with pytest.raises(
        InputError, match=r'line 1: .* no turn of the role "assistant" that answers .*: system, user\)'
    ):
        of_chats(rows, [("system", "Be brief."), ("user", "What is 1+1?")])
    with pytest.raises(InputError, match="assistant"):
        of_chats(rows, [("assistant", "Hello."), ("user", "What is 1+1?")])


def test_a_long_chat_is_cut_to_its_last_turns(rows: Write) -> None:
    def only(*turns: tuple[str, str]) -> tuple[tuple[str, str], ...]:
        chats = ([*turns[:-1], (turns[-1][0], f"{turns[-1][1]}{i}"), ("assistant", "ok")] for i in range(10))
        prompts = (row.prompt for row in every(of_chats(rows, *chats, max_length=64)))
        (found,) = {(*before, (role, content[:-1])) for *before, (role, content) in prompts}
        return found

    short, long = "x" * 100, "word " * 20_000
    assert only(("user", short), ("assistant", "y"), ("user", "z")) == (
        ("user", short), ("assistant", "y"), ("user", "z"),
    )  # fmt: skip
    assert only(("user", short), ("assistant", short), ("user", "z")) == (("user", "z"),), (
        "begins with no answer"
    )
    assert only(("system", "s"), ("user", short), ("assistant", short), ("user", "z")) == (
        ("system", "s"), ("user", "z"),
    )  # fmt: skip
    ((role, content),) = only(("system", "s"), ("user", long))
    assert role == "user"
    assert content == long[-191:]


def test_a_template_that_does_not_take_a_chat_is_quoted(writer: Model, rows: Write) -> None:
    strict = copy.deepcopy(writer.tokenizer)
    strict.chat_template = (
        "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('Roles must alternate\nuser/assistant') }}{% endif %}[{{ m.role }}]{% endfor %}"
    )
    task = prompted(rows)
    with pytest.raises(
        InputError, match=r"of the roles system, user: Roles must alternate user/assistant\. Change"
    ):
        task.tokens(Row((("system", "s"), ("user", "u")), "ok"), strict)
    strict.chat_template = "{{ nothing.of_the_kind.is_there }}"
    with pytest.raises(InputError, match="does not take a chat of the roles user: 'nothing' is undefined"):
        task.tokens(Row((("user", "u"),), "ok"), strict)


def test_where_an_answer_ends_is_learnt_and_not_scored(writer: Model, rows: Write) -> None:
    """N-grams know of no ends, and a model that finds all tokens alike knows nothing."""
    talking = writer.copy()
    talking.tokenizer = copy.deepcopy(writer.tokenizer)
    talking.tokenizer.chat_template = (
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}<s>{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    task = of_chats(rows, *([("user", f"{i}?"), ("assistant", "Yes")] for i in range(20)))
    batch = task.collate(talking)([0])
    assert int(batch["counted"].sum()) == 4, "three letters and the end"
    _, counts = task.nats(talking, task.rows(task.test))
    assert set(counts) == {3}
    with torch.no_grad():
        talking.module.lm_head.weight.zero_()
    assert task.score(talking) == pytest.approx(1 / len(talking.tokenizer), rel=1e-3)


@pytest.mark.parametrize("answer", ["Yes.", "Yes.\n", " Yes. "])
def test_a_template_that_trims_ends_an_answer_all_the_same(writer: Model, rows: Write, answer: str) -> None:
    trims = copy.deepcopy(writer.tokenizer)
    trims.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}<s>{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    task = of_chats(rows, *([("user", f"{i}?"), ("assistant", answer)] for i in range(10)))
    (row, *_) = every(task)
    ids, before = task.tokens(row, trims)
    assert trims.decode(ids[before:]) == "Yes.<s>", "as the template has it"
    ids, _ = task.tokens(row._replace(completion=answer), trims)
    assert ids[-1] == trims.bos_token_id


def test_where_an_answer_ends_is_predicted_unless_it_was_cut(writer: Model, rows: Write) -> None:
    talking = copy.deepcopy(writer.tokenizer)
    talking.add_special_tokens({"additional_special_tokens": ["<|end|>"]})
    talking.chat_template = (
        "{% for m in messages %}{{ m.role }}{{ m.content }}<|end|>\n{% endfor %}"
        "{% if add_generation_prompt %}assistant{% endif %}"
    )
    task = prompted(rows)
    chat = (("user", "Is it?"),)
    plain, before = task.tokens(Row(chat, "Yes."), talking)
    ended, again = task.tokens(Row(chat, "Yes.", ended=True), talking)
    assert (ended, again) == ([*plain, talking.convert_tokens_to_ids("<|end|>")], before)
    answer = {"role": "assistant", "content": "so " * 200}
    task = tasks.load(
        str(rows(*({"messages": [{"role": "user", "content": f"Why {i}?"}, answer]} for i in range(10))))
    )
    assert not Row(*task.train.inputs[0]).ended


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"prompt": "a", "completion": " "}, "line 2 has nothing to predict"),
        ({"prompt": 3, "completion": "b"}, 'line 2 has a int in "prompt"'),
        ({"prompt": "a"}, 'line 2 has no "completion"'),
        ({"prompt": "b", "completion": "c", "split": "dev"}, "line 2 has split 'dev'"),
        ({"prompt": "b", "completion": "c", "split": "test"}, "line 2 has split 'test'"),
    ],
)
def test_a_bad_completion_is_named(rows: Write, entry: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        tasks.load(str(rows({"prompt": "a", "completion": "b"}, entry)))


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"prompt": "a", "choices": ["b"], "answer": 0}, "two or more texts"),
        ({"prompt": "a", "choices": ["b", "b"], "answer": 0}, "a choice comes twice"),
        ({"prompt": "a", "choices": ["b", " b"], "answer": 1}, "a choice comes twice"),
        ({"prompt": "a", "choices": ["b", "c"], "answer": 2}, "one of the choices, or its number"),
        ({"prompt": "", "choices": ["b", "c"], "answer": 1}, 'no "prompt" to choose for'),
        (
            {"prompt": "a", "choices": ["b" * 400, "b" * 500], "answer": 1},
            "a choice comes twice, as far as it is read",
        ),
    ],
)
def test_a_bad_question_is_named(rows: Write, entry: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"line 1.*{message}"):
        tasks.load(str(rows(entry)))


def test_a_bad_chat_is_named(rows: Write) -> None:
    with pytest.raises(InputError, match=r'line 1: "messages" is to be a list of two or more'):
        tasks.load(str(rows({"messages": [{"role": "user", "content": "Hi"}]})))


def test_a_choice_is_cut_as_completions_are(rows: Write) -> None:
    questions = [{"prompt": f"Q{i}", "choices": ["x" * 5000, "y"], "answer": 1} for i in range(10)]
    task = tasks.load(str(rows(*questions)), tasks.Reading(max_length=16))
    assert {options for _, options in task.train.inputs} == {(" " + "x" * 48, " y")}


def test_a_question_with_two_answers_is_named(rows: Write) -> None:
    question = {"prompt": "a", "choices": ["b", "c"], "answer": 0}
    with pytest.raises(InputError, match=r"line 3 answers the question of line 1 otherwise. Fix one of them"):
        tasks.load(str(rows(question, {**question, "prompt": "d"}, {**question, "answer": 1})))


def test_a_files_order_does_not_decide_what_is_tested(rows: Write) -> None:
    """A file that goes round five languages has each in both splits."""
    entries = [
        {"prompt": f"{['en', 'fr', 'de', 'es', 'it'][i % 5]} {i}", "completion": f"a{i}"} for i in range(500)
    ]
    task, again = (tasks.load(str(rows(*some))) for some in (entries, entries[::-1]))
    assert isinstance(task, CausalLM)
    for part in (task.train, task.part("validation"), task.test):
        assert len({prompt[:2] for prompt, _ in part.inputs}) == 5
    tested = [prompt for part in (task.part("validation"), task.test) for prompt, _ in part.inputs]
    assert len(tested) == 100
    assert set(tested) == {p for part in (again.part("validation"), again.test) for p, _ in part.inputs}


def test_a_prompt_is_on_one_side_however_it_is_spelt(rows: Write) -> None:
    entries = [
        {"prompt": f"What is {i // 2}?{' ' if i % 2 else ''}", "completion": f"{'It' if i % 2 else 'it'} {i}"}
        for i in range(200)
    ]
    task = tasks.load(str(rows(*entries)))
    trained = {prompt.strip() for prompt, _ in task.train.inputs}
    assert not trained & {
        prompt.strip() for part in (task.part("validation"), task.test) for prompt, _ in part.inputs
    }
    entries = [{**entry, "split": "test" if i == 1 else "train"} for i, entry in enumerate(entries)]
    assert "What is 0?" not in {
        prompt.strip() for prompt, _ in tasks.load(str(rows(*entries)) + "@50").train.inputs
    }


def test_a_row_that_comes_in_both_splits_is_tested(rows: Write) -> None:
    entries = [{"prompt": f"{i}", "completion": "c", "split": "train"} for i in range(20)]
    entries += [{"prompt": f"{i}", "completion": "c", "split": "test"} for i in (*range(5), *range(30, 34))]
    task = tasks.load(str(rows(*entries)) + "@8/9/2")
    assert len([*task.test.inputs, *task.part("validation").inputs]) == 11
    assert not {prompt for prompt, _ in task.train.inputs} & {prompt for prompt, _ in task.test.inputs}
    assert {prompt for prompt, _ in task.test.inputs} == {*"01234", "30", "31", "32", "33"}


def test_rows_that_are_tested_are_not_trained_on(rows: Write) -> None:
    entries = [
        {"prompt": f"{i % 7}", "completion": f"c{i}", "split": "test" if i < 3 else "train"}
        for i in range(40)
    ]
    task = tasks.load(str(rows(*entries)))
    assert {prompt for prompt, _ in task.train.inputs} == {"3", "4", "5", "6"}


def test_a_short_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("A few words.")
    with pytest.raises(InputError, match=r"note\.txt: 1 passages of 128 tokens are too few"):
        tasks.load(str(tmp_path / "note.txt"))


def test_a_classifier_does_not_continue_and_a_language_model_does_not_answer(
    writer: Model, rows: Write
) -> None:
    with pytest.raises(InputError, match="is a classification task, but writer answers with the next token"):
        tasks.load("newsgroups:sci.med,rec.autos@20").check_kind(writer)
    classifier = Model(
        writer.module, "guard", "text", writer.source, tokenizer=writer.tokenizer, labels=("a", "b")
    )
    with pytest.raises(InputError, match="is a causal-lm task, but guard answers with labels"):
        prompted(rows).check_kind(classifier)
