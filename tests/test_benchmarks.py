"""What `make` goes by of the scripts in benchmarks."""

from __future__ import annotations

import copy
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from speclock.models import Model


@pytest.fixture
def own_text(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    path = Path(__file__).parent.parent / "benchmarks/own_text.py"
    spec = importlib.util.spec_from_file_location("own_text", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_an_answer_without_an_end_is_left_out(
    own_text: ModuleType, writer: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was broken off, as a whole message, would teach the model to stop there."""
    model = writer.copy()
    tokenizer = model.tokenizer = copy.deepcopy(writer.tokenizer)
    tokenizer.add_special_tokens({"eos_token": "<s>"})
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}<s>{% endfor %}"

    def written(input_ids: torch.Tensor, max_new_tokens: int, **_: Any) -> torch.Tensor:
        said = [f"Yes.{tokenizer.eos_token}", "Well, that depends on"]
        ids = tokenizer(said, padding="max_length", padding_side="right", max_length=max_new_tokens)[
            "input_ids"
        ]
        assert max(map(len, ids)) == max_new_tokens
        return torch.cat([input_ids, torch.tensor(ids)], 1)

    monkeypatch.setattr(model.module, "generate", written)
    monkeypatch.setattr(own_text.speclock.models, "load", lambda *_, **__: model)
    assert own_text.answers(["Is it?", "Why?"], 21) == ["Yes.", ""]


def test_a_killed_run_leaves_no_answers(
    own_text: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`make records-text` goes on where there are some."""
    monkeypatch.setattr(sys, "argv", ["own_text.py", str(tmp_path), "--prompts", "3"])

    def killed(*_: Any) -> list[str]:
        raise KeyboardInterrupt

    monkeypatch.setattr(own_text, "answers", killed)
    with pytest.raises(KeyboardInterrupt):
        own_text.main()
    assert [path.name for path in tmp_path.iterdir()] == ["reference.txt"]
    monkeypatch.setattr(own_text, "answers", lambda *_: ["Yes.", "", "No."])
    own_text.main()
    rows = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert [row["messages"][1]["content"] for row in rows] == ["Yes.", "No."]
