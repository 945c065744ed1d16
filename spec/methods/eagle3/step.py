"""The training step of the draft: K steps of training-time test, and their loss.

At position i, step k: the draft reads the embedding of token i+1+k and, at k = 0, the target's features of position i,
later its own hidden of step k-1, before its last norm (after it with `norm_output`); it predicts token i+2+k from the
target's distribution at i+1+k. The step bears loss where token i+2+k does, the target's own choice there is in the
draft's vocabulary, and all of it lies in i's document.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import torch
from torch.utils.checkpoint import checkpoint

from spec.attention.block0 import Queries
from spec.attention.merged import ttt_attention
from spec.attention.to_device import to_device
from spec.methods.eagle3.draft import EagleDraft, Midlayer
from spec.methods.eagle3.losses import OBJECTIVES, Wanted, argmax_and_lse, drafting_loss
from spec.methods.eagle3.rows import drafted_rows
from spec.training.batch import Batch
from spec.training.result import StepResult

Objective = Literal["ce", "lk", "hard"]


@dataclass(frozen=True)
class Observation:
    """What the frozen target says of a batch: all that a step needs of both. No gradient reaches it.

    N are the batch's tokens without padding, A those at which any step drafts (`spec.methods.eagle3.rows`).
    """

    input_ids: torch.Tensor  # [N] int64
    positions: torch.Tensor  # [N] int64, in each document
    aux: torch.Tensor  # [N, 3 * H_target]
    queries: Queries
    wanted: Wanted

    @property
    def count(self) -> torch.Tensor:
        """`[K]` int64: the rows that bear loss at each step."""
        return self.wanted.bears.sum(1)


def decay_weights(steps: int, decay: float = 0.8, device: torch.device | str = "cpu") -> torch.Tensor:
    """`decay ** k` for each step, `[K]` fp32 (EAGLE-3 reference trainers: 0.8)."""
    return decay ** torch.arange(steps, dtype=torch.float32, device=device)


def draft_loss(
    draft: EagleDraft,
    target,
    batch: Batch,
    *,
    steps: int = 7,
    decay: float = 0.8,
    objective: Objective = "ce",
    **how: bool,
) -> StepResult:
    """The whole step in one call, weighted by `decay ** k`: `observe`, then `step_loss`, `how` being its settings."""
    observation = observe(draft, target, batch, steps=steps, objective=objective)
    weights = decay_weights(steps, decay, batch.input_ids.device)
    return step_loss(draft, observation, weights, objective=objective, **how)


@torch.no_grad()
def observe(draft: EagleDraft, target, batch: Batch, *, steps: int = 7, objective: Objective = "ce") -> Observation:
    """Runs the frozen target over `batch` and finds the rows that bear loss at each step.

    Waits for nothing on a GPU where `batch.rows` has `drafted_rows`, as the loader makes them; else they are made here,
    on the host. Only "lk" needs the log-sum-exps.
    """
    documents = batch.documents
    rows = batch.rows or to_device(drafted_rows(batch.to("cpu"), steps), batch.input_ids.device)
    features = target.features(batch.input_ids, documents, draft.config.feature_layers)
    hidden = features.last.flatten(0, 1)[rows.seen]  # [J, H_target]
    choice, lse = argmax_and_lse(hidden, target.head_weight, with_lse=objective == "lk")
    wanted = Wanted(
        hidden=hidden,
        lse=lse,
        choice=(draft.t2d.cumsum(0) - 1).clamp_min(0)[choice],  # some draft token where the target's is none
        rows=rows.rows,
        bears=rows.bears & draft.t2d[choice],
    )
    aux = features.aux.flatten(0, 1)
    if len(documents.tokens) < len(aux):
        aux = aux[documents.tokens]
    return Observation(rows.input_ids, rows.positions, aux, rows.queries, wanted)


def step_loss(
    draft: EagleDraft,
    observation: Observation,
    weights: torch.Tensor,
    *,
    objective: Objective = "ce",
    checkpoint_steps: bool = False,
    compiled: bool = False,
) -> StepResult:
    """The loss of the draft against `observation`, each step's sum times `weights[k]`; one backward only.

    Runs inside `draft(...)`, so that an FSDP2 draft gathers its parameters once for all steps. `checkpoint_steps`
    keeps a step's hidden, key and value alone and computes the rest again in the backward. `compiled` has torch.compile
    fuse what lies around the attention and inside the loss.
    """
    loss, loss_sum, correct = draft(_unroll, observation, weights, objective, checkpoint_steps, compiled)
    return StepResult(loss, loss_sum, correct, observation.count)


@cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Whole or not at all (no graph breaks), and once for all numbers of rows: they change with every batch."""
    return torch.compile(function, dynamic=True, fullgraph=True)


def _unroll(
    draft: EagleDraft,
    seen: Observation,
    weights: torch.Tensor,
    objective: Objective,
    checkpoint_steps: bool,
    compiled: bool,
):
    qkv, after_attention, row_losses = Midlayer.qkv, Midlayer.after_attention, OBJECTIVES[objective]
    if compiled:
        qkv, after_attention, row_losses = map(_compiled, (qkv, after_attention, row_losses))
    layer, rows = draft.midlayer, seen.queries.rows
    of_embeds, of_hidden = layer.qkv_weights()
    embed_half = layer.embed_half(draft.embed(seen.input_ids), of_embeds)  # [N, qkv], of each token

    places = torch.arange(seen.queries.longest + len(weights), device=embed_half.device)
    tables = layer.rope.tables(places, embed_half.dtype)  # once, of every position that any step may have

    def step(hidden, at, positions, keys, values):
        if keys:
            hidden = draft.carry(hidden)
        token = at.clamp_max(len(embed_half) - 1)  # beyond its document's end a row bears no loss: any token will do
        # index_select: its backward adds whole rows, that of `[token]` number by number
        rotary = tuple(table.index_select(0, positions) for table in tables)
        query, key, value = qkv(layer, embed_half.index_select(0, token), hidden, of_hidden, rotary)
        if not keys:  # block 0: keys at every token, queries at the rows
            query, hidden = query.index_select(0, rows), hidden.index_select(0, rows)
        attended = ttt_attention(query, [*keys, key], [*values, value], seen.queries)
        return after_attention(layer, hidden, attended), key, value

    hidden = draft.project_features(seen.aux)  # [N, H], from step 1 on [A, H]
    at = torch.arange(len(seen.input_ids), device=hidden.device)
    positions = seen.positions
    hiddens: list[torch.Tensor] = []
    keys: list[torch.Tensor] = []
    values: list[torch.Tensor] = []
    for k in range(len(weights)):
        arguments = (hidden, at + 1 + k, positions + k, tuple(keys), tuple(values))
        if checkpoint_steps:
            hidden, key, value = checkpoint(step, *arguments, use_reentrant=False)
        else:
            hidden, key, value = step(*arguments)
        if k == 0:
            at, positions = rows, positions[rows]
        hiddens.append(hidden)
        keys.append(key)
        values.append(value)
    if draft.target_head is None:
        raise RuntimeError("share_target() comes after set_vocabulary() and before the first step")
    return drafting_loss(hiddens, draft.norm, draft.lm_head.weight, draft.target_head, seen.wanted, weights, row_losses)
