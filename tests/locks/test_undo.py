"""What the lock by removal removes, keeps and gives away."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

import speclock
from speclock import tasks, wrap
from speclock.errors import InputError
from speclock.locks.base import Run
from speclock.locks.rescale import Rescale
from speclock.locks.undo import Undo
from speclock.models import Model, identity
from speclock.recipe import TrainingRecipe
from speclock.tasks.augment import Augmented
from speclock.tasks.base import Task
from speclock.tasks.unlabelled import inputs_of
from speclock.training import Step, train


@pytest.fixture(scope="module")
def posts() -> Task:
    return replace(tasks.load("newsgroups:rec.autos,comp.graphics@300/200/200"), max_length=24)


@pytest.fixture(scope="module")
def reader(posts: Task) -> Model:
    """A small BERT that tells two newsgroups apart."""
    words = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.train_from_iterator(
        [*posts.train.inputs, "unseen " * 50],
        trainers.WordLevelTrainer(vocab_size=1500, special_tokens=["[PAD]", "[UNK]"]),
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", pad_token="[PAD]")
    config = BertConfig(
        vocab_size=1500, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=64,
    )  # fmt: skip
    torch.manual_seed(0)
    model = wrap(BertForSequenceClassification(config), tokenizer, labels=posts.labels)
    train(model, posts, TrainingRecipe(optimizer="adam", lr=3e-3, steps=60, batch_size=32))
    return model


def removed(model: Model, task: Task, lock: Undo, folder: Path) -> Model:
    """The model right after the removal, before anything is taught again."""
    own = model.copy()
    steps = lock.trajectory(own, task, spectral=True, run=Run.in_folder(folder))
    assert next(steps).index == 0
    untouched = [p.clone() for p in own.module.parameters()]
    assert all(torch.equal(p, q) for p, q in zip(untouched, model.module.parameters(), strict=True))
    lock._remove_(own, model.copy(), task, task.train.inputs)
    return own


def test_embeddings_keep_the_directions_that_are_read_and_unseen_rows_nothing(
    reader: Model, posts: Task, tmp_path: Path
) -> None:
    lock = Undo(bottleneck=1 / 8, beta=0.8, steps=4, insecure_noise_seed=12)
    left = removed(reader, posts, lock, tmp_path)
    E, before = (m.module.get_input_embeddings().weight.detach() for m in (left, reader))
    unseen = reader.tokenizer.convert_tokens_to_ids("unseen")
    seen = int(posts.encode(posts.train, reader)["input_ids"].mode().values[0])
    agreement = torch.nn.functional.cosine_similarity(E, before, dim=1)
    assert abs(float(agreement[unseen])) < 0.6
    # What is left of all seen rows together lies in four directions.
    ids = posts.encode(posts.train, reader)["input_ids"].unique()
    noise = torch.linalg.lstsq(before[ids], E[ids]).solution  # E ≈ before · P, P of rank four
    strong = torch.linalg.svdvals(before[ids] @ noise)
    assert strong[3] > 2 * strong[4], seen
    W, W0 = (m.module.bert.encoder.layer[0].intermediate.dense.weight.detach() for m in (left, reader))
    share = float((W * W0).sum() / W0.square().sum())
    assert share == pytest.approx(0.2, abs=0.1)
    assert lock.strength(left, reader) > 0.5 > lock.strength(reader, reader) == pytest.approx(0, abs=1e-6)
    assert torch.equal(left.module.classifier.weight, reader.module.classifier.weight), "the head stays"


def test_the_noise_is_nowhere_but_in_the_weights(reader: Model, posts: Task) -> None:
    lock = Undo(bottleneck=1 / 8, beta=0.5, steps=6, evaluations=1, max_utility_drop=1.0)
    one, two = (speclock.lock(reader, posts, lock) for _ in range(2))
    assert one.card["fingerprint"] != two.card["fingerprint"], "two locks, two draws"
    assert one.card["config"]["insecure_noise_seed"] is None
    stripped = [
        json.dumps({k: v for k, v in locked.card.items() if k not in ("fingerprint", "identity")})
        for locked in (one, two)
    ]
    numbers = [set(text.replace(",", " ").replace("}", " ").split()) for text in stripped]
    # What differs between the cards is measured on the weights, and small.
    assert all(abs(float(n)) < 1e4 for n in numbers[0] ^ numbers[1] if n.replace(".", "").isdigit())


def test_a_named_seed_draws_the_same_noise(reader: Model, posts: Task) -> None:
    lock = Undo(
        bottleneck=1 / 8, beta=0.5, steps=6, evaluations=1, max_utility_drop=1.0, insecure_noise_seed=3
    )
    one, two = (speclock.lock(reader, posts, lock) for _ in range(2))
    assert one.card["fingerprint"] == two.card["fingerprint"]


def test_made_inputs_look_like_the_tasks_and_go_on_from_a_state(
    reader: Model, posts: Task, base: Model, digits: Task
) -> None:
    for task, model in ((posts, reader), (digits, base)):
        drawn = Augmented(task, 0)
        drawn.batch(3, model)
        state = drawn.state_dict()
        wanted = drawn.batch(8, model)
        again = Augmented(task, 5)
        again.load_state_dict(state)
        found = again.batch(8, model)
        plain = task.encode(task.train.take(torch.arange(8).numpy()), model)
        for name, value in wanted.items():
            assert torch.equal(value, found[name])
            assert value.dtype == plain[name].dtype
            assert value.shape[0] == 8
    words = set(" ".join(posts.train.inputs).split())
    rows = posts.train.inputs[:8]
    assert set(" ".join(Augmented(posts, 0)._texts(rows, rows[::-1])).split()) <= words


def test_bad_settings_are_one_line(base: Model, digits: Task) -> None:
    for settings in (
        {"beta": 1.5},
        {"augment": -0.1},
        {"augment": 1.0},
        {"bottleneck": 0.0},
        {"distil_data": "x.txt", "augment": 0.0},
        {"temperature": 0.0},
    ):
        with pytest.raises(InputError):
            Undo(**settings)  # type: ignore[arg-type]


def test_words_of_further_inputs_count_as_used_and_are_taught(
    reader: Model, posts: Task, tmp_path: Path
) -> None:
    more = tmp_path / "more.txt"
    more.write_text("unseen unseen\n\nunseen\n", encoding="utf-8")
    row = reader.tokenizer.convert_tokens_to_ids("unseen")
    kept = []
    for data in ("", str(more)):
        near = []
        for seed in range(8):  # one draw may lie near by chance
            lock = Undo(bottleneck=0.5, beta=0.5, steps=2, insecure_noise_seed=seed, distil_data=data)
            pool = lock._pool(posts)
            own = reader.copy()
            with torch.no_grad():
                lock._remove_(own, reader.copy(), posts, pool)
            E, before = (m.module.get_input_embeddings().weight.detach()[row] for m in (own, reader))
            near.append(float(torch.nn.functional.cosine_similarity(E, before, dim=0)))
        kept.append(sum(near) / len(near))
    assert kept[1] > kept[0] + 0.2
    assert len(pool) == len(posts.train) + 2
    with pytest.raises(InputError, match="made of images"):
        speclock.lock(reader, posts, Undo(steps=1, distil_data="mnist"))
    with pytest.raises(InputError, match="no such file"):
        speclock.lock(reader, posts, Undo(steps=1, distil_data="none.txt"))


def test_a_table_needs_no_labels_and_what_the_task_is_judged_by_is_not_taught(
    posts: Task, tmp_path: Path
) -> None:
    task, table = posts.divided(), tmp_path / "more.csv"
    assert task.validation is not None
    held = [task.test.inputs[0], task.validation.inputs[0]]
    table.write_text("text\n" + "\n".join(["one more", *held, "two more"]) + "\n", encoding="utf-8")
    assert inputs_of(str(table), task).tolist() == ["one more", "two more"]
    table.write_text("text\n" + "\n".join(f" {text.upper()}  " for text in held) + "\n", encoding="utf-8")
    with pytest.raises(InputError, match="nothing but what"):
        inputs_of(str(table), task)
    table.write_text("body\none more\n", encoding="utf-8")
    with pytest.raises(InputError, match=r'line 2 has no "text" \(found: body\)'):
        inputs_of(str(table), task)
    table.write_text("text\n", encoding="utf-8")
    with pytest.raises(InputError, match="no rows"):
        inputs_of(str(table), task)


def test_of_a_table_with_labels_or_a_split_what_it_is_tested_on_is_not_taught(
    posts: Task, tmp_path: Path
) -> None:
    """An audit of what was to be forgotten would be of the inputs that the teacher was shown."""
    table = tmp_path / "secrets.csv"
    rows = [f"{number} {label},{label}" for number in range(10) for label in "ab"]
    table.write_text("\n".join(["text,label", *rows]) + "\n", encoding="utf-8")
    tested = set(tasks.load(str(table)).test.inputs)
    assert tested
    assert not tested & set(inputs_of(str(table), posts.divided()))
    table.write_text("text,split\none,train\ntwo,test\n", encoding="utf-8")
    assert inputs_of(str(table), posts.divided()).tolist() == ["one"]


def test_pairs_of_a_table_are_read_as_pairs(tmp_path: Path) -> None:
    pairs, table = tmp_path / "pairs.csv", tmp_path / "more.csv"
    rows = [f"{number} {label},{number} again,{label}" for number in range(5) for label in "ab"]
    pairs.write_text("\n".join(["text,text_pair,label", *rows]) + "\n", encoding="utf-8")
    table.write_text("text,text_pair\nfive,six\n", encoding="utf-8")
    assert inputs_of(str(table), tasks.load(str(pairs))).tolist() == [("five", "six")]


def test_a_first_convolution_keeps_the_channels_directions_that_are_read(base: Model, digits: Task) -> None:
    own = base.copy()
    task = digits.divided()
    Undo(bottleneck=1 / 8, beta=0.0, insecure_noise_seed=4)._remove_(
        own, base.copy(), task, task.train.inputs
    )
    W, before = (
        next(p for p in m.module.parameters() if p.ndim == 4).detach().flatten(1).T for m in (own, base)
    )
    assert W.shape == before.shape
    # Two of sixteen directions hold what they held; noise of the weights' own size is in the others.
    kept = torch.linalg.svdvals(before.T @ W)
    assert not torch.allclose(W, before)
    assert W.std() == pytest.approx(float(before.std()), rel=0.3)
    assert kept[1] > 1.2 * kept[2]


def test_a_module_that_reads_the_first_convolution_is_no_hindrance(digits: Task) -> None:
    """The card counts operations while the directions are found that this module reads."""
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 8, 5, stride=4), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10))
    model = wrap(nn.Sequential(*layers), modality="image", labels=digits.labels)
    train(model, digits, TrainingRecipe(optimizer="adam", lr=3e-3, steps=60, batch_size=32))
    card = speclock.lock(model, digits, Undo(steps=1, evaluations=1, max_utility_drop=1.0)).card
    assert card["strength_locked"] > 0.3


def test_what_is_to_be_forgotten_is_not_taught(base: Model, digits: Task, tmp_path: Path) -> None:
    """A teacher that has forgotten answers evenly where it knew, and as before where it is to go on."""
    from speclock.tasks.base import Examples

    kept, gone = digits.keep(list("01234")), digits.keep(list("56789"))
    model = base.copy()
    task = replace(
        digits,
        train=Examples(kept.train.inputs, kept.train.labels),
        test=Examples(kept.test.inputs, kept.test.labels),
    ).divided()
    folder = tmp_path / "gone"
    from PIL import Image

    folder.mkdir()
    for i, image in enumerate(gone.train.inputs[:120]):
        Image.fromarray(image[..., 0]).save(folder / f"{i}.png")
    lock = Undo(forget_task=str(folder), forget_steps=60, lr=1e-3, beta=0.5, bottleneck=1.0, batch_size=32)
    before = task.score(model)
    lock._forget_(model, task)
    shown = replace(
        digits, test=digits.test.take(torch.tensor(digits.test.labels).ge(5).nonzero()[:, 0].numpy())
    )
    with torch.no_grad():
        batch = shown.encode(shown.test, model)
        top = [shown.logits(m.module.eval(), batch).softmax(-1).max(-1).values.mean() for m in (base, model)]
    assert top[1] < top[0] - 0.3
    assert task.score(model) > before - 0.1


def test_what_a_card_may_ask_of_an_auditor_is_told_beforehand() -> None:
    """Steps and made examples that its training takes, data that it would open, and noise that nobody can repeat."""
    plain = Undo(batch_size=16, augment=0.5)
    assert plain.training(10) == (10, 320), "as many are made as there are"
    assert plain.data_of_its_own() == ()
    assert plain.draws_in_secret
    asked = Undo(forget_task="secrets.csv", forget_steps=10**9, distil_data="more.txt", insecure_noise_seed=0)
    assert asked.training(10)[0] == 10**9 + 10
    assert asked.data_of_its_own() == ("more.txt", "secrets.csv")
    assert not asked.draws_in_secret
    with pytest.raises(InputError, match=r"it must lie in \[0, 0.95\]"):
        Undo(augment=0.99999999)


@dataclass(frozen=True, kw_only=True)
class Harsh(Rescale):
    """Answers alike whatever it is asked, where its rate is above 1."""

    rate: float = 4.0

    def gentler(self) -> Harsh | None:
        return replace(self, rate=self.rate / 2) if self.rate > 0.5 else None

    def trajectory(self, model: Model, task: Task, *, spectral: bool, run: Run) -> Iterator[Step]:
        for step in super().trajectory(model, task, spectral=spectral, run=run):
            if step.index > 0 and self.rate > 1:
                for p in model.module.parameters():
                    p.data.zero_()
            yield step


def test_a_rate_at_which_nothing_is_learnt_is_halved_and_the_card_says_so(
    base: Model, digits: Task, tmp_path: Path
) -> None:
    harsh = Harsh(factor=1.1, top_k=1, evaluations=6, max_utility_drop=1.0)
    locked = speclock.lock(base, digits, harsh, folder=tmp_path)
    card = locked.card
    assert [attempt["config"]["rate"] for attempt in card["given_up"]] == [4.0, 2.0]
    assert card["config"]["rate"] == 1.0
    assert card["chosen_step"] == 6
    for attempt in card["given_up"]:
        assert [step for step, *_ in attempt["curve"]] == [0, 1, 2, 3], "three of six evaluations at chance"
    once = speclock.lock(base, digits, replace(harsh, rate=1.0))
    assert "given_up" not in once.card
    assert identity(once.model) == identity(locked.model), "as if it had been asked for at once"


def test_a_control_that_is_brought_to_chance_begins_again_as_the_lock_does(
    base: Model, digits: Task, tmp_path: Path
) -> None:
    """What cannot do the retain task any more is no measure of what training on it forgets."""
    harsh = Harsh(factor=1.1, top_k=1, evaluations=6)
    for spectral in (False, True):
        (kept := tmp_path / str(spectral)).mkdir()
        control = harsh.control(base, digits, stop_at=6, spectral=spectral, folder=kept)
        assert (control.lock, control.given_up) == (replace(harsh, rate=1.0), 2)
        gentle = control.lock.control(base, digits, stop_at=6, spectral=spectral)
        assert gentle.given_up == 0
        assert identity(control.model) == identity(gentle.model)
    least = digits.divided().score(base) - 0.3
    asked = {
        "not to": harsh.control(base, digits, stop_at=6, begin_again=False),
        "too soon to say": harsh.control(base, digits, stop_at=2, spectral=True),
        "for ever": replace(harsh, rate=1024.0).control(base, digits, stop_at=6),
    }
    assert [found.given_up for found in asked.values()] == [0, 0, 3]
    late = replace(harsh, evaluations=3).control(base, digits, stop_at=2)
    assert late.given_up == 2, "where nothing was removed, chance at the end is no lack of teaching"
    for why, found in asked.items():
        assert digits.divided().score(found.model) < least, why


def test_there_is_an_end_to_gentler_rates() -> None:
    assert Undo(lr=1.1e-4).gentler() == Undo(lr=5.5e-5)
    assert Undo(lr=9e-5).gentler() is None


def test_further_inputs_are_known_by_what_is_in_them(reader: Model, posts: Task, tmp_path: Path) -> None:
    more = tmp_path / "more.txt"
    found = []
    for text in ("one two\n", "one three\n", "one two\n\n"):
        more.write_text(text, encoding="utf-8")
        found.append(Undo(distil_data=str(more)).digests_of_its_own(posts))
    assert found[0] == found[2] != found[1]
    lock = Undo(distil_data=str(more), steps=2, evaluations=1, max_utility_drop=1.0)
    assert speclock.lock(reader, posts, lock).card["further_data"] == found[0]
    assert "further_data" not in speclock.lock(reader, posts, replace(lock, distil_data="")).card
