"""Conversations as a server that speaks a tokenizer's chat template would have answered and counted them."""

import json
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from spec.storage import Store, open_store
from tests.runs import add_answers, row_id


def answered(
    tokenizer: PreTrainedTokenizerFast, messages: list[dict[str, Any]], written: list[str], **template: Any
) -> dict[str, Any]:
    """An answer row. `written` is what the model wrote in each assistant turn, its end-of-turn token included."""
    ends = [place for place, message in enumerate(messages) if message["role"] == "assistant"]
    turns = []
    for end, text in zip(ends, written, strict=True):
        prompt = tokenizer.apply_chat_template(messages[:end], tokenize=False, add_generation_prompt=True, **template)
        turns.append(
            {
                "prompt_tokens": len(tokenizer(prompt, add_special_tokens=False).input_ids),
                "completion_tokens": len(tokenizer(text, add_special_tokens=False).input_ids),
                "finish_reason": "stop",
            }
        )
    return {"id": row_id(json.dumps(messages)), "messages": messages, "turns": turns}


def chat(*contents: str, system: str | None = None) -> list[dict[str, Any]]:
    """Messages of user and assistant in turn."""
    messages = [] if system is None else [{"role": "system", "content": system}]
    return messages + [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents)]


def save_target(tokenizer: PreTrainedTokenizerFast, folder: Path, vocab_size: int | None = None) -> Path:
    """A target's directory, as far as preparing reads it."""
    tokenizer.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({"vocab_size": vocab_size or len(tokenizer)}))
    return folder


def answered_run(
    run: Path, rows: list[dict[str, Any]], target: Path | str, *, template: dict[str, Any] | None = None
) -> Store:
    """A run whose answers are finished, in two shards of two parts each."""
    store = open_store(run)
    add_answers(store, list(rows))
    sampling = {"temperature": 0.0, "max_tokens": 64, "seed": None, "chat_template_kwargs": template}
    lineage = {"target": {"model": str(target), "revision": None}, "dataset": {"name": "asked"}, "sampling": sampling}
    store.write("run.json", json.dumps(lineage).encode())
    return store
