"""The offline part of an evaluation: real speculation with the frozen target, and the proof that it changes nothing."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from spec.evaluation.figures import Counted, acceptance, by_context, differences, interval
from spec.evaluation.prompts import Asked, text_ends
from spec.evaluation.speculation import Answer, CachedTarget, Sampling, TextEnds, greedy, is_greedy, speculate
from spec.methods.method import Drafter, Method
from spec.progress import RowProgress, Wait
from spec.server.sglang import ServedAnswer
from spec.target.frozen import FrozenTarget

EXAMPLES = 6  # answers kept with the runs that each forward accepted
UNTRAINED_PROMPTS = 4  # enough for a figure that is 1 but for chance


@dataclass(frozen=True)
class Loaded:
    """A target and a draft of it, read once."""

    target: CachedTarget
    draft: Drafter
    dtype: torch.dtype


def load(method: Method, target: Path, folder: Path, device: str) -> Loaded:
    """In fp32 on a CPU, in bfloat16 on a GPU."""
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    with Wait("the target and the draft, read from disk"):
        draft = method.load(folder, dtype=dtype, device=device)
        return Loaded(CachedTarget(FrozenTarget.load(target, dtype=dtype, device=device), draft.layers), draft, dtype)


def measure(loaded: Loaded, tokenizer: PreTrainedTokenizerBase, asked: Asked, *, steps: int) -> dict[str, Any]:
    """Figures of the draft on `asked`: see the keys."""
    frozen, draft = loaded.target, loaded.draft
    begun = time.monotonic()
    plain: list[list[int]] = []
    answers: list[Answer] = []
    with RowProgress("offline speculation", len(asked.prompts)) as progress:
        for seed, prompt in enumerate(asked.prompts):
            answers.append(_answer(frozen, draft, prompt, asked, steps, seed))
            plain.append(_plain(frozen, prompt, asked, answers[-1].tokens))
            progress.update(len(answers), sum(len(answer.tokens) for answer in answers), rejects={})
    seconds = time.monotonic() - begun
    outputs = [answer.tokens for answer in answers]
    differ = differences(plain, outputs, asked.prompts, frozen.gap)
    untrained, chance = draft.untrained(), list[Answer]()
    few = asked.prompts[:UNTRAINED_PROMPTS]
    with RowProgress("the untrained draft, to compare", len(few)) as progress:
        for seed, prompt in enumerate(few):
            chance.append(_answer(frozen, untrained, prompt, asked, steps, seed))
            progress.update(len(chance), sum(len(answer.tokens) for answer in chance), rejects={})
    counted = _counted(asked.prompts, answers, steps)
    return {
        **acceptance(counted).figures(),
        "interval": interval(counted),
        "by_context": by_context(counted),
        "prompts": len(answers),
        "num_steps": steps,
        "seconds": seconds,
        "dtype": str(loaded.dtype).removeprefix("torch."),
        **({"temperature": asked.temperature} if asked.temperature else {"tokens_equal": not differ}),
        "differ": differ,
        "untrained_accept_length": acceptance(_counted(asked.prompts, chance, steps)).accept_length,
        "examples": _examples(tokenizer, asked, answers),
        "outputs": outputs,
        "histograms": [_histogram(answer, steps) for answer in answers],
    }


def answers(
    loaded: Loaded, tokenizer: PreTrainedTokenizerBase, asked: Asked, *, steps: int, step: str
) -> list[ServedAnswer]:
    """Answers as a server would give and count them, for a suite."""
    ends, given = text_ends(tokenizer, asked.stop_texts), list[ServedAnswer]()
    with RowProgress(step, len(asked.prompts)) as progress:
        for seed, prompt in enumerate(asked.prompts):
            answer = _answer(loaded.target, loaded.draft, prompt, asked, steps, seed, ends)
            given.append(ServedAnswer(answer.tokens, _histogram(answer, steps)))
            progress.update(len(given), sum(len(one.tokens) for one in given), rejects={})
    return given


def _answer(
    target: CachedTarget,
    draft: Drafter,
    prompt: Sequence[int],
    asked: Asked,
    steps: int,
    seed: int,
    text_ends: TextEnds = lambda tokens, new: None,
) -> Answer:
    """`seed` is that of a sampled answer's draws."""
    sampling = None
    if asked.temperature:
        sampling = Sampling(asked.temperature, torch.Generator(target.device).manual_seed(seed))
    return speculate(
        target,
        draft,
        prompt,
        steps=steps,
        max_new_tokens=asked.max_new_tokens,
        stop=asked.stop,
        text_ends=text_ends,
        sampling=sampling,
    )


def _plain(target: CachedTarget, prompt: Sequence[int], asked: Asked, said: list[int]) -> list[int]:
    """The target's own answer; token by token only where it is not plainly what was `said`. A sampled one has none."""
    if asked.temperature or is_greedy(target, prompt, said):
        return said
    return greedy(target, prompt, max_new_tokens=asked.max_new_tokens, stop=asked.stop)


def _histogram(answer: Answer, steps: int) -> list[int]:
    return [answer.kept.count(n) for n in range(steps + 1)]


def _counted(prompts: Sequence[Sequence[int]], answers: Sequence[Answer], steps: int) -> list[Counted]:
    asked = zip(prompts, answers, strict=False)
    return [Counted(len(prompt), len(answer.tokens), _histogram(answer, steps)) for prompt, answer in asked]


def _examples(tokenizer: PreTrainedTokenizerBase, asked: Asked, answers: list[Answer]) -> list[dict[str, Any]]:
    """Answers as pieces of text, each what one forward added and how many of its drafts that kept."""
    examples = []
    for text, answer in zip(asked.texts[:EXAMPLES], answers, strict=False):
        pieces, shown, tokens = [], "", list[int]()
        for run, kept in zip([answer.tokens[:1], *answer.runs], [0, *answer.kept], strict=True):
            tokens += run
            # Decoded from the start: a character may take several tokens, and is whole only with the last.
            so_far = str(tokenizer.decode(tokens, skip_special_tokens=False)).rstrip("\ufffd")
            pieces.append({"text": so_far[len(shown) :], "accepted": min(kept, len(run))})
            shown = so_far
        examples.append({"prompt": text, "pieces": pieces})
    return examples
