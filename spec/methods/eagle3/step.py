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

from spec.attention.block0 import Queries
from spec.attention.merged import ttt_attention
from spec.attention.to_device import to_device
from spec.methods.eagle3.draft import EagleDraft, Layer
from spec.methods.eagle3.losses import OBJECTIVES, Wanted, argmax_and_lse, drafting_loss
from spec.methods.eagle3.rows import drafted_rows
from spec.methods.layers import recomputed
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
    every: Queries | None = None  # see `Rows.every`

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
    layers = draft.config.num_hidden_layers
    rows = batch.rows or to_device(drafted_rows(batch.to("cpu"), steps, layers), batch.input_ids.device)
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
    return Observation(rows.input_ids, rows.positions, aux, rows.queries, wanted, rows.every)


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
    qkv, after_attention, row_losses = Layer.qkv, Layer.after_attention, OBJECTIVES[objective]
    if compiled:
        qkv, after_attention, row_losses = map(_compiled, (qkv, after_attention, row_losses))
    first, rows = draft.midlayer, seen.queries.rows
    of_embeds, of_hidden = first.qkv_weights()
    embed_half = first.embed_half(draft.embed(seen.input_ids), of_embeds)  # [N, qkv], of each token
    later: Any = draft.layers.values()
    layers = [(first, of_hidden), *((layer, layer.qkv_weight()) for layer in later)]

    places = torch.arange(seen.queries.longest + len(weights), device=embed_half.device)
    tables = first.rope.tables(places, embed_half.dtype)  # once, of every position that any step may have

    def step(hidden, at, positions, before):
        """`before`: of each layer the keys and values of earlier steps. Returns the hidden and each layer's own two."""
        if before[0]:
            hidden = draft.carry(hidden)
        token = at.clamp_max(len(embed_half) - 1)  # beyond its document's end a row bears no loss: any token will do
        # index_select: its backward adds whole rows, that of `[token]` number by number
        rotary = tuple(table.index_select(0, positions) for table in tables)
        adds, made = embed_half.index_select(0, token), []
        for (layer, weight), earlier in zip(layers, before, strict=True):
            query, key, value = qkv(layer, adds, hidden, weight, rotary)
            queries, adds = seen.queries, None
            if not earlier:  # block 0: keys at every token, queries at those that the next layer or the loss reads
                if layer is layers[-1][0]:
                    query, hidden = query.index_select(0, rows), hidden.index_select(0, rows)
                else:
                    queries = seen.every
            keys, values = [its for its, _ in earlier], [its for _, its in earlier]
            attended = ttt_attention(query, [*keys, key], [*values, value], queries)
            hidden = after_attention(layer, hidden, attended)
            made.append((key, value))
        return hidden, made

    hidden = draft.project_features(seen.aux)  # [N, H], from step 1 on [A, H]
    at = torch.arange(len(seen.input_ids), device=hidden.device)
    positions = seen.positions
    hiddens: list[torch.Tensor] = []
    before: list[tuple[tuple[torch.Tensor, torch.Tensor], ...]] = [() for _ in layers]
    for k in range(len(weights)):
        arguments = (hidden, at + 1 + k, positions + k, tuple(before))
        hidden, made = recomputed(step, *arguments) if checkpoint_steps else step(*arguments)
        if k == 0:
            at, positions = rows, positions[rows]
        hiddens.append(hidden)
        before = [(*its, pair) for its, pair in zip(before, made, strict=True)]
    if draft.target_head is None:
        raise RuntimeError("share_target() comes after set_vocabulary() and before the first step")
    return drafting_loss(hiddens, draft.norm, draft.lm_head.weight, draft.target_head, seen.wanted, weights, row_losses)
