"""Tokens a second of a lock on texts beside those of a plain training by the library everybody uses.

    python benchmarks/text_throughput.py [--model minilm] [--steps 16] [--rounds 4] [--json]

The same model, the same rows, batches of as many: `transformers.Trainer` (AdamW, its own collator that pads to the
longest row of a batch, no evaluation, nothing saved) with rows of like length together, as SpecDef has them, and as it
comes, rows at random; and SpecDef (Adam, the task's loss, the top eight σ of every weight matrix, its guard's scoring
left out). They train in turn, a round each. What is counted are the tokens trained on that are no padding. A language
model (``--model smollm2-135m-instruct --generative``) learns to go on with the same texts.

Prints SpecDef's rate over that of Trainer with like lengths, the median over rounds, the target beside it, and the
rate over Trainer as it comes. A benchmark reports: exit 0
whether met or missed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import transformers
from torch.utils.data import Dataset

from speclock import models, tasks
from speclock.environment import environment
from speclock.locks.base import penalty_of
from speclock.locks.retain import retain_loss
from speclock.locks.specdef import SpecDef
from speclock.models import Model
from speclock.tasks.base import Batch, Examples, Task
from speclock.tasks.causal_lm import CausalLM
from speclock.training import fit

TARGET = 0.95


class Rows(Dataset[dict[str, Any]]):
    """The training rows, tokenised once, as Trainer takes them."""

    def __init__(self, task: Task, model: Model) -> None:
        self.rows = []
        for i in range(len(task.train)):
            batch = task.encode(task.train.take(np.array([i])), model)
            row = {name: batch[name][0].tolist() for name in ("input_ids", "attention_mask")}
            row["labels"] = row["input_ids"] if isinstance(task, CausalLM) else int(batch["labels"][0])
            self.rows.append(row)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return dict(self.rows[i])


class Counting(transformers.Trainer):
    """Trainer that counts the tokens of its steps; its data loader reads ahead."""

    seen = 0

    def training_step(self, model: Any, inputs: Any, *rest: Any, **more: Any) -> Any:
        self.seen += int(inputs["attention_mask"].sum())
        return super().training_step(model, inputs, *rest, **more)


def trainers(model: Model, task: Task, steps: int, batch_size: int, sampling: str) -> Iterator[float]:
    """Tokens a second of Trainer, a round each time."""
    rows = Rows(task, model)
    collate: Any = (
        transformers.DataCollatorForSeq2Seq(model.tokenizer)
        if isinstance(task, CausalLM)
        else transformers.DataCollatorWithPadding(model.tokenizer)
    )
    module = model.copy().module.train()
    with tempfile.TemporaryDirectory() as out:
        settings = transformers.TrainingArguments(
            out,
            max_steps=steps,
            per_device_train_batch_size=batch_size,
            learning_rate=2e-4,
            train_sampling_strategy=sampling,
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            use_cpu=model.device.type == "cpu",
        )
        while True:
            trainer = Counting(module, settings, train_dataset=rows, data_collator=collate)
            start = time.perf_counter()
            trainer.train()
            yield trainer.seen / (time.perf_counter() - start)


def locks(model: Model, task: Task, steps: int, batch_size: int) -> Iterator[float]:
    """Tokens a second of SpecDef, a round each time."""
    how = SpecDef(steps=steps, batch_size=batch_size, lr=2e-4, top_k=8, retain="task")
    learner, seen = model.copy(), 0
    penalty = penalty_of(learner.module, how)
    plain = retain_loss(learner, task, how.retain, how.alpha)

    def loss(module: Any, batch: Batch) -> Any:
        nonlocal seen
        seen += int(batch["attention_mask"].sum())
        return plain(module, batch)

    while True:
        seen = 0
        start = time.perf_counter()
        for _ in fit(
            learner,
            task,
            replace(how, seed=how.seed + 1),
            steps=steps,
            loss=loss,
            add_gradient_=lambda: penalty.add_gradient_(how.alpha - 1),
        ):
            pass
        yield seen / (time.perf_counter() - start)


def texts(model: str, generative: bool, max_length: int) -> tuple[Model, Task]:
    task = tasks.load("newsgroups:sci.space,rec.autos,comp.graphics,talk.politics@2000/100/100",
                      tasks.Reading(max_length=max_length))  # fmt: skip
    if not generative:
        return models.load(model, labels=task.labels), task

    def rows(examples: Examples) -> Examples:
        cut = [str(text)[: 3 * max_length] for text in examples.inputs]
        inputs = np.empty(len(cut), dtype=object)
        inputs[:] = [("", text) for text in cut]
        return Examples(inputs, np.array([len(text.encode()) for text in cut]))

    train, test, validation = (rows(part) for part in (task.train, task.test, task.part("validation")))
    learned = CausalLM(task.name, train, test, (), task.source, validation=validation)
    return models.load(model, kind="causal-lm"), learned


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--generative", action="store_true")
    parser.add_argument("--max-length", type=int, default=96)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    warnings.filterwarnings("ignore", module="torch.utils.data")
    model, task = texts(given.model, given.generative, given.max_length)
    asked = (model, task, given.steps, given.batch_size)
    sides = [trainers(*asked, "group_by_length"), trainers(*asked, "random"), locks(*asked)]
    for side in sides:
        next(side)  # what is built once, and the cold start of the σ
    rounds = [[next(side) for side in sides] for _ in range(given.rounds)]
    ratios = [lock / alike for alike, _, lock in rounds]
    value, stock = statistics.median(ratios), statistics.median(lock / plain for _, plain, lock in rounds)
    alike, plain, lock = (statistics.median(side) for side in zip(*rounds, strict=True))
    print(
        f"{given.model}: lock {lock:.0f} tokens/s, Trainer {alike:.0f}: {value:.2f} "
        f"({min(ratios):.2f} to {max(ratios):.2f} in {given.rounds} rounds; target ≥ {TARGET}); "
        f"Trainer as it comes {plain:.0f}: {stock:.2f}"
    )
    if given.json:
        row = {
            "model": given.model,
            "value": value,
            "value_over_stock": stock,
            "rounds": rounds,
            "target": TARGET,
            "settings": vars(given),
        }
        given.json.write_text(json.dumps({**row, "environment": environment()}, indent=1, default=str))


if __name__ == "__main__":
    main()
