"""Tokens a second of a lock on texts beside those of a plain training by the library everybody uses.

    python benchmarks/text_throughput.py [--model minilm] [--steps 16] [--rounds 4] [--json FILE]

The same model and the same batches, row by row: `transformers.Trainer` (AdamW, its own collator that pads to the
longest row of a batch, no evaluation, nothing saved) is handed those that SpecDef (Adam, the top eight σ of every
weight matrix, its guard's scoring left out) drew in the same round, and once more draws its own as it comes. SpecDef
keeps the task by the task's loss, and once more by its default, which asks the base too (`task+kl`). They train in
turn, a round each. What is counted are the tokens trained on that are no padding. A language model (``--model
smollm2-135m-instruct --generative``) learns to go on with the same texts.

Prints SpecDef's rate over that of Trainer on its batches, the median over rounds, the target beside it; the same with
the base asked; and over Trainer as it comes. A benchmark reports: exit 0 whether met or missed.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import transformers
from torch.utils.data import DataLoader, Dataset

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
    """Trainer that counts the tokens of its steps, on batches that it is handed."""

    seen = 0
    handed: Sequence[Sequence[int]] | None = None
    """Rows of each batch; None for Trainer's own."""

    def get_train_dataloader(self) -> DataLoader[Any]:
        if self.handed is None:
            return super().get_train_dataloader()
        return DataLoader(self.train_dataset, batch_sampler=self.handed, collate_fn=self.data_collator)

    def training_step(self, model: Any, inputs: Any, *rest: Any, **more: Any) -> Any:
        self.seen += int(inputs["attention_mask"].sum())
        return super().training_step(model, inputs, *rest, **more)


class Rates:
    """Tokens a second, a round each time."""

    def __init__(self, model: Model, task: Task, steps: int, batch_size: int) -> None:
        self.model, self.task, self.steps, self.batch_size = model, task, steps, batch_size
        self.drawn: list[Sequence[int]] = []
        """Rows of the batches of SpecDef's last round."""

    def trainer(self, *, handed: bool) -> Iterator[float]:
        """Trainer on the batches that SpecDef drew last, or on its own."""
        rows = Rows(self.task, self.model)
        collate: Any = (
            transformers.DataCollatorForSeq2Seq(self.model.tokenizer)
            if isinstance(self.task, CausalLM)
            else transformers.DataCollatorWithPadding(self.model.tokenizer)
        )
        module = self.model.copy().module.train()
        with tempfile.TemporaryDirectory() as out:
            settings = transformers.TrainingArguments(
                out,
                max_steps=self.steps,
                per_device_train_batch_size=self.batch_size,
                learning_rate=2e-4,
                report_to=[],
                save_strategy="no",
                logging_strategy="no",
                disable_tqdm=True,
                use_cpu=self.model.device.type == "cpu",
            )
            while True:
                trainer = Counting(module, settings, train_dataset=rows, data_collator=collate)
                trainer.handed = self.drawn if handed else None
                start = time.perf_counter()
                trainer.train()
                yield trainer.seen / (time.perf_counter() - start)

    def lock(self, retain: str) -> Iterator[float]:
        """SpecDef, and what it drew."""
        how = SpecDef(steps=self.steps, batch_size=self.batch_size, lr=2e-4, top_k=8, retain=retain)
        learner, seen = self.model.copy(), 0
        penalty = penalty_of(learner.module, how)
        plain = retain_loss(learner, self.task, how.retain, how.alpha)
        noted = self._noting()

        def loss(module: Any, batch: Batch) -> Any:
            nonlocal seen
            seen += int(batch["attention_mask"].sum())
            return plain(module, batch)

        while True:
            seen = 0
            self.drawn.clear()
            start = time.perf_counter()
            for _ in fit(
                learner,
                noted,
                replace(how, seed=how.seed + 1),
                steps=self.steps,
                loss=loss,
                add_gradient_=lambda: penalty.add_gradient_(how.alpha - 1),
            ):
                pass
            del self.drawn[self.steps :]  # read ahead
            yield seen / (time.perf_counter() - start)

    def _noting(self) -> Task:
        """The task, which notes the rows of each batch as it is put together."""
        task = copy.copy(self.task)
        collate = self.task.collate

        def noting(encoder: Any) -> Any:
            put_together = collate(encoder)

            def noted(rows: Sequence[int]) -> Batch:
                self.drawn.append([int(row) for row in rows])
                return put_together(rows)

            return noted

        object.__setattr__(task, "collate", noting)
        return task


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
    if given.json:
        given.json.parent.mkdir(parents=True, exist_ok=True)
    model, task = texts(given.model, given.generative, given.max_length)
    rates = Rates(model, task, given.steps, given.batch_size)
    sides = {
        "lock": rates.lock("task"),
        "Trainer on its batches": rates.trainer(handed=True),
        "lock, task+kl": rates.lock("task+kl"),
        "Trainer": rates.trainer(handed=False),
    }
    for side in sides.values():
        next(side)  # what is built once, and the cold start of the σ
    rounds = [{name: next(side) for name, side in sides.items()} for _ in range(given.rounds)]

    def over(one: str, other: str) -> list[float]:
        return [found[one] / found[other] for found in rounds]

    ratios = over("lock", "Trainer on its batches")
    asked, stock = (
        over(*pair) for pair in (("lock, task+kl", "Trainer on its batches"), ("lock", "Trainer"))
    )
    tokens = ", ".join(f"{name} {statistics.median(r[name] for r in rounds):.0f}" for name in sides)
    print(
        f"{given.model}: {statistics.median(ratios):.2f} of Trainer on the same batches ({min(ratios):.2f} to "
        f"{max(ratios):.2f} in {given.rounds} rounds; target ≥ {TARGET}); with task+kl "
        f"{statistics.median(asked):.2f}; of Trainer as it comes {statistics.median(stock):.2f}. "
        f"Tokens a second: {tokens}"
    )
    if given.json:
        row = {
            "model": given.model,
            "value": statistics.median(ratios),
            "value_task_and_kl": statistics.median(asked),
            "value_over_stock": statistics.median(stock),
            "rounds": rounds,
            "target": TARGET,
            "settings": vars(given),
        }
        given.json.write_text(json.dumps({**row, "environment": environment()}, indent=1, default=str))


if __name__ == "__main__":
    main()
