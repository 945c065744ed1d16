"""Speculation with a chain of drafts, for real but without a server: a draft's worth, counted as SGLang does.

Each forward of the target reads the last token and `steps` drafts, keeps the drafts that are its own greedy choice, and
adds the choice that follows them; where an answer is sampled it keeps a draft by chance, as `verified` says. The
answer's first token comes with the prompt and belongs to no forward; a forward may run past the answer's end, and then
counts in full. So `tokens / forwards` is what the server reports as `completion_tokens / spec_verify_ct`, and equal
kept counts are equal histograms.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from transformers import DynamicCache

from spec.methods.method import Drafter
from spec.target.frozen import FrozenTarget

TextEnds = Callable[[list[int], int], int | None]  # see `spec.evaluation.prompts.text_ends`


class Sampling(NamedTuple):
    temperature: float
    generator: torch.Generator  # on the target's device


@dataclass
class Answer:
    tokens: list[int]  # as the server returns them, cut at the stop token or the longest length
    kept: list[int] = field(default_factory=list)  # drafts kept by each forward of the target
    runs: list[list[int]] = field(default_factory=list)  # tokens that each forward added to the answer


class CachedTarget:
    """A target reading one sequence piece by piece; what was read can be taken back.

    It takes `target` over: its features of packed documents are wrong from then on.
    """

    def __init__(self, target: FrozenTarget, layers: Sequence[int] = ()):
        """`layers`: those whose outputs `read` gives as features, 0-based, ascending."""
        target.model.set_attn_implementation("sdpa")  # the training one knows no cache
        self.model, self.layers = target.model, tuple(layers)
        self.device = target.embed_weight.device
        self.embed, self.head = target.embed_weight, target.head_weight  # [V, H]
        self.forget_all()

    def forget_all(self) -> None:
        self.cache = DynamicCache()  # keeps all of every layer: one that slides or is chunked could not be taken back

    def forget(self, count: int) -> None:
        """Take back the last `count` tokens read."""
        self.cache.crop(-count)

    def read(self, tokens: Sequence[int], choices: int) -> tuple[list[int], torch.Tensor]:
        """Read on; the greedy next tokens after each of the last `choices` tokens, and features [T, F * H] of all."""
        logits, aux = self.logits(tokens, choices)
        return logits.argmax(-1).tolist(), aux

    @torch.no_grad()
    def logits(self, tokens: Sequence[int], choices: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Read on; logits `[choices, V]` after each of the last `choices` tokens, and features [T, F * H] of all."""
        output = self.model.model(
            torch.tensor([list(tokens)], device=self.device),
            past_key_values=self.cache,
            use_cache=True,
            output_hidden_states=True,
        )
        logits = self.model.lm_head(output.last_hidden_state[0, -choices:])  # [choices, V]
        aux = [output.hidden_states[layer + 1][0] for layer in self.layers]  # [0] is the embedding
        return logits, torch.cat(aux, -1) if aux else logits.new_empty(len(tokens), 0)

    @torch.no_grad()
    def gap(self, prefix: Sequence[int], one: int, other: int) -> float:
        """By how many nats the likelier of two next tokens beats the other after `prefix`."""
        logits = self.model(torch.tensor([list(prefix)], device=self.device), logits_to_keep=1).logits[0, -1].float()
        return (logits[one] - logits[other]).abs().item()


def greedy(target: CachedTarget, prompt: Sequence[int], *, max_new_tokens: int, stop: frozenset[int]) -> list[int]:
    """The target's own answer, one token a forward: the judge of `speculate`."""
    target.forget_all()
    choice, _ = target.read(prompt, 1)
    tokens = list(choice)
    while len(tokens) < max_new_tokens and tokens[-1] not in stop:
        tokens += target.read(tokens[-1:], 1)[0]
    return tokens


def is_greedy(target: CachedTarget, prompt: Sequence[int], tokens: list[int]) -> bool:
    """Whether `tokens` are what `greedy` answers, by one forward: each is the choice after all before it."""
    target.forget_all()
    choices, _ = target.read([*prompt, *tokens[:-1]], len(tokens))
    return choices == tokens


def speculate(
    target: CachedTarget,
    draft: Drafter,
    prompt: Sequence[int],
    *,
    steps: int,
    max_new_tokens: int,
    stop: frozenset[int],
    text_ends: TextEnds = lambda tokens, new: None,
    sampling: Sampling | None = None,
) -> Answer:
    """The target's answer to `prompt` with `draft` guessing `steps` tokens ahead of each forward. Greedy without
    `sampling`."""
    target.forget_all()
    logits, aux = target.logits(prompt, 1)
    answer, cache = Answer(tokens=verified(logits, [], None, sampling)), draft.empty_cache()
    unread = torch.tensor(
        [*prompt[1:], *answer.tokens], device=target.device
    )  # tokens whose position before has features
    ended = text_ends(answer.tokens, 1) is not None
    while len(answer.tokens) < max_new_tokens and answer.tokens[-1] not in stop and not ended:
        drawn_from = None
        if sampling is None:
            drafts, cache = draft.propose(unread, aux, cache, target, steps)
        else:
            drafts, drawn_from, cache = draft.draw(unread, aux, cache, target, steps, **sampling._asdict())
        logits, aux = target.logits([int(unread[-1]), *drafts], steps + 1)
        said = verified(logits, drafts, drawn_from, sampling)
        kept = len(said) - 1
        if kept < steps:
            target.forget(steps - kept)
        unread, aux = torch.tensor(said, device=target.device), aux[: kept + 1]
        run = _until_stop(said, stop)[: max_new_tokens - len(answer.tokens)]
        if (ends := text_ends([*answer.tokens, *run], len(run))) is not None:
            run, ended = run[: ends - len(answer.tokens)], True
        answer.tokens += run
        answer.kept.append(kept)
        answer.runs.append(run)
    return answer


def verified(
    logits: torch.Tensor, drafts: Sequence[int], drawn_from: torch.Tensor | None, sampling: Sampling | None
) -> list[int]:
    """The drafts that the target keeps, and its own next token, by its `logits [drafts + 1, V]`.

    Greedy, a draft is kept that is the target's choice. Sampled, with p the target's distribution at the temperature,
    a draft x that is a first choice is kept with probability p(x), and else a token of p without x follows: SGLang's
    tree_speculative_sampling_target_only at its thresholds of 1, the same as to draw from p and compare. A draft drawn
    from q (`drawn_from [drafts, V]`) is kept with probability min(1, p(x) / q(x)), and else a token of max(0, p - q)
    follows (arXiv 2211.17192; SGLang's chain_speculative_sampling).
    """
    if sampling is None:
        choices = logits.argmax(-1).tolist()
        kept = next((at for at, draft in enumerate(drafts) if draft != choices[at]), len(drafts))
        return choices[: kept + 1]

    def drawn(weights: torch.Tensor) -> int:
        return int(torch.multinomial(weights, 1, generator=sampling.generator))

    wanted = (logits.float() / sampling.temperature).softmax(-1)
    for at, draft in enumerate(drafts):
        if drawn_from is None:
            if (token := drawn(wanted[at])) != draft:
                return [*drafts[:at], token]
            continue
        p, q = wanted[at], drawn_from[at]
        if torch.rand((), generator=sampling.generator, device=p.device) * q[draft] >= p[draft]:
            more = (p - q).clamp(min=0)
            return [*drafts[:at], drawn(more if more.sum() > 0 else p)]
    return [*drafts, drawn(wanted[-1])]


def _until_stop(tokens: list[int], stop: frozenset[int]) -> list[int]:
    end = next((at for at, token in enumerate(tokens) if token in stop), len(tokens))
    return tokens[: end + 1]
