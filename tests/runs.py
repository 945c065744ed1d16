"""Small, made-up runs with every file that a finished one has, for tests of what reads them.

    store = make_run(tmp_path / "run")          # answers, samples, metrics, a draft that verifies, a passing report

The parts are made one by one (`add_answers`, `add_training`, ...), so that a test can leave some out.
"""

import hashlib
import json
import random
from pathlib import Path
from typing import Any

from spec.conversations.ids import Shard
from spec.conversations.shards import MARKER, folder_of
from spec.storage import Store, open_store
from spec.storage.markers import Marker, describe_files, digest_of, write_marker

RUN = {
    "target": {"model": "ORG/Target-8B-Instruct", "revision": "0123abc"},
    "dataset": {"name": "ORG/prompts", "config": None, "split": "train", "revision": "fe12", "column": "messages"},
    "sampling": {"temperature": 0.0, "max_tokens": 64, "seed": None, "chat_template_kwargs": None},
    "versions": {"sgl-spec": "0.1.0", "datasets": "5.2.0", "server": "0.5.23"},
}
SHARDS = 2


def make_run(path: Path) -> Store:
    store = open_store(path)
    add_answers(store)
    return store


def row_id(text: str, again: int = 0) -> str:
    return f"{hashlib.sha256(text.encode()).hexdigest()[:32]}-{again}"


def make_rows(count: int = 40) -> list[dict[str, Any]]:
    """Answers with one and two turns, with and without reasoning, and every tenth a reject."""
    rows = []
    for i in range(count):
        if i % 10 == 3:
            rows.append({"id": row_id(f"q{i}"), "reject": ["too_long", "truncated"][i % 20 == 3], "detail": f"d{i}"})
            continue
        turns = 1 + i % 2
        messages = []
        for turn in range(turns):
            answer = {"role": "assistant", "content": f"Answer {i}.{turn}: «naïve» 語 🙂\n"}
            if i % 4 == 0:
                answer["reasoning_content"] = "Because."
            messages += [{"role": "user", "content": f"Question {i}.{turn}?"}, answer]
        usage = {"prompt_tokens": 10 + i, "completion_tokens": 5 + i, "finish_reason": "stop"}
        rows.append({"id": row_id(f"q{i}", i % 3), "messages": messages, "turns": [usage] * turns})
    return rows


def add_answers(store: Store, rows: list[dict[str, Any]] | None = None) -> None:
    """Finished shards in two parts each, in an order of completion that is not that of ids."""
    store.write("run.json", json.dumps(RUN).encode())
    rows = make_rows() if rows is None else rows
    random.Random(0).shuffle(rows)
    for shard in (Shard(index, SHARDS) for index in range(SHARDS)):
        own = [row for row in rows if shard.holds(row["id"])]
        place = store.at(folder_of(shard))
        names = []
        for part, chosen in enumerate((own[::2], own[1::2])):
            names.append(f"part-{part}.jsonl")
            lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in chosen)
            place.write(names[-1], lines.encode())
        counts = {"rows": len(own), "answers": 0, "prompt_tokens": 0, "completion_tokens": 0}
        for row in own:
            bucket = row.get("reject", "answers")
            counts[bucket] = counts.get(bucket, 0) + 1
            for turn in row.get("turns", ()):
                counts["prompt_tokens"] += turn["prompt_tokens"]
                counts["completion_tokens"] += turn["completion_tokens"]
        settings = {**{key: RUN[key] for key in ("target", "dataset", "sampling")}, "shard": str(shard)}
        folder = place.local_path()
        assert folder is not None
        files = describe_files(folder, names)
        digest = digest_of("filter", settings, {})
        marker = Marker(step="filter", digest=digest, settings=settings, inputs={}, files=files, counts=counts)
        write_marker(place, MARKER, marker)
