"""One setting of a sweep: the same prompts to the server with the draft and to the one without, in turn, streamed."""

from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import numpy as np

from spec.errors import BadInput
from spec.evaluation import served
from spec.evaluation.figures import Acceptance
from spec.evaluation.prompts import Asked
from spec.evaluation.turns import WARM_TOKENS, in_turn, spread
from spec.methods.method import ADAPTIVE, Drafts
from spec.progress import RowProgress, Wait
from spec.server.sglang import SglangServer, Timed
from spec.tuning.arithmetic import a_round

Json = dict[str, Any]

# Of what a server says of itself: what makes it another server, whose speeds do not compare.
SERVER = ("version", "device", "dtype", "tp_size", "dp_size", "quantization", "kv_cache_dtype")


def measure(
    plain: SglangServer, drafted: SglangServer, asked: Asked, *, drafts: Drafts, load: int, rounds: int
) -> Json:
    """Figures of `rounds` passes over `asked` on each server, `load` requests at once; see the keys.

    A figure is `[median, least, most]` of the rounds.
    """
    servers = {"plain": plain, "drafted": drafted}
    with Wait("a few tokens from both servers, to warm them"):
        for server in servers.values():
            _ask(server, asked, load, lambda rows, tokens: None, tokens=WARM_TOKENS, prompts=asked.prompts[:load])
    said = f"{a_round(drafts)}, {load} at once"
    with RowProgress(said, 2 * rounds * len(asked.prompts)) as progress:
        before = [0, 0]

        def done(rows: int, tokens: int) -> None:
            progress.update(before[0] + rows, before[1] + tokens, rejects={})

        def once(server: SglangServer, _: int) -> Timed:
            timed = _ask(server, asked, load, done)
            before[0], before[1] = before[0] + len(asked.prompts), before[1] + timed.tokens
            return timed

        passes = in_turn(servers, range(rounds), once)
    plainly, speculated = _outputs(passes)
    served.check_same_model(drafted, speculated, plainly, plain.url)
    answers = passes["drafted"][0]
    most = max(len(answer.histogram) for answer in answers.answers) - 1 if drafts == ADAPTIVE else drafts
    accepted = served.acceptance(drafted, asked.prompts, answers, most, accepts_offline=False)
    return _facts(passes, accepted) | {
        "drafts": drafts,
        "concurrency": load,
        "rounds": rounds,
        "max_running_requests": drafted.max_running_requests,
        "server": {name: drafted.info.get(name) for name in SERVER},
    }


def _ask(
    server: SglangServer,
    asked: Asked,
    load: int,
    done: Callable[[int, int], None],
    *,
    tokens: int | None = None,
    prompts: Sequence[Sequence[int]] | None = None,
) -> Timed:
    return server.answer(
        prompts or asked.prompts,
        max_new_tokens=tokens or asked.max_new_tokens,
        stop=asked.stop,
        concurrency=load,
        done=done,
        stream=True,
    )


def _facts(passes: dict[str, list[Timed]], accepted: Json) -> Json:
    plain, drafted = ([figures(timed) for timed in passes[name]] for name in ("plain", "drafted"))
    counted = Acceptance(accepted["tokens"], accepted["histogram"])
    outputs = _outputs(passes)
    return {
        "speed_up": spread([b["tokens_per_s"] / a["tokens_per_s"] for a, b in zip(plain, drafted, strict=True)]),
        "costs": spread([b["round_ms"] / a["round_ms"] for a, b in zip(plain, drafted, strict=True)]),
        "accepts": 1 + sum(counted.by_position),  # tokens a round: the target's own and the drafts kept
        "acceptance_by_position": counted.by_position,
        "prompts": len(outputs[0]),
        "same_answers": sum(one == other for one, other in zip(*outputs, strict=True)),
        **{
            name: {key: spread([one[key] for one in each]) for key in each[0]}
            for name, each in (("plain", plain), ("drafted", drafted))
        },
    }


def _outputs(passes: dict[str, list[Timed]]) -> list[list[list[int]]]:
    """The answers of each server's first pass, in tokens."""
    return [[answer.tokens for answer in timed[0].answers] for timed in passes.values()]


def figures(timed: Timed) -> dict[str, float]:
    """Of one pass, over its requests: medians, and the 99th percentile of what a reader waits for. In milliseconds.

    `round_ms` is the time from one forward of the target that ends in tokens to the next: without drafts, the time per
    output token. The first token comes with the prompt, so n tokens are n - 1 output times. Raises `BadInput` where no
    answer has a second one.
    """
    first, per_token, per_round, gaps = [], [], [], list[float]()
    for answer in timed.answers:
        seconds = [at for at, _ in answer.arrivals]
        first.append(seconds[0])
        gaps += np.diff(seconds).tolist()
        if len(answer.tokens) > 1:
            took = seconds[-1] - seconds[0]
            per_token.append(took / (len(answer.tokens) - 1))
            per_round.append(took / (sum(answer.histogram) or len(answer.tokens) - 1))
    if not gaps:
        raise BadInput("every answer ends with its first token, so there is no round to measure; ask other prompts")
    return {
        "tokens_per_s": timed.tokens / timed.seconds,
        "first_token_ms": 1e3 * median(first),
        "first_token_p99_ms": 1e3 * float(np.percentile(first, 99)),
        "per_token_ms": 1e3 * median(per_token),
        "gap_ms": 1e3 * median(gaps),
        "gap_p99_ms": 1e3 * float(np.percentile(gaps, 99)),
        "round_ms": 1e3 * median(per_round),
    }
