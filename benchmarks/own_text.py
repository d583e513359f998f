"""Two files to lock a language model with: what it answers to prompts, to be kept, and a text to be kept out.

python benchmarks/own_text.py OUT [--prompts 1200] [--tokens 48]

`OUT/answers.jsonl` has general questions (those of the task qnli) with SmolLM2's own answers, the likeliest token each
time: a lock that keeps these keeps what the model does. `OUT/reference.txt` is Python's reference manual as every
Python has it, in place of the text that you would not have a model tuned on.
"""

from __future__ import annotations

import argparse
import json
import pydoc_data.topics
from pathlib import Path

import torch
from tqdm import tqdm

import speclock

MODEL = "smollm2-135m-instruct"
AT_ONCE = 16


def answers(prompts: list[str], tokens: int) -> list[str]:
    """What the model goes on with after each prompt, as a chat."""
    model = speclock.models.load(MODEL, kind="causal-lm")
    module, tokenizer = model.module.eval(), model.tokenizer
    tokenizer.padding_side = "left"
    found = []
    for start in tqdm(range(0, len(prompts), AT_ONCE), "answers", unit="batch"):
        chats = [[{"role": "user", "content": prompt}] for prompt in prompts[start : start + AT_ONCE]]
        given = tokenizer.apply_chat_template(
            chats, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
        )
        with torch.no_grad():
            out = module.generate(**given.to(module.device), do_sample=False, max_new_tokens=tokens)
        found += tokenizer.batch_decode(out[:, given["input_ids"].shape[1] :], skip_special_tokens=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--prompts", type=int, default=1200)
    parser.add_argument("--tokens", type=int, default=48, help="of each answer")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    pairs = speclock.tasks.load("qnli").train.inputs
    questions = list(dict.fromkeys(str(question) for question, _ in pairs))[: given.prompts]
    with (given.out / "answers.jsonl").open("w", encoding="utf-8") as file:
        for question, answer in zip(questions, answers(questions, given.tokens), strict=True):
            if answer.strip():
                turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
                file.write(json.dumps({"messages": turns}) + "\n")
    topics = pydoc_data.topics.topics
    text = "\n\n".join(topics[name] for name in sorted(topics))
    (given.out / "reference.txt").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
