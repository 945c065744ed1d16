"""Small, made-up runs with every file that a finished one has, for tests of what reads them.

    store = make_run(tmp_path / "run")          # answers, samples, metrics, a draft that verifies, a passing report

The parts are made one by one (`add_answers`, `add_training`, ...), so that a test can leave some out.
"""

import hashlib
import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from spec.conversations import token_ids
from spec.conversations.ids import Shard
from spec.conversations.shards import MARKER, folder_of
from spec.methods.eagle3.layout import weight_shapes
from spec.methods.tensors import read_tensors
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
    add_samples(store)
    add_training(store)
    add_draft(store)
    add_report(store)
    return store


def row_id(text: str, again: int = 0) -> str:
    return f"{hashlib.sha256(text.encode()).hexdigest()[:32]}-{again}"


def make_rows(count: int = 40) -> list[dict[str, Any]]:
    """Answers with one and two turns, with and without reasoning, dated text or exact tokens; every tenth a reject."""
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
        if i % 5 == 4:
            rows[-1]["turns"] = [usage | exact_turn(i, turn) for turn in range(turns)]
        elif i % 5 == 0:
            rows[-1]["day"] = "2026-11-29"
    return rows


def exact_turn(i: int, turn: int) -> dict[str, Any]:
    """The tokens of a turn, as many as `make_rows` counts; a later one continues the one before."""
    shared = turn * (15 + 2 * i)
    ids = {"prompt_ids": np.arange(10 + i), "response_ids": 100_000 + np.arange(5 + i)}
    return {"shared": shared, **{name: token_ids.encode(its.astype(np.int32)) for name, its in ids.items()}}


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


def add_samples(store: Store) -> None:
    """Only the marker: counts and statistics, as the prepare step writes them."""
    train = {"rows": 33, "tokens": 2900, "loss_tokens": 1300, "loss_share": 0.4483, "vocabulary_coverage": 0.9931}
    train["loss_by_kind"] = {"text": 325, "reasoning": 650, "tool_calls": 325}
    held_out = {"rows": 3, "tokens": 250, "loss_tokens": 110, "loss_share": 0.44, "vocabulary_coverage": 0.981}
    held_out["loss_by_kind"] = {"text": 110}
    shown = [
        ("<|im_start|>user\nWhat is <b>2 + 2</b>?<|im_end|>\n<|im_start|>assistant\n", False),
        ("4.<|im_end|>", True),
    ]
    marker = Marker(
        step="prepare",
        digest="0",
        settings={"max_length": 256, "held_out": 0.1, "draft_vocab_size": 16},
        inputs={},
        counts={"answers": 36, "train": 33, "held_out": 3, "too_long": 0, "empty_mask": 0},
        facts={
            "train": train,
            "held_out": held_out,
            "lengths": {"edges": list(range(0, 257, 32)), "rows": [3, 9, 12, 6, 2, 0, 1, 0]},
            "vocabulary": {"size": 16, "seen": 14, "always": [0, 1]},
            "examples": [shown],
        },
    )
    write_marker(store.at("samples"), "samples.json", marker)


def add_training(store: Store, steps: int = 400, positions: int = 7) -> None:
    """A metrics.jsonl whose losses fall and whose accuracies rise, less so for later positions."""
    lines = []
    for step in range(10, steps + 1, 10):
        gone = 1 - math.exp(-3 * step / steps)
        noise = random.Random(step).uniform(-0.05, 0.05)
        loss = [6.0 - 3.6 * gone / (1 + 0.15 * k) + noise for k in range(positions)]
        accuracy = [0.62 * gone / (1 + 0.25 * k) + noise / 10 for k in range(positions)]
        measured = {"loss": sum(loss), "loss_by_position": loss, "accuracy_by_position": accuracy}
        speed = {"tokens_per_s": 900.0, "loss_tokens_per_s": 400.0, "peak_memory_gib": 1.9, "data_wait_share": 0.01}
        rest = {"epoch": step // 150, "lr": 1e-3, "grad_norm": 0.4, "tokens_seen": 800 * step}
        lines.append({"step": step, **rest, **measured, **speed})
        if step % 100 == 0:
            held_out = {"loss": sum(loss) + 0.4, "loss_by_position": [value + 0.1 for value in loss]}
            held_out["accuracy_by_position"] = [value - 0.03 for value in accuracy]
            lines.append({"step": step, "held_out": held_out})
    store.write("checkpoints/metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines).encode())


DRAFT_CONFIG = {
    "architectures": ["LlamaForCausalLMEagle3"],
    "model_type": "llama",
    "torch_dtype": "float32",
    "dtype": "float32",
    "num_hidden_layers": 1,
    "hidden_size": 8,
    "target_hidden_size": 8,
    "intermediate_size": 16,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 4,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-05,
    "attention_bias": False,
    "mlp_bias": False,
    "vocab_size": 32,
    "draft_vocab_size": 16,
    "tie_word_embeddings": False,
    "max_position_embeddings": 2048,
    "rope_theta": 500000.0,
    "rope_scaling": None,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
    "bos_token_id": 0,
    "eos_token_id": 1,
    "eagle_config": {"eagle_aux_hidden_state_layer_ids": [1, 3, 4], "use_aux_hidden_state": True},
}
TARGET_FACTS = {
    "model_type": "llama",
    "num_hidden_layers": 8,
    "feature_layers": [1, 3, 4],
    "hidden_size": 8,
    "vocab_size": 32,
    "max_position_embeddings": 2048,
}
TRAINING = {
    "settings": {
        "steps": 7,
        "decay": 0.8,
        "objective": "ce",
        "max_length": 2048,
        "max_steps": 400,
        "optimizer": {"_component_": "torch.optim.AdamW", "lr": 0.001, "betas": [0.9, 0.95], "weight_decay": 0.0},
        "clip_grad_norm": 0.5,
        "seed": 0,
    },
    "step": 400,
    "epoch": 2,
    "bins_done": 0,
    "tokens_seen": 320000,
    "finished": True,
    "ranks": 2,
}


def add_draft(store: Store, *, seed: int = 0) -> Marker:
    """A random draft whose files pass `verify_files`; its probe is made up."""
    place = store.at("draft")
    folder = place.local_path()
    assert folder is not None
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(DRAFT_CONFIG, indent=2))
    random_values = np.random.default_rng(seed)
    tensors = {
        name: random_values.standard_normal(shape, dtype=np.float32)
        for name, shape in weight_shapes(DRAFT_CONFIG).items()
        if name not in ("d2t", "t2d")
    }
    said = np.sort(random_values.permutation(32)[:16])
    tensors["d2t"] = said - np.arange(16)
    tensors["t2d"] = np.isin(np.arange(32), said)
    save_file(tensors, folder / "model.safetensors")
    settings = {"dtype": "float32", "context_length": 2048}
    inputs = {"checkpoint": "step-000400", "trained": "0123", "target": TARGET_FACTS}
    marker = Marker(
        step="extract",
        digest=digest_of("extract", settings, inputs),
        settings=settings,
        inputs=inputs,
        files=describe_files(folder, ["config.json", "model.safetensors"]),
        counts={"parameters": sum(value.size for name, value in tensors.items() if name not in ("d2t", "t2d"))},
        facts={
            "run": RUN,
            "training": TRAINING,
            "target": TARGET_FACTS,
            "context_length": 2048,
            "config": DRAFT_CONFIG,
            "tensors": {name: stored.sha256() for name, stored in read_tensors(folder / "model.safetensors").items()},
            "probe": {},
        },
    )
    return write_marker(place, "draft.json", marker)


FIGURES = {
    "prompts": 32,
    "num_steps": 3,
    "tokens": 1850,
    "forwards": 1060,
    "accept_length": 1.7453,
    "accept_rate": 0.2484,
    "acceptance_by_position": [0.4906, 0.1901, 0.0647],
    "histogram": [540, 318, 133, 69],
}
OFFLINE = FIGURES | {
    "seconds": 41.0,
    "dtype": "float32",
    "tokens_equal": True,
    "differ": [],
    "untrained_accept_length": 1.004,
    "examples": [
        {
            "prompt": "What is the capital of France?",
            "pieces": [
                {"text": "The", "accepted": 0},
                {"text": " capital of", "accepted": 1},
                {"text": " France is Paris", "accepted": 2},
                {"text": ", a city on the", "accepted": 3},
                {"text": " Seine", "accepted": 0},
                {"text": ".<|im_end|>", "accepted": 1},
            ],
        },
        {
            "prompt": "<script>alert('prompt')</script>",
            "pieces": [
                {"text": "<img src=x onerror=alert(1)>", "accepted": 3},
                {"text": "\nDone & done.", "accepted": 0},
            ],
        },
    ],
}
SERVER = {"version": "0.5.23", "model": "/models/target", "dtype": "float32", "context_length": 2048, "device": "cpu"}
BASELINE = {
    "prompts": 32,
    "tokens": 1850,
    "seconds": 26.4,
    "tokens_per_s": 70.1,
    "concurrency": 8,
    "server": SERVER,
}
SPECULATIVE = FIGURES | BASELINE | {"seconds": 22.0, "tokens_per_s": 84.2, "differ": [], "tokens_equal_baseline": True}
AGREEMENT = {
    "prompts": 32,
    "equal_answers": 32,
    "equal_counts": 32,
    "accept_length_offline": 1.7453,
    "accept_length_served": 1.7453,
}


def add_report(store: Store, *, passed: bool = True, **facts: Any) -> Marker:
    """The evaluation of the draft that is there; `facts` replace parts of it (None leaves one out)."""
    draft = Marker.model_validate_json(store.read("draft/draft.json"))
    parts = {"offline": OFFLINE, "baseline": BASELINE, "speculative": SPECULATIVE, "agreement": AGREEMENT} | facts
    parts = {name: part for name, part in parts.items() if part is not None}
    bar = 1.6 if passed else 1.9
    why = f"accept length 1.745 on the server{'; the bar is' if passed else ' is below'} {bar}"
    gate = {
        "min_accept_length": bar,
        "accept_length": 1.7453,
        "measured": "on the server",
        "passed": passed,
        "why": why,
    }
    settings, inputs = {"min_accept_length": gate["min_accept_length"]}, {"draft": draft.identity}
    digest = digest_of("evaluate", settings, inputs)
    marker = Marker(step="evaluate", digest=digest, settings=settings, inputs=inputs, facts=parts | {"gate": gate})
    return write_marker(store.at("report"), "report.json", marker)


def add_suite(
    store: Store, suite: str, *, accept_length: float = 2.0, turns: tuple[float, ...] = (), **facts: Any
) -> Marker:
    """A suite that a server with the draft answered."""
    draft = Marker.model_validate_json(store.read("draft/draft.json"))
    brief = {"tokens": 1000, "forwards": 500, "interval": [accept_length - 0.1, accept_length + 0.1]}
    figures = {
        **FIGURES,
        **brief,
        "accept_length": accept_length,
        "suite": suite,
        "title": suite.upper(),
        "where": "on the server",
        "max_new_tokens": 1024,
        "as_published": {"prompts": 80, "max_new_tokens": 1024},
        "source": {"name": suite},
        "questions": 80,
        "prompts": 80,
        "answers": 80,
        "trained_on": 0,
        "too_long": 0,
        "by_turn": [
            {"turn": at, "answers": 80, **brief, "accept_length": its} for at, its in enumerate(turns, start=1)
        ],
        "by_context": [
            {"below": end, "answers": 40, **brief, "accept_length": accept_length - end / 4096}
            for end in (512, 1024, 2048)
        ],
    } | facts
    settings, inputs = {"suite": suite}, {"draft": draft.identity}
    marker = Marker.of("suite", settings, inputs, facts=figures)
    return write_marker(store.at("report/suites"), f"{suite}-served.json", marker)


def add_sweep(store: Store, *, speed_ups: dict[tuple[int, int], float]) -> Marker:
    """A sweep whose speed-ups are given by drafts a round and requests at once."""
    draft = Marker.model_validate_json(store.read("draft/draft.json"))
    names = ("tokens_per_s", "first_token_ms", "first_token_p99_ms", "per_token_ms", "gap_ms", "gap_p99_ms", "round_ms")
    times = {name: [10.0, 9.0, 11.0] for name in names}
    measured = [
        {
            "drafts": drafts,
            "concurrency": load,
            "rounds": 3,
            "speed_up": [faster, faster - 0.1, faster + 0.1],
            "costs": [1.2, 1.1, 1.3],
            "accepts": 1.9,
            "verify_ms": 8.0,
            "max_running_requests": 64,
            "prompts": 32,
            "same_answers": 32,
            "plain": times,
            "drafted": times,
        }
        for (drafts, load), faster in speed_ups.items()
    ]
    best = max(speed_ups, key=lambda key: speed_ups[key])[0]
    recommended = {
        "drafts": best,
        "speed_up": {str(load): its for (count, load), its in speed_ups.items() if count == best},
    }
    facts = {"measured": measured, "skipped": [], "recommended": recommended}
    marker = Marker.of("tune", {}, {"draft": draft.identity}, facts=facts)
    return write_marker(store.at("report"), "sweep.json", marker)
