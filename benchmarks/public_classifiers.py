"""Do classifiers that speclock did not train pass through it?  python benchmarks/public_classifiers.py --out DIR

Makes three as they are found in public, with transformers and a plain training loop: a BERT whose outputs are LABEL_0
and LABEL_1, a ViT with an image processor of its own, and a Llama in bf16. Then locks and audits each by the README's
commands, as a user would, and exits 1 where one of them fails.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import nn
from transformers import (
    AutoTokenizer,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

from speclock import models as zoo
from speclock import tasks

POSTS = "newsgroups:rec.autos,comp.graphics@1000/1000"
WANTED = "newsgroups:sci.space,soc.religion.christian@32/1000"
TOKENS = 16
LENGTH = ["--max-length", str(TOKENS)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for models, locks and audits")
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    posts = out / "posts.csv"
    write_csv(posts)
    made: dict[str, tuple[Callable[[Path, Path], None], str, str, list[str]]] = {
        # Its labels are 0 and 1 in the file, and LABEL_0 and LABEL_1 in the model.
        "bert": (make_bert, f"{posts}", WANTED, LENGTH),
        "vit": (make_vit, "mnist:0,1,2,3,4@20000/2000", "mnist:5,6,7,8,9@50/1000", []),
        "llama": (make_llama, f"{posts}", WANTED, LENGTH),
    }
    failed = []
    for name, (make, retain, wanted, reading) in made.items():
        base, locked, audit = (out / f"{name}{suffix}" for suffix in ("", "-locked", "-audit"))
        if not base.exists():
            torch.manual_seed(0)
            make(base, posts)
        lock = ["lock", base, "--task", retain, "--lr", "1e-4", "--steps", "60", "--out", locked]
        attack = ["audit", locked, "--base", base, "--retain-task", retain, "--attack-task", wanted]
        for command in (lock, [*attack, "--seeds", "3", "--jobs", "2", "--out", audit]):
            words = ["speclock", *map(str, command), *reading, "--resume"]
            print("$", *words, flush=True)
            if subprocess.run([sys.executable, "-m", *words], check=False).returncode:
                failed.append(name)
                break
        else:
            print(f"{name}: {json.loads((audit / 'audit.json').read_text())['verdict']}", flush=True)
    print("Failed: " + ", ".join(failed) if failed else "All three passed.")
    return bool(failed)


def write_csv(path: Path) -> None:
    """The retain task as a file of ``text`` and ``label``, in which the labels are numbers."""
    task = tasks.load(POSTS)
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("text", "label", "split"))
        for split, part in (("train", task.train), ("test", task.part("validation")), ("test", task.test)):
            rows.writerows((text, label, split) for text, label in zip(part.inputs, part.labels, strict=True))


def make_bert(folder: Path, posts: Path) -> None:
    """A BERT with a new head for two labels, which nobody named."""
    source = zoo.load("minilm", device="cpu")
    with tempfile.TemporaryDirectory() as encoder:
        zoo.save(source, Path(encoder) / "minilm")
        tokenizer = AutoTokenizer.from_pretrained(Path(encoder) / "minilm")
        model = BertForSequenceClassification.from_pretrained(Path(encoder) / "minilm", num_labels=2)
    texts, labels = read(posts)
    fit(model, batches_of_text(tokenizer, texts, labels, TOKENS), steps=60, lr=5e-5)
    save(folder, model, tokenizer)


def make_vit(folder: Path, posts: Path) -> None:
    """A small ViT for digits of 32×32 in three channels, with a mean and a deviation that are not the usual ones."""
    task = tasks.load("mnist:0,1,2,3,4@20000/2000")
    processor = ViTImageProcessor(
        size={"height": 32, "width": 32}, image_mean=[0.13] * 3, image_std=[0.31] * 3, do_convert_rgb=True
    )
    names = dict(enumerate(task.labels))
    model = ViTForImageClassification(
        ViTConfig(
            image_size=32,
            patch_size=4,
            hidden_size=64,
            num_hidden_layers=4,
            num_attention_heads=4,
            intermediate_size=128,
            id2label=names,
            label2id={label: i for i, label in names.items()},
        )
    )

    def batches() -> Iterator[dict[str, torch.Tensor]]:
        while True:
            rows = np.random.default_rng(torch.initial_seed()).permutation(len(task.train))
            for start in range(0, len(rows) - 64, 64):
                part = task.train.take(rows[start : start + 64])
                images = [Image.fromarray(image.squeeze()).convert("RGB") for image in part.inputs]
                yield {**processor(images, return_tensors="pt"), "labels": torch.from_numpy(part.labels)}

    fit(model, batches(), steps=600, lr=1e-3)
    save(folder, model, processor)


def make_llama(folder: Path, posts: Path) -> None:
    """A small Llama with its own tokenizer, trained in fp32 and released in bf16."""
    texts, labels = read(posts)
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    tokenizer.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=8000, special_tokens=["<unk>", "<pad>"], show_progress=False)
    )
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>")
    model = LlamaForSequenceClassification(
        LlamaConfig(
            vocab_size=8000,
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_labels=2,
            pad_token_id=wrapped.pad_token_id,
        )
    )
    fit(model, batches_of_text(wrapped, texts, labels, TOKENS), steps=300, lr=5e-4)
    save(folder, model.bfloat16(), wrapped)


def read(posts: Path) -> tuple[list[str], list[int]]:
    """Texts and labels that are there to be trained on."""
    with posts.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "train"]
    return [row["text"] for row in rows], [int(row["label"]) for row in rows]


def batches_of_text(
    tokenizer: PreTrainedTokenizerFast, texts: list[str], labels: list[int], length: int
) -> Iterator[dict[str, torch.Tensor]]:
    """Endless batches of 16 texts in random order."""
    while True:
        rows = torch.randperm(len(texts)).tolist()
        for start in range(0, len(rows) - 16, 16):
            part = rows[start : start + 16]
            batch = tokenizer(
                [texts[row] for row in part],
                truncation=True,
                max_length=length,
                padding=True,
                return_tensors="pt",
            )
            yield {
                **{name: batch[name] for name in ("input_ids", "attention_mask")},
                "labels": torch.tensor([labels[row] for row in part]),
            }


def fit(model: nn.Module, batches: Iterator[dict[str, torch.Tensor]], *, steps: int, lr: float) -> None:
    """A plain loop: AdamW with a rate that falls to nothing."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
    model.train()
    for _ in range(steps):
        loss = model(**next(batches)).loss
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    model.eval()


def save(folder: Path, *parts: nn.Module | PreTrainedTokenizerFast | ViTImageProcessor) -> None:
    for part in parts:
        part.save_pretrained(folder)


if __name__ == "__main__":
    sys.exit(main())
