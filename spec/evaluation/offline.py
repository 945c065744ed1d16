"""The offline part of an evaluation: real speculation with the frozen target, and the proof that it changes nothing."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from spec.evaluation.figures import Acceptance, differences, total
from spec.evaluation.prompts import Asked, read_tokenizer
from spec.evaluation.speculation import Answer, CachedTarget, greedy, is_greedy, speculate
from spec.methods.method import Drafter, Method
from spec.progress import RowProgress
from spec.target.frozen import FrozenTarget

EXAMPLES = 6  # answers kept with the runs that each forward accepted
UNTRAINED_PROMPTS = 4  # enough for a figure that is 1 but for chance


def measure(method: Method, target: Path, folder: Path, asked: Asked, *, steps: int, device: str) -> dict[str, Any]:
    """Figures of the draft in `folder` on `asked`: see the keys. In fp32 on a CPU, in the target's dtype on a GPU."""
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    draft = method.load(folder, dtype=dtype, device=device)
    frozen = CachedTarget(FrozenTarget.load(target, dtype=dtype, device=device), draft.layers)
    begun = time.monotonic()
    plain: list[list[int]] = []
    answers: list[Answer] = []
    with RowProgress("offline speculation", len(asked.prompts)) as progress:
        for prompt in asked.prompts:
            answers.append(_answer(frozen, draft, prompt, asked, steps))
            plain.append(_plain(frozen, prompt, asked, answers[-1].tokens))
            progress.update(len(answers), sum(len(answer.tokens) for answer in answers), rejects={})
    seconds = time.monotonic() - begun
    outputs = [answer.tokens for answer in answers]
    differ = differences(plain, outputs, asked.prompts, frozen.gap)
    untrained = draft.untrained()
    chance = [_answer(frozen, untrained, prompt, asked, steps) for prompt in asked.prompts[:UNTRAINED_PROMPTS]]
    return {
        **_counted(answers, steps).figures(),
        "prompts": len(answers),
        "num_steps": steps,
        "seconds": seconds,
        "dtype": str(dtype).removeprefix("torch."),
        "tokens_equal": not differ,
        "differ": differ,
        "untrained_accept_length": _counted(chance, steps).accept_length,
        "examples": _examples(target, asked, answers),
        "outputs": outputs,
        "histograms": [_histogram(answer, steps) for answer in answers],
    }


def _answer(target: CachedTarget, draft: Drafter, prompt: Sequence[int], asked: Asked, steps: int) -> Answer:
    return speculate(target, draft, prompt, steps=steps, max_new_tokens=asked.max_new_tokens, stop=asked.stop)


def _plain(target: CachedTarget, prompt: Sequence[int], asked: Asked, said: list[int]) -> list[int]:
    """The target's own answer; token by token only where it is not plainly what was `said`."""
    if is_greedy(target, prompt, said):
        return said
    return greedy(target, prompt, max_new_tokens=asked.max_new_tokens, stop=asked.stop)


def _histogram(answer: Answer, steps: int) -> list[int]:
    return [answer.kept.count(n) for n in range(steps + 1)]


def _counted(answers: list[Answer], steps: int) -> Acceptance:
    return Acceptance(sum(len(answer.tokens) for answer in answers), total(_histogram(a, steps) for a in answers))


def _examples(target: Path, asked: Asked, answers: list[Answer]) -> list[dict[str, Any]]:
    """Answers as pieces of text, each what one forward added and how many of its drafts that kept."""
    tokenizer = read_tokenizer(target)
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
