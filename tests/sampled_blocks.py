"""Sampled answers with a block draft by SGLang 0.5.23's rules, written plainly: what the server is compared with.

DFlash drafts its argmax, and the target keeps a draft that is what it draws there itself (dflash_utils.py). DSpark
draws its drafts at the request's temperature, from q; the target keeps one with probability min(1, p / q), and draws
the first that it refuses anew from what its p has more than q (dspark_accept.py).
"""

from collections.abc import Sequence
from math import sqrt

import torch

from spec.evaluation.speculation import CachedTarget
from spec.methods.block.inference import BlockDrafter


@torch.no_grad()
def rounds(
    target: CachedTarget,
    draft: BlockDrafter,
    prompt: Sequence[int],
    *,
    drafts: int,
    temperature: float,
    tokens: int,
    random: torch.Generator,
) -> list[int]:
    """The drafts kept by each forward of the target while it says `tokens` tokens, whatever they are."""

    def read(text):  # all of it anew: logits [T, V] over the temperature, and features [T, F * H]
        output = target.model(torch.tensor([text]), output_hidden_states=True)
        aux = torch.cat([output.hidden_states[layer + 1][0] for layer in draft.layers], -1)
        return (output.logits[0] / temperature).softmax(-1), aux

    def one_of(p):
        return int(torch.multinomial(p, 1, generator=random))

    text, kept = list(prompt), []
    p, aux = read(text)
    text.append(one_of(p[-1]))
    while len(text) < len(prompt) + tokens:
        seen = len(text) - 1  # the newest token's own feature is not there yet
        ids = torch.full((drafts if draft.markov else drafts + 1,), draft.mask)
        ids[0] = text[-1]
        logits = draft.states(target.embed[ids], draft.read(aux[:seen], draft.empty_cache())) @ target.head.T
        guessed, q = text[-1:], []
        for row in logits if draft.markov else logits[1:]:
            if draft.markov:
                q.append(((row + draft.bias(guessed[-1:])[0]) / temperature).softmax(-1))
            guessed.append(one_of(q[-1]) if draft.markov else int(row.argmax()))
        p, aux = read(text + guessed[1:])
        count = 0
        for token in guessed[1:]:
            here = p[seen + count]
            if draft.markov:
                keep = float(torch.rand((), generator=random)) < float(here[token] / q[count][token])
                instead = (here - q[count]).clamp(min=0)
            else:
                drawn = one_of(here)
                keep, instead = drawn == token, torch.zeros_like(here).index_fill(0, torch.tensor(drawn), 1.0)
            if not keep:
                break
            count += 1
        last = p[seen + count] if count == drafts else instead
        text += [*guessed[1 : count + 1], one_of(last)]
        kept.append(count)
    return kept


def mean_kept(answers: Sequence[Sequence[int]]) -> tuple[float, float]:
    """Drafts kept a forward over `answers`, each the counts of its forwards, and the standard error of that.

    Of a ratio of two sums over answers that are independent, as their forwards are not.
    """
    kept, forwards = torch.tensor([[float(sum(counts)), len(counts)] for counts in answers]).double().T
    mean = kept.sum() / forwards.sum()
    return float(mean), sqrt(float(((kept - mean * forwards) ** 2).sum())) / float(forwards.sum())
