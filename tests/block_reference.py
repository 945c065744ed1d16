"""The whole loss of a block draft's step, slow and plain: the judge of `spec.methods.block`.

Every block is computed alone, over a dense softmax of its document's tokens before the anchor and its own rows, with
full logits over the vocabulary and autograd's gradients. It shares no code with what it judges; where the two differ,
this one reads like the definition (DFlash, arXiv 2602.06036; DSpark, 2607.05147; D-PACE, 2605.18810).
"""

from dataclasses import dataclass

import torch


@dataclass
class Document:
    input_ids: torch.Tensor  # [T]
    loss_mask: torch.Tensor  # [T] bool
    aux: torch.Tensor  # [T, K * H]
    last: torch.Tensor  # [T, H] after the target's final norm
    anchors: list[int]


def reference_loss(parameters, config, embedding, head, documents, *, weights, shares, dpace=None):
    """`parameters` by their exported names, `weights [drafts]`, `shares` of ce, l1 and confidence.

    Returns (sum of weight times loss, sum of weights, each term's sums [3, drafts], correct [drafts], count [drafts]).
    """
    drafts = config.block_size if config.markov_rank else config.block_size - 1
    loss = weight_sum = torch.zeros((), dtype=embedding.dtype)
    terms = torch.zeros(3, drafts, dtype=embedding.dtype)
    correct, count = torch.zeros(drafts, dtype=torch.int64), torch.zeros(drafts, dtype=torch.int64)
    for document in documents:
        target_p = (document.last @ head.T).softmax(-1)
        for anchor in document.anchors:
            hidden = _block(parameters, config, embedding, document, anchor)  # [B, H]
            rows, probabilities = [], []
            for j in range(drafts):
                label = anchor + 1 + j  # DSpark's row k makes token a + k + 1, DFlash's row k token a + k
                if label >= len(document.input_ids) or not document.loss_mask[label]:
                    break
                normed = _norm(hidden[j if config.markov_rank else j + 1], parameters["norm.weight"], config)
                logits = normed @ head.T
                if config.markov_rank:
                    before = parameters["markov_head.markov_w1.weight"][document.input_ids[label - 1]]
                    logits = logits + parameters["markov_head.markov_w2.weight"] @ before
                q = logits.softmax(-1)
                right = document.input_ids[label]
                l1 = (q - target_p[label - 1]).abs().sum()
                row = [-q[right].log(), l1, torch.zeros_like(l1)]
                if shares[2]:
                    seen = torch.cat((normed, before))
                    guess = seen @ parameters["confidence_head.proj.weight"][0]
                    guess = (guess + parameters["confidence_head.proj.bias"][0]).sigmoid()
                    kept = 1 - l1.detach() / 2
                    row[2] = -(kept * guess.log() + (1 - kept) * (1 - guess).log())
                rows.append(torch.stack(row))
                probabilities.append(q[right].detach())
                correct[j] += int(logits.argmax() == right)
                count[j] += 1
            for j, row in enumerate(rows):
                weight = weights[j]
                if dpace is not None:
                    smoothed = [(1 - dpace) * q + dpace for q in probabilities]
                    products = [torch.stack(smoothed[: m + 1]).prod() for m in range(j, len(rows))]
                    weight = weight * torch.stack(products).sum()
                loss = loss + weight * (torch.tensor(shares, dtype=row.dtype) * row).sum()
                weight_sum = weight_sum + weight
                terms[:, j] += row.detach()
    return loss, weight_sum, terms, correct, count


def _block(p, config, embedding, document, anchor):
    heads, kv_heads, width = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    size = config.block_size
    tokens = torch.full((size,), config.mask_token_id)
    tokens[0] = document.input_ids[anchor]
    hidden = embedding[tokens]
    context = _norm(document.aux[:anchor] @ p["fc.weight"].T, p["hidden_norm.weight"], config)  # strictly before
    before, own = torch.arange(anchor), anchor + torch.arange(size)
    for index in range(config.num_hidden_layers):
        its = {name.removeprefix(f"layers.{index}."): x for name, x in p.items() if name.startswith(f"layers.{index}.")}
        x = _norm(hidden, its["input_layernorm.weight"], config)

        def heads_of(source, name, count, at, its=its):
            y = (source @ its[f"self_attn.{name}_proj.weight"].T).view(len(source), count, width)
            return _rope(_norm(y, its[f"self_attn.{name}_norm.weight"], config), config, at)

        query = heads_of(x, "q", heads, own)
        key = torch.cat((heads_of(context, "k", kv_heads, before), heads_of(x, "k", kv_heads, own)))
        value = torch.cat((context, x)) @ its["self_attn.v_proj.weight"].T
        value = value.view(-1, kv_heads, width)
        key, value = (y.repeat_interleave(heads // kv_heads, dim=1) for y in (key, value))
        p_seen = (torch.einsum("qhd,khd->hqk", query, key) / width**0.5).softmax(-1)  # both directions in the block
        attended = torch.einsum("hqk,khd->qhd", p_seen, value)
        hidden = hidden + attended.reshape(size, -1) @ its["self_attn.o_proj.weight"].T
        y = _norm(hidden, its["post_attention_layernorm.weight"], config)
        gate, up = y @ its["mlp.gate_proj.weight"].T, y @ its["mlp.up_proj.weight"].T
        hidden = hidden + (gate * gate.sigmoid() * up) @ its["mlp.down_proj.weight"].T
    return hidden


def _norm(x, weight, config):
    return x / (x.pow(2).mean(-1, keepdim=True) + config.rms_norm_eps).sqrt() * weight


def _rope(x, config, positions):
    """Rotates `x [rows, heads, D]`; angles in fp32, as Hugging Face's Llama has them."""
    assert config.rope_parameters["rope_type"] == "default"
    half = x.shape[-1] // 2
    frequency = 1 / config.rope_parameters["rope_theta"] ** (torch.arange(half, dtype=torch.float32) / half)
    angle = torch.outer(positions.float(), frequency)[:, None]
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    first, second = x[..., :half], x[..., half:]
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
