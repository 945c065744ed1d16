"""Products of few rows, which decoding and verifying drafts are made of: both read all weights once.

BLAS takes twice as long for four rows as for one, since it packs the weights anew in each call. Packed once for oneDNN,
four rows cost about 1.5 times one. Which way is the faster depends on the processor and on the shape, so the first
products of a kind go both ways in turn, and the rest the one that took less. Weights are held twice then: this server
is for tiny models.
"""

import statistics
import time

import torch
from torch.nn import functional as F

MOST = 64  # rows, as 16 requests with 3 drafts each; beyond these, packing in each call costs little
_TRIES = 15  # of each way, in the work itself: weights of another layer each time, from memory as ever

_spent = {}  # (shape of the weight, rows) -> seconds of each way so far
_chosen = {}  # the same -> the way that is taken


def linear(x, weight, bias=None):
    """`F.linear`, by whichever way is the faster here."""
    rows = x.numel() // x.shape[-1]
    if not 1 < rows <= MOST or x.dtype != torch.float32 or weight.dtype != torch.float32:
        return F.linear(x, weight, bias)
    kind = (weight.shape, rows)
    way = _chosen.get(kind)
    return way(x, weight, bias) if way else _timed(kind, x, weight, bias)


def by_head(hidden, lm_head):
    """The head's logits, by `linear`; None where its weight is no plain one: take SGLang's way."""
    weight = getattr(lm_head, "weight", None)
    if weight is None or hidden.dtype != weight.dtype or hasattr(lm_head, "set_lora"):
        return None
    return linear(hidden, weight)


def _timed(kind, x, weight, bias):
    spent = _spent.setdefault(kind, {F.linear: [], _product: []})
    way = min(spent, key=lambda its: len(spent[its]))
    _pack(weight)
    begun = time.thread_time()  # its own: other processes may be busy
    out = way(x, weight, bias)
    spent[way].append(time.thread_time() - begun)
    if all(len(its) == _TRIES for its in spent.values()):
        _chosen[kind] = min(spent, key=lambda its: statistics.median(spent[its]))
    return out


def _product(x, weight, bias):
    return torch.ops.mkldnn._linear_pointwise.default(x, _pack(weight), bias, "none", [], "")


def _pack(weight):
    """What oneDNN makes of it, kept with it: a look into a dictionary of tensors takes as long as a small product."""
    packed = getattr(weight, "packed_for_few_rows", None)
    if packed is None:
        packed = weight.packed_for_few_rows = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), 4)
    return packed
