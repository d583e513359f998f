"""Does fine-tuning that is not ours do better than the suite's best?  python benchmarks/stock_attacks.py AUDIT LOCKED

Runs three trainings on a locked folder with the attack task and the budget of an audit's record: a stock
``transformers.Trainer``, a stock ``peft`` LoRA and a plain torch loop; each takes the best over its rates. Prints
their scores beside the audit's, and exits 1 when one beats it by more than a point.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from peft import LoraConfig, TaskType, get_peft_model
from torch import nn
from tqdm import tqdm
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    Trainer,
    TrainingArguments,
    set_seed,
)

from speclock import tasks

RATES = (3e-5, 1e-4, 2e-4, 3e-4, 6e-4, 1e-3, 3e-3)
BATCH = 16


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("audit", type=Path, help="audit folder")
    parser.add_argument("locked", type=Path, help="the locked Hugging Face folder it is of")
    parser.add_argument("--max-length", type=int, default=32)
    parser.add_argument("--out", type=Path, help="write the figures here as JSON")
    given = parser.parse_args()
    record = json.loads((given.audit / "audit.json").read_text())
    task = tasks.load(record["attack_task"]["name"], tasks.Reading(max_length=given.max_length))
    tokenizer = AutoTokenizer.from_pretrained(given.locked)
    data = {
        split: tokenizer(
            list(examples.inputs),
            truncation=True,
            padding=True,
            max_length=given.max_length,
            return_tensors="pt",
        )
        | {"labels": torch.from_numpy(examples.labels)}
        for split in ("train", "validation", "test")
        for examples in (task.part(split),)
    }

    def fresh() -> nn.Module:
        """The locked folder with a new head, as anybody would load it."""
        set_seed(0)
        return AutoModelForSequenceClassification.from_pretrained(
            given.locked, num_labels=len(task.labels), ignore_mismatched_sizes=True
        )

    steps = record["suite"]["budget"]
    ways: dict[str, Callable[[nn.Module, float], nn.Module]] = {
        "transformers.Trainer": lambda model, lr: trainer(model, data["train"], lr, steps),
        "peft LoRA": lambda model, lr: lora(model, data["train"], lr, steps),
        "plain torch loop": lambda model, lr: loop(model, data["train"], lr, steps),
    }
    # Adapters want rates ten times as high.
    rates = {name: [10 * lr if "LoRA" in name else lr for lr in RATES] for name in ways}
    suite, found, worst = record["summary"]["best_locked"], {}, 0.0
    for name, train in ways.items():
        trained = {lr: train(fresh(), lr) for lr in tqdm(rates[name], desc=name, disable=None)}
        scores = {lr: accuracy(model, data["validation"]) for lr, model in trained.items()}
        lr = max(scores, key=lambda rate: scores[rate])
        best = accuracy(trained[lr], data["test"])
        found[name] = {"best": best, "lr": lr, "validation": scores}
        worst = max(worst, best - suite)
        print(f"{name:<22} {best:.1%} at lr {lr:g}   the suite's best {suite:.1%}")
    verdict = {
        "suite_best": suite,
        "by": record["summary"]["strongest_attack"],
        "steps": steps,
        "stock": found,
    }
    if given.out:
        given.out.write_text(json.dumps(verdict, indent=1))
    return int(worst > 0.01)


def batches(data: dict[str, torch.Tensor], steps: int) -> Iterator[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    order = torch.empty(0, dtype=torch.int64)
    for _ in range(steps):
        if len(order) < BATCH:
            order = torch.randperm(len(data["labels"]), generator=generator)
        rows, order = order[:BATCH], order[BATCH:]
        yield {name: value[rows] for name, value in data.items()}


def loop(model: nn.Module, data: dict[str, torch.Tensor], lr: float, steps: int) -> nn.Module:
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    model.train()
    for batch in batches(data, steps):
        optimizer.zero_grad()
        model(**batch).loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return model


def lora(model: nn.Module, data: dict[str, torch.Tensor], lr: float, steps: int) -> nn.Module:
    return loop(
        get_peft_model(model, LoraConfig(task_type=TaskType.SEQ_CLS, r=16, lora_alpha=32)), data, lr, steps
    )


def trainer(model: nn.Module, data: dict[str, torch.Tensor], lr: float, steps: int) -> nn.Module:
    rows = [{name: value[i] for name, value in data.items()} for i in range(len(data["labels"]))]
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainingArguments(
            folder,
            learning_rate=lr,
            max_steps=steps,
            per_device_train_batch_size=BATCH,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
        )
        Trainer(model=model, args=settings, train_dataset=rows).train()
    return model


@torch.no_grad()
def accuracy(model: nn.Module, data: dict[str, torch.Tensor]) -> float:
    model.eval()
    right = 0
    for start in range(0, len(data["labels"]), 64):
        batch = {name: value[start : start + 64] for name, value in data.items()}
        right += int((model(**batch).logits.argmax(-1) == batch["labels"]).sum())
    return right / len(data["labels"])


if __name__ == "__main__":
    raise SystemExit(main())
