"""Steps with a small target's own forward, on packed or on padded rows. Prints one line of JSON.

    python3 -m bench.packed '{"packed": true, "timed": 2}'

Both run the same documents, of log-normal lengths, in batches of four rows, as the recipe does with `packed: true` and
`false`. The draft leaves padding out either way; the target cannot, and a padded batch holds fewer tokens.
"""

import json
import sys
import time
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from bench.memory import Peak
from bench.work import TURN, Work, device_and_dtype
from spec.methods.eagle3.draft import EagleDraft
from spec.methods.eagle3.step import draft_loss
from spec.samples.packing import pack
from spec.target.document_attention import NAME as DOCUMENT_ATTENTION
from spec.target.frozen import FrozenTarget
from spec.training.batch import Batch, collate

LENGTH, ROWS, DOCUMENTS = 1024, 4, 32


def measure(packed: bool, timed: int) -> dict[str, Any]:
    work, (device, dtype) = Work(target_vocab=8_000), device_and_dtype()
    draft, target = work.draft().to(device, dtype), _target(work).to(device, dtype)
    draft.share_target(target.embed_weight, target.head_weight)
    batches = [batch.to(device) for batch in _batches(packed, work.target_vocab)]
    _epoch(draft, target, batches[:1])
    peak = Peak(device)
    seconds, cpu_seconds, loss = [], [], 0.0
    for _ in range(max(timed, 1)):
        started = time.perf_counter(), time.process_time()
        loss = _epoch(draft, target, batches)
        seconds.append(time.perf_counter() - started[0])
        cpu_seconds.append(time.process_time() - started[1])
    slots = sum(batch.input_ids.numel() for batch in batches)
    return {
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "memory": peak.above(),
        "loss": loss,
        "loss_tokens": sum(int(batch.loss_mask.sum()) for batch in batches),
        "slots": slots,
        "padding": round(1 - sum(sum(batch.documents.lengths) for batch in batches) / slots, 4),
    }


def _epoch(draft: EagleDraft, target: FrozenTarget, batches: list[Batch]) -> float:
    loss = 0.0
    for batch in batches:
        draft.zero_grad()
        result = draft_loss(draft, target, batch, steps=3)
        result.loss.backward()
        loss += result.loss.item()
    return loss


def _batches(packed: bool, vocab: int) -> list[Batch]:
    rng = np.random.default_rng(0)
    lengths = np.minimum(rng.lognormal(np.log(LENGTH / 2) - 0.18, 0.6, DOCUMENTS).astype(int) + 1, LENGTH)
    documents = [(rng.integers(vocab, size=length), (np.arange(length) // TURN) % 2 == 1) for length in lengths]
    bins = pack(lengths, LENGTH) if packed else [[index] for index in range(DOCUMENTS)]
    rows = [[documents[index] for index in its] for its in bins]
    return [collate(rows[at : at + ROWS], LENGTH if packed else None) for at in range(0, len(rows), ROWS)]


def _target(work: Work) -> FrozenTarget:
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=work.target_vocab,
        hidden_size=work.hidden,
        intermediate_size=work.intermediate,
        num_hidden_layers=8,
        num_attention_heads=work.heads,
        num_key_value_heads=work.kv_heads,
        attn_implementation=DOCUMENT_ATTENTION,
    )
    return FrozenTarget(LlamaForCausalLM(config).eval().requires_grad_(False))


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    print(json.dumps(measure(asked["packed"], asked["timed"])))
