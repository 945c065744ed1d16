"""The whole loss of a training step, slow and plain: the judge of `spec.training`.

Every document is computed alone, with a dense mask over the keys of all steps, full logits over both vocabularies, no
trick, and autograd's gradients. It shares no code with what it judges; where the two differ, this one reads like
the definition (EAGLE-3, arXiv 2503.01840, section 3; LK losses, arXiv 2602.23881).
"""

from dataclasses import dataclass

import torch


@dataclass
class Document:
    input_ids: torch.Tensor  # [T]
    loss_mask: torch.Tensor  # [T] bool
    aux: torch.Tensor  # [T, 3 * H_target]
    target_logits: torch.Tensor  # [T, V]


def reference_loss(parameters, config, embedding, t2d, documents, *, steps, weights, objective="ce"):
    """`parameters` by their exported names, `weights [K]`. Returns (loss [], loss sums [K], correct [K], count [K])."""
    loss_sum = [torch.zeros((), dtype=embedding.dtype) for _ in range(steps)]
    correct, count = [0] * steps, [0] * steps
    for document in documents:
        for k, (row_losses, row_correct) in enumerate(
            _document(parameters, config, embedding, t2d, document, steps, objective)
        ):
            loss_sum[k] = loss_sum[k] + row_losses.sum()
            correct[k] += int(row_correct.sum())
            count[k] += len(row_losses)
    sums = torch.stack(loss_sum)
    return (sums * weights).sum(), sums.detach(), torch.tensor(correct), torch.tensor(count)


def _document(p, config, embedding, t2d, document, steps, objective):
    length = len(document.input_ids)
    heads, kv_heads, width = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    features = document.aux.chunk(3, -1)
    if config.fc_norm:
        features = [_norm(its, p[f"fc_norm.{at}.weight"], config.rms_norm_eps) for at, its in enumerate(features)]
    hidden = torch.cat(list(features), -1) @ p["fc.weight"].T  # [T, H]
    names = ["midlayer", *(f"layers.{at}" for at in range(1, config.num_hidden_layers))]
    keys, values, allowed = [[] for _ in names], [[] for _ in names], []
    for k in range(steps):
        tokens = torch.zeros_like(document.input_ids)
        tokens[: max(length - 1 - k, 0)] = document.input_ids[1 + k :]
        x = torch.cat(
            (
                _norm(embedding[tokens], p["midlayer.input_layernorm.weight"], config.rms_norm_eps),
                _norm(hidden, p["midlayer.hidden_norm.weight"], config.rms_norm_eps),
            ),
            dim=-1,
        )
        every = torch.ones(length, length, dtype=torch.bool)
        allowed.append(every.tril() if k == 0 else torch.eye(length, dtype=torch.bool))
        for at, name in enumerate(names):
            if at:
                x = _norm(hidden, p[f"{name}.hidden_norm.weight"], config.rms_norm_eps)
            query = _rope((x @ p[f"{name}.self_attn.q_proj.weight"].T).view(length, heads, width), config, k)
            key = _rope((x @ p[f"{name}.self_attn.k_proj.weight"].T).view(length, kv_heads, width), config, k)
            value = (x @ p[f"{name}.self_attn.v_proj.weight"].T).view(length, kv_heads, width)
            keys[at].append(key.repeat_interleave(heads // kv_heads, dim=1))
            values[at].append(value.repeat_interleave(heads // kv_heads, dim=1))
            scores = torch.einsum("qhd,khd->hqk", query, torch.cat(keys[at])) / width**0.5  # [heads, T, (k + 1) T]
            scores = scores.masked_fill(~torch.cat(allowed, dim=1), float("-inf"))
            attended = torch.einsum("hqk,khd->qhd", scores.softmax(-1), torch.cat(values[at]))
            hidden = hidden + attended.reshape(length, -1) @ p[f"{name}.self_attn.o_proj.weight"].T
            y = _norm(hidden, p[f"{name}.post_attention_layernorm.weight"], config.rms_norm_eps)
            gate = y @ p[f"{name}.mlp.gate_proj.weight"].T
            up = y @ p[f"{name}.mlp.up_proj.weight"].T
            hidden = hidden + (gate * gate.sigmoid() * up) @ p[f"{name}.mlp.down_proj.weight"].T
        logits = _norm(hidden, p["norm.weight"], config.rms_norm_eps) @ p["lm_head.weight"].T
        rows = [
            i
            for i in range(length - 2 - k)
            if document.loss_mask[i + 2 + k] and t2d[document.target_logits[i + 1 + k].argmax()]
        ]
        wanted = document.target_logits[[i + 1 + k for i in rows]]  # [rows, V]
        if config.norm_output:
            hidden = _norm(hidden, p["norm.weight"], config.rms_norm_eps)
        yield _objective(objective, logits[rows], wanted, t2d), logits[rows].argmax(-1) == wanted[:, t2d].argmax(-1)


def _objective(objective, logits, wanted, t2d):
    log_q = logits.log_softmax(-1)
    if objective == "ce":
        return -(wanted[:, t2d].softmax(-1) * log_q).sum(-1)
    if objective == "hard":
        return -log_q.gather(1, wanted[:, t2d].argmax(-1, keepdim=True)).squeeze(1)
    if objective == "lk":  # not renormalised: what the draft's vocabulary lacks can never be accepted
        return -torch.minimum(wanted.softmax(-1)[:, t2d], log_q.exp()).sum(-1).log()
    raise ValueError(objective)


def _norm(x, weight, eps):
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight


def _rope(x, config, step):
    """Rotates `x [T, heads, D]`, row i by position i + step; angles in fp32, as Hugging Face's Llama has them."""
    assert config.rope_parameters["rope_type"] == "default"
    half = x.shape[-1] // 2
    positions = torch.arange(x.shape[0], dtype=torch.float32) + step
    frequency = 1 / config.rope_parameters["rope_theta"] ** (torch.arange(half, dtype=torch.float32) / half)
    angle = torch.outer(positions, frequency)[:, None]
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    first, second = x[..., :half], x[..., half:]
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
