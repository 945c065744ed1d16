"""What the prepared samples are like: facts for their marker, the report, and whoever looks at a run."""

from typing import Any

import numpy as np

from spec.samples.dataset import Samples
from spec.samples.tokens import KINDS
from spec.samples.vocabulary import DraftVocabulary

_BARS = 16
_EXAMPLES = 3


def of_split(
    samples: Samples, loss_counts: np.ndarray, kinds: np.ndarray, vocabulary: DraftVocabulary
) -> dict[str, Any]:
    """Facts of one split; `loss_counts` is `[vocab_size]`, how often each token bears loss in it, `kinds` `[kinds]`.

    `vocabulary_coverage` is the share of the loss-bearing tokens that the draft can say at all: no draft is accepted
    more often than that.
    """
    tokens, loss_tokens = int(samples.offsets[-1]), int(loss_counts.sum())
    return {
        "rows": len(samples),
        "tokens": tokens,
        "loss_tokens": loss_tokens,
        "loss_share": _share(loss_tokens, tokens),
        "loss_by_kind": {name: int(count) for name, count in zip(KINDS, kinds, strict=True) if count},
        "vocabulary_coverage": _share(int(loss_counts[vocabulary.t2d].sum()), loss_tokens),
    }


def length_histogram(samples: Samples) -> dict[str, list[int]]:
    """Rows by length in equal steps up to the longest: `rows[i]` are from `edges[i]` to below `edges[i + 1]` tokens."""
    edges = np.unique(np.linspace(0, samples.lengths.max() + 1, _BARS + 1).astype(int))
    rows, _ = np.histogram(samples.lengths, edges)
    return {"edges": edges.tolist(), "rows": rows.tolist()}


def examples(samples: Samples, tokenizer: Any) -> list[list[list[Any]]]:
    """The first rows as stretches of [text, bears loss], which show the mask to people."""
    return [_stretches(*samples[row], tokenizer) for row in range(min(_EXAMPLES, len(samples)))]


def _stretches(input_ids: np.ndarray, loss_mask: np.ndarray, tokenizer: Any) -> list[list[Any]]:
    edges = [0, *(np.flatnonzero(np.diff(loss_mask)) + 1).tolist(), len(loss_mask)]
    return [
        [tokenizer.decode(input_ids[start:end].tolist()), bool(loss_mask[start])]
        for start, end in zip(edges[:-1], edges[1:], strict=True)
    ]


def _share(part: int, whole: int) -> float:
    return round(part / whole, 4) if whole else 0.0
