"""Two files to lock a language model with: what it answers to prompts, to be kept, and a text to be kept out.

python benchmarks/own_text.py OUT [--prompts 1800] [--tokens 128]

`OUT/answers.jsonl` has general questions (those of the task qnli) with SmolLM2's own answers, the likeliest token each
time: a lock that keeps these keeps what the model does. Answers that have no end after so many tokens are
left out: what was broken off is no answer of its. `OUT/reference.txt` is Python's reference manual as every Python has
it, in place of the text that you would not have a model tuned on. Each file is there whole or not at all.
"""

from __future__ import annotations

import argparse
import json
import pydoc_data.topics
from pathlib import Path

import torch
from tqdm import tqdm

import speclock
from speclock.workspace import write_text

MODEL = "smollm2-135m-instruct"
AT_ONCE = 16


def answers(prompts: list[str], tokens: int) -> list[str]:
    """What the model answers to each prompt, as a chat; nothing where it has not come to an end."""
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
            out = module.generate(
                **given.to(module.device),
                do_sample=False,
                max_new_tokens=tokens,
                eos_token_id=tokenizer.eos_token_id,
            )
        for ids in out[:, given["input_ids"].shape[1] :].tolist():
            ended = tokenizer.eos_token_id in ids
            found.append(tokenizer.decode(ids, skip_special_tokens=True) if ended else "")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--prompts", type=int, default=1800)
    parser.add_argument("--tokens", type=int, default=128, help="of each answer at most")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    pairs = speclock.tasks.load("qnli").train.inputs
    questions = list(dict.fromkeys(str(question) for question, _ in pairs))[: given.prompts]
    topics = pydoc_data.topics.topics
    write_text(given.out / "reference.txt", "\n\n".join(topics[name] for name in sorted(topics)))
    chats = [
        {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}
        for question, answer in zip(questions, answers(questions, given.tokens), strict=True)
        if answer.strip()
    ]
    # Last, since `make records-text` takes it for the sign that all is there.
    write_text(given.out / "answers.jsonl", "".join(json.dumps(chat) + "\n" for chat in chats))


if __name__ == "__main__":
    main()
