"""The CPU server's paged attention: that of each request alone over its own keys, however many are computed at once."""

import math

import pytest
import torch

HEADS, KV_HEADS, DIM, SLOTS = 6, 2, 8, 200


@pytest.fixture
def attention(of_shim):
    return of_shim("sgl_kernel/attention.py")


class Batch:
    """Requests of some length, with so many new tokens each, whose slots lie anywhere."""

    def __init__(self, before: list[int], news: list[int]):
        self.before, self.news = before, news
        self.slots = torch.randperm(SLOTS - 1)[: sum(before) + sum(news)] + 1
        self.table = torch.randint(SLOTS, (len(news) + 1, 64), dtype=torch.int32)  # old slots beyond the ends
        self.rows = torch.arange(len(news)).flip(0) + 1
        self.totals = torch.tensor(before) + torch.tensor(news)
        self.own = self.slots.split(self.totals.tolist())
        for row, own in zip(self.rows, self.own, strict=True):
            self.table[row, : len(own)] = own.int()
        self.lengths = torch.tensor(news, dtype=torch.int32)
        self.starts = (self.lengths.cumsum(0) - self.lengths).int()

    def extend(self, attention, query, keys, values, *, window=0, cap=0.0, sinks=None, tree=None, causal=True):
        out = torch.zeros_like(query)
        where = (self.table, self.rows, self.totals, self.lengths, self.starts, max(self.news))
        attention.extend_attention_cpu(
            *(query, None, None, out, keys, values, 1.0, 1.0, *where, DIM**-0.5, cap, False, window, None, sinks),
            *(tree, causal),
        )
        return out

    def expected(self, query, keys, values, *, window=0, cap=0.0, sinks=None, tree=None, causal=True):
        """One query and one head after another."""
        out, at, masks = torch.zeros_like(query), 0, 0
        for before, new, own in zip(self.before, self.news, self.own, strict=True):
            for place in range(new):
                sees = [k for k in range(before + new) if not causal or k <= before + place]
                if tree is not None:
                    row = tree[masks + place * new : masks + (place + 1) * new]
                    sees = [*range(before), *(before + int(k) for k in row.nonzero())]
                if window > 0:
                    sees = [k for k in sees if k > before + place - window]
                for head in range(HEADS):
                    k, v = (cache[own[sees], head // (HEADS // KV_HEADS)] for cache in (keys, values))
                    scores = (k @ query[at, head]) / math.sqrt(DIM)
                    scores = cap * (scores / cap).tanh() if cap else scores
                    sink = torch.empty(0) if sinks is None else sinks[head : head + 1]
                    out[at, head] = torch.cat((scores, sink)).softmax(0)[: len(sees)] @ v
                at += 1
            masks += new * new
        return out


def tensors(batch: Batch) -> list[torch.Tensor]:
    query = torch.randn(sum(batch.news), HEADS, DIM)
    return [query, torch.randn(SLOTS, KV_HEADS, DIM), torch.randn(SLOTS, KV_HEADS, DIM)]


TREE = torch.tensor([[1, 0, 0], [1, 1, 0], [1, 0, 1]]).bool().flatten()  # two drafts that follow the same token


HOW = [{}, {"window": 3}, {"cap": 2.0}, {"sinks": torch.randn(HEADS)}, {"causal": False}]
UNIFORM, RAGGED = ([5, 9], [3, 3]), ([0, 4], [7, 2])


@pytest.mark.parametrize(
    ("lengths", "how"),
    [*((UNIFORM, how) for how in [*HOW, {"tree": TREE.repeat(2)}]), *((RAGGED, how) for how in HOW)],
    ids=lambda its: next(iter(its), "plain") if isinstance(its, dict) else "as many" if its is UNIFORM else "ragged",
)
def test_each_request_sees_its_own_keys(attention, lengths, how):
    batch = Batch(*lengths)
    given = tensors(batch)
    torch.testing.assert_close(batch.extend(attention, *given, **how), batch.expected(*given, **how))


def test_a_token_of_each_request_is_stored_and_seen(attention):
    batch = Batch([4, 8, 1], [1, 1, 1])
    query, keys, values = tensors(batch)
    new_keys, new_values, out = torch.randn(3, KV_HEADS, DIM), torch.randn(3, KV_HEADS, DIM), torch.empty_like(query)
    stored = torch.stack([own[-1] for own in batch.own])
    attention.decode_attention_cpu(
        *(query, keys, values, 1.0, 1.0, out, new_keys.flatten(1), new_values.flatten(1), stored, None),
        *(batch.table, batch.rows, batch.totals, DIM**-0.5, 0.0, False, 0),
    )
    assert torch.equal(keys[stored], new_keys) and torch.equal(values[stored], new_values)
    torch.testing.assert_close(out, batch.expected(query, keys, values))


def test_layers_share_what_a_forward_works_out_and_the_next_forward_does_not(attention, monkeypatch):
    worked_out = []
    groups = attention._groups
    monkeypatch.setattr(attention, "_groups", lambda *args: worked_out.append(1) or groups(*args))
    batch = Batch([5, 9], [3, 3])
    layers = [tensors(batch) for _ in range(3)]
    for _ in range(2):
        for layer in layers:
            torch.testing.assert_close(batch.extend(attention, *layer), batch.expected(*layer))
        # The server writes the next forward's slots and lengths into the same tensors.
        batch.before, batch.own = [4, 8], [own[:-1] for own in batch.own]
        batch.totals -= 1
    assert len(worked_out) == 2
