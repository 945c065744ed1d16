"""The attention of drafted blocks: each of a block's rows sees its document before the anchor, and its whole block.

All rows of a block see the same context, so the blocks of a document, in order, are taken a few at a time: their rows
are the queries of one flash call over the keys before the first anchor of them, which returns its log-sum-exp. The few
keys between their first and last anchor, and each block's own, are scored explicitly and merged exactly. The backward
gives the merged output and log-sum-exp to the flash backward (a softmax's gradient over some of its keys needs
no more). So work is linear in a block's context, memory in the tokens and in the rows; no mask is rows by keys.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from spec.attention import rectangle

ROWS = {"cpu": 128, "cuda": 1024}  # rows of blocks taken together: a flash call wants many, on a GPU more
SPAN = 256  # tokens that their anchors lie apart at most: these keys are scored explicitly


class Group(NamedTuple):
    """Blocks `begin` up to `stop`, in order and of one document, that share a flash call."""

    begin: int
    stop: int
    first: int  # their document's first token, of N
    low: int  # the first of their anchors, above `first`
    high: int  # the last of them


def group(firsts: Sequence[int], anchors: Sequence[int], rows: int, device: torch.device) -> tuple[Group, ...]:
    """The groups of P blocks of `rows` rows. `anchors` ascend among the N tokens, `firsts` begin their documents."""
    most = max(1, ROWS.get(device.type, ROWS["cuda"]) // rows)
    groups: list[Group] = []
    for index, (first, at) in enumerate(zip(firsts, anchors, strict=True)):
        if groups and (last := groups[-1]).first == first and index - last.begin < most and at - last.low <= SPAN:
            groups[-1] = last._replace(stop=index + 1, high=at)
        else:
            groups.append(Group(index, index + 1, first, at, at))
    return tuple(groups)


def block_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    context_key: torch.Tensor,
    context_value: torch.Tensor,
    anchors: torch.Tensor,
    groups: Sequence[Group],
) -> torch.Tensor:
    """Attention of P blocks of B rows, scores scaled by `D ** -0.5`.

    `query [P, B, heads, D]`; `key` and `value [P, B, kv_heads, D]` of the blocks, `context_key` and `context_value
    [N, kv_heads, D]` of all tokens, all rotated; `anchors [P]` int64, an index into the N tokens; `groups` of `group`.
    Returns `[P, B, heads, D]`.
    """
    rows, kv_heads = query.shape[1], key.shape[2]
    # Key heads first, and the query heads that read one among its rows: all products are then plain ones.
    queries = query.unflatten(2, (kv_heads, -1)).permute(2, 0, 1, 3, 4).flatten(2, 3)  # [kv_heads, P, B * groups, D]
    own = (x.permute(2, 0, 1, 3) for x in (key, value))  # [kv_heads, P, B, D]
    context = (x.transpose(0, 1) for x in (context_key, context_value))  # [kv_heads, N, D]
    out = _BlockAttention.apply(groups, anchors, queries.contiguous(), *own, *context)
    return out.unflatten(2, (rows, -1)).permute(1, 2, 0, 3, 4).flatten(2, 3)


class _BlockAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, groups, anchors, query, key, value, context_key, context_value):
        out, lse = torch.empty_like(query), query.new_empty(query.shape[:3], dtype=_wide(query))
        for group in groups:
            blocks, far = slice(group.begin, group.stop), slice(group.first, group.low)
            q = query[:, blocks]  # [kv_heads, g, rows, D]
            p = _near_scores(group, anchors, q, context_key, key[:, blocks])
            near_lse = p.logsumexp(-1)
            far_out, far_lse = rectangle.forward(q.flatten(1, 2), context_key[:, far], context_value[:, far])
            far_lse = far_lse.view_as(near_lse)
            total = torch.logaddexp(near_lse, far_lse)
            between, own = _split(group, p.sub_(total[..., None]).exp_().to(value.dtype))
            mixed = far_out.view_as(q) * (far_lse - total).exp()[..., None]
            mixed += own @ value[:, blocks]
            mixed += (between.flatten(1, 2) @ context_value[:, group.low : group.high]).view_as(q)
            out[:, blocks], lse[:, blocks] = mixed, total
        ctx.groups = groups
        ctx.save_for_backward(anchors, query, key, value, context_key, context_value, out, lse)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        anchors, query, key, value, context_key, context_value, out, lse = ctx.saved_tensors
        grad_query, grad_key, grad_value = (torch.empty_like(x) for x in (query, key, value))
        # Many groups add to these: in half precision each sum would round
        grad_context_key, grad_context_value = (
            torch.zeros_like(x, dtype=_wide(x)) for x in (context_key, context_value)
        )
        scale = query.shape[-1] ** -0.5
        for group in ctx.groups:
            blocks, far, near = _slices(group)
            q, g, o = (x[:, blocks] for x in (query, grad, out))  # [kv_heads, g, rows, D]
            rows, grad_rows = q.flatten(1, 2), g.flatten(1, 2)
            p = _near_scores(group, anchors, q, context_key, key[:, blocks]).sub_(lse[:, blocks, :, None]).exp_()
            between, own = _split(group, p)
            delta = (g * o).sum(-1, keepdim=True, dtype=p.dtype)
            grad_value[:, blocks] = own.to(g.dtype).mT @ g
            grad_context_value[:, near] += between.to(g.dtype).flatten(1, 2).mT @ grad_rows
            own = (own * (g @ value[:, blocks].mT - delta) * scale).to(q.dtype)
            grad_between = (grad_rows @ context_value[:, near].mT).view_as(between)
            between = (between * (grad_between - delta) * scale).to(q.dtype).flatten(1, 2)
            grad_key[:, blocks] = own.mT @ q
            grad_context_key[:, near] += between.mT @ rows
            far_grads = rectangle.backward(
                grad_rows,
                rows,
                context_key[:, far],
                context_value[:, far],
                o.flatten(1, 2),
                lse[:, blocks].flatten(1, 2),
            )
            grad_context_key[:, far] += far_grads[1]
            grad_context_value[:, far] += far_grads[2]
            grad_query[:, blocks] = (far_grads[0] + between @ context_key[:, near]).view_as(q) + own @ key[:, blocks]
        of_context = grad_context_key.to(context_key.dtype), grad_context_value.to(context_value.dtype)
        return None, None, grad_query, grad_key, grad_value, *of_context


def _slices(group: Group) -> tuple[slice, slice, slice]:
    """The group's blocks, the tokens that all of them see, and those that the later ones see."""
    return slice(group.begin, group.stop), slice(group.first, group.low), slice(group.low, group.high)


def _near_scores(group, anchors, query, context_key, key):
    """Scores `[kv_heads, g, rows, span + B]` of a group over the tokens between its anchors and each block's own."""
    between = query.flatten(1, 2) @ context_key[:, group.low : group.high].mT  # [kv_heads, g * rows, span]
    scores = torch.cat((between.unflatten(1, query.shape[1:3]), query @ key.mT), -1)
    scores = scores.to(_wide(query)) * query.shape[-1] ** -0.5
    tokens = torch.arange(group.low, group.high, device=query.device)
    unseen = tokens >= anchors[group.begin : group.stop, None]  # [g, span]
    scores[..., : group.high - group.low].masked_fill_(unseen[None, :, None], float("-inf"))
    return scores


def _split(group: Group, near: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The two parts of `near [.., span + B]`."""
    return near[..., : group.high - group.low], near[..., group.high - group.low :]


def _wide(x: torch.Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)
