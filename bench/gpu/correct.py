"""Correctness on the device, each against a plain computation in double: attention, documents, losses, step, FSDP2.

References get the same rounded inputs, so an error is what the computation itself adds. In bf16 a part of 1e-2 is what
its 8 bits allow; fp32 comes to 1e-6.
"""

import math
from types import SimpleNamespace

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from bench.gpu.part import Part, relative
from spec import ranks
from spec.attention import kernels
from spec.attention.block0 import Queries
from spec.attention.documents import Documents
from spec.attention.merged import ttt_attention
from spec.attention.to_device import to_device
from spec.methods.eagle3.losses import argmax_and_lse
from spec.methods.eagle3.step import decay_weights, observe, step_loss
from spec.target.document_attention import document_attention
from tests.reference import Document, reference_loss
from tests.tiny_steps import fake_target, judged, tiny_batch, tiny_config, tiny_draft

LIMITS = {torch.float32: 2e-5, torch.bfloat16: 1.5e-2}
STEPS = 7


def attention(its: Part) -> None:
    """Training-time-test attention, forward and all gradients: packed documents, queries in runs, grouped heads."""
    lengths = [37, 90, 5, 70] if its.small else [37, 900, 5, 700, 406]
    starts = [sum(lengths[:index]) for index in range(len(lengths))]
    runs = [
        (start, start + first, start + last)
        for start, length in zip(starts, lengths, strict=True)
        for first, last in ((length // 3, length // 2), (length // 2 + 1, length))
        if first < last
    ]
    documents = Documents.from_lengths([lengths], sum(lengths))
    queries = to_device(Queries.of_runs(runs, documents.cu_seqlens, max(lengths)), its.device)
    for dtype, limit in LIMITS.items():
        shapes = ((4, 2, 16), (6, 1, 8)) if its.small else ((8, 2, 128), (4, 4, 64), (6, 1, 16))
        worst = max(
            _attention_error(queries, sum(lengths), *shape, steps, dtype) for shape in shapes for steps in (1, 7)
        )
        its.expect(f"attention {str(dtype)[6:]}", worst, limit)


def _attention_error(queries, tokens, heads, kv_heads, dim, steps, dtype) -> float:
    device = queries.rows.device
    generator = torch.Generator(device).manual_seed(1)
    rows = len(queries.rows)
    shapes = [(rows, heads, dim), *2 * [(tokens, kv_heads, dim), *[(rows, kv_heads, dim)] * (steps - 1)]]
    given = [torch.randn(s, generator=generator, device=device).to(dtype).requires_grad_() for s in shapes]
    exact = [x.detach().double().requires_grad_() for x in given]
    out = ttt_attention(given[0], given[1 : 1 + steps], given[1 + steps :], queries)
    wanted = _dense(exact[0], exact[1 : 1 + steps], exact[1 + steps :], queries)
    grad = torch.randn(wanted.shape, generator=generator, device=device).to(out.dtype)
    out.backward(grad)
    wanted.backward(grad.double())
    errors = [relative(out, wanted)] + [relative(a.grad, b.grad) for a, b in zip(given, exact, strict=True)]
    return max(errors)


def _dense(query, keys, values, queries: Queries):
    """One softmax over all the keys of a query, under a dense mask."""
    groups, scale = query.shape[1] // keys[0].shape[1], query.shape[-1] ** -0.5
    rows, at = queries.rows, torch.arange(len(keys[0]), device=query.device)
    document = torch.bucketize(at, queries.cu_seqlens[1:].to(at.dtype), right=True)
    seen = (document[rows][:, None] == document) & (at <= rows[:, None])  # [A, N]
    k0, v0 = (x[0].repeat_interleave(groups, 1) for x in (keys, values))
    scores = (torch.einsum("ahd,nhd->han", query, k0) * scale).masked_fill(~seen, -math.inf)
    own = [(query * key.repeat_interleave(groups, 1)).sum(-1).T[..., None] * scale for key in keys[1:]]
    p = torch.cat([scores, *own], -1).softmax(-1)  # [heads, A, N + steps - 1]
    out = torch.einsum("han,nhd->ahd", p[..., : len(at)], v0)
    for index, value in enumerate(values[1:]):
        out = out + p[..., len(at) + index].T[..., None] * value.repeat_interleave(groups, 1)
    return out


def documents(its: Part) -> None:
    """The target's attention over packed and padded rows against one plain attention a document."""
    lengths = [[50, 14, 36], [31, 45]] if its.small else [[700, 300, 24, 1000], [1023, 500]]
    heads, kv_heads, dim = (4, 2, 16) if its.small else (8, 2, 128)
    for dtype, limit in LIMITS.items():
        worst = 0.0
        for width, rows in ((sum(lengths[0]), lengths[:1]), (sum(lengths[0]) + 24, lengths)):
            described = Documents.from_lengths(rows, width, its.device)
            shapes = [(len(rows), count, width, dim) for count in (heads, kv_heads, kv_heads)]
            q, k, v = (torch.randn(shape, device=its.device).to(dtype) for shape in shapes)
            got, _ = document_attention(SimpleNamespace(), q, k, v, None, scaling=dim**-0.5, documents=described)
            wanted = torch.zeros(len(rows), width, heads, dim, dtype=torch.float64, device=its.device)
            for row, start, end in described.spans:
                a, b, c = (x[row, :, start:end].double() for x in (q, k, v))
                b, c = (x.repeat_interleave(heads // kv_heads, 0) for x in (b, c))
                future = torch.ones(end - start, end - start, dtype=torch.bool, device=its.device).triu(1)
                scores = (a @ b.mT * dim**-0.5).masked_fill(future, -math.inf)
                wanted[row, start:end] = (scores.softmax(-1) @ c).transpose(0, 1)
            worst = max(worst, relative(got, wanted))
        its.expect(f"documents {str(dtype)[6:]}", worst, limit)


def products(its: Part) -> None:
    """Products of half precision that keep fp32, added up in place too; the target's argmax and log-sum-exp."""
    m, k, n = (9, 40, 30) if its.small else (900, 512, 9000)
    for dtype, limit in ((torch.float32, 1e-4), (torch.bfloat16, 1e-5)):  # fp32 may run as TF32 or otherwise
        a, b = torch.randn(m, k, device=its.device).to(dtype), torch.randn(k, n, device=its.device).to(dtype)
        wanted, total = a.double() @ b.double(), torch.ones(m, n, device=its.device)
        kernels.add_product(total, a, b)
        name = str(dtype)[6:]
        its.expect(f"product {name}", relative(kernels.product(a, b), wanted), limit)
        its.expect(f"added product {name}", relative(total, wanted + 1), limit)
        choice, lse = argmax_and_lse(a, b.T.contiguous())
        its.expect(f"log-sum-exp {name}", relative(lse, wanted.logsumexp(-1)), limit)
        its.expect(f"argmax {name}", relative(wanted.gather(1, choice[:, None])[:, 0], wanted.amax(-1)), limit)


def step(its: Part) -> None:
    """The whole step, loss and every gradient, against the plain reference in double on the CPU, by each objective."""
    sizes = {"hidden_size": 256, "target_hidden_size": 256, "intermediate_size": 384, "head_dim": 64}
    config = tiny_config() if its.small else tiny_config(**sizes)
    for dtype in LIMITS:
        for objective in ("ce", "lk", "hard"):
            draft, batch = tiny_draft(config, dtype=dtype), tiny_batch([[31, 12, 57], [80]], width=104)
            target = fake_target(draft, batch)
            weights = decay_weights(STEPS) / 20
            _, _, _, count, wanted = judged(draft, target, batch, steps=STEPS, weights=weights, objective=objective)
            plain = _plain_error(draft, target, batch, weights, objective, wanted)
            draft.to(its.device)
            target = target.to(its.device)
            draft.share_target(target.embed_weight, target.head_weight)
            for recompute in (False, True):
                draft.zero_grad()
                seen = observe(draft, target, batch.to(its.device), steps=STEPS, objective=objective)
                result = step_loss(draft, seen, weights.to(its.device), objective=objective, checkpoint_steps=recompute)
                result.loss.backward()
                worst = max(relative(p.grad, wanted[name]) for name, p in draft.named_parameters())
                limit = 1e-4 if dtype == torch.float32 else 1.5 * plain  # one seed; the tests hold ten seeds' median
                label = f"step {str(dtype)[6:]} {objective}{' recomputed' * recompute}"
                its.expect(label, worst, limit)
                if dtype == torch.float32:
                    its.expect(f"{label}: rows", float((result.count.cpu() != count).sum()), 0)


def _plain_error(draft, target, batch, weights, objective, wanted) -> float:
    """The largest error of the reference itself in the draft's precision: what seven steps of it cannot but have."""
    parameters = {name: p.detach().clone().requires_grad_() for name, p in draft.named_parameters()}
    logits = target.last.double() @ target.head_weight.double().T  # in double: else other rows would bear loss
    documents = [
        Document(batch.input_ids[row, a:b], batch.loss_mask[row, a:b], target.aux[row, a:b], logits[row, a:b])
        for row, a, b in batch.documents.spans
    ]
    loss, *_ = reference_loss(
        parameters,
        draft.config,
        target.embed_weight,
        draft.t2d,
        documents,
        steps=STEPS,
        weights=weights,
        objective=objective,
    )
    loss.backward()
    return max(relative(p.grad, wanted[name]) for name, p in parameters.items())


def fsdp(its: Part) -> None:
    """The draft as the recipe splits it, over NCCL: the same gradients as unsplit, a clip, the optimizer's update."""
    ranks.start(its.device.type)
    its.say(backend=dist.get_backend())
    its.expect("all_reduce", float((ranks.total(torch.ones(3, dtype=torch.int64, device=its.device)) != 1).sum()), 0)
    config, batch = tiny_config(), tiny_batch([[31, 12, 57], [80]], width=104)
    gradients = []
    for split in (False, True):
        draft = tiny_draft(config)
        target = fake_target(draft, batch)
        draft.to(its.device)
        if split:
            policy = MixedPrecisionPolicy(its.half, torch.float32, cast_forward_inputs=False)
            fully_shard(draft, mesh=init_device_mesh(its.device.type, (1,)), mp_policy=policy)
            kernels.sum_gradients(draft)
        else:
            draft.to(its.half)
        target = target.to(its.device, its.half)
        draft.share_target(target.embed_weight, target.head_weight)
        weights = decay_weights(STEPS, device=its.device) / 20
        step_loss(draft, observe(draft, target, batch.to(its.device)), weights).loss.backward()
        torch.nn.utils.clip_grad_norm_(draft.parameters(), math.inf)
        gradients.append([p.grad.full_tensor() if split else p.grad for p in draft.parameters()])
        torch.optim.AdamW(draft.parameters(), lr=1e-3, fused=True).step()
    its.expect("split against whole", max(relative(a, b) for a, b in zip(*reversed(gradients), strict=True)), 2e-2)
    dist.destroy_process_group()
