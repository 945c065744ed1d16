"""The served part of a draft's evaluation: the same prompts to a running SGLang server, with the draft and without."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from spec.errors import BadInput
from spec.evaluation import figures
from spec.evaluation.figures import Counted
from spec.evaluation.prompts import Asked, read_tokenizer
from spec.evaluation.turns import WARM_TOKENS, in_turn, spread
from spec.methods.files import WEIGHTS
from spec.methods.method import Drafts, Method
from spec.progress import RowProgress
from spec.server.sglang import ServedAnswer, SglangServer, Timed
from spec.storage import file_sha256
from spec.storage.markers import Marker

Part = dict[str, Any]

_ROUNDS = 4  # of two servers that are asked in turn, at most: each a share of the prompts that fills the load
_SAMPLE = "The quick brown fox: 3.14 + \n\tnaïve = ünïcödé 漢字 🙂"


def check_target(server: SglangServer, target: Path) -> None:
    """`BadInput` if the server's model is of another architecture or reads text as other tokens than `target`."""
    there, here = server.model_info.get("architectures"), AutoConfig.from_pretrained(str(target)).architectures
    if there and here and there != here:
        raise BadInput(f"{server.url} serves {server.model_info['model_path']}, a {there[0]}; {target} is a {here[0]}")
    if server.tokenize(_SAMPLE) != read_tokenizer(target).encode(_SAMPLE, add_special_tokens=False):
        raise BadInput(
            f"{server.url} serves {server.model_info['model_path']}, which has another tokenizer than {target}: "
            "it is another model"
        )


def check_same_model(server: SglangServer, outputs: list[list[int]], expected: list[list[int]], source: str) -> None:
    """`BadInput` if most answers begin otherwise than the `expected` ones: equal tokenizers, but other weights."""
    same = sum(here[:1] == there[:1] for here, there in zip(outputs, expected, strict=True))
    if same < len(expected) / 2:
        raise BadInput(
            f"{server.url}: {len(expected) - same} of {len(expected)} answers begin otherwise than those of {source}; "
            f"it serves other weights ({server.model_info['model_path']})"
        )


def check_without_draft(server: SglangServer) -> None:
    algorithm = server.info.get("speculative_algorithm")
    if algorithm:
        raise BadInput(f"--baseline-url {server.url} serves with speculation ({algorithm}); the baseline is without")


def check_with_draft(server: SglangServer, method: Method, draft: Marker, steps: Drafts) -> None:
    """`BadInput` if speculation is off, is not the draft's method at `steps` a round, or has visibly another draft."""
    info = server.info
    method.check_server(info, steps, server.url)
    weights = Path(info.get("speculative_draft_model_path") or "") / WEIGHTS
    if weights.is_file() and file_sha256(weights) != draft.files[WEIGHTS].sha256:
        raise BadInput(f"{server.url} serves another draft: {weights} is not the one of this run; restart it with this")


def check_room(server: SglangServer, concurrency: int, other: int | None) -> None:
    """`BadInput` if requests would wait in the server's queue, or if the `other` one, to be compared with, takes
    another number at once (None: not known)."""
    most = server.max_running_requests
    if most is None:
        return
    if most < concurrency:
        raise BadInput(
            f"{server.url} runs {most} requests at once, so that {concurrency} would wait for one another: start it "
            f"with --max-running-requests {concurrency}, or ask it less at once"
        )
    if other is not None and most != other:
        raise BadInput(
            f"{server.url} runs at most {most} requests at once, and the server that it is compared with {other}: "
            f"start both with the same --max-running-requests, at least {concurrency} (SGLang takes 48 with a draft)"
        )


def measure(server: SglangServer, asked: Asked, *, concurrency: int, step: str) -> tuple[Part, Timed]:
    """Ask everything; the figures that need no draft, and the answers."""
    with RowProgress(step, len(asked.prompts)) as progress:
        timed = _ask(
            server, asked, asked.prompts, concurrency, lambda rows, tokens: progress.update(rows, tokens, rejects={})
        )
    return _part(server, asked, timed, concurrency), timed


def measure_in_turn(
    plain: SglangServer, drafted: SglangServer, asked: Asked, *, concurrency: int
) -> tuple[Part, Part, Timed]:
    """The same of both servers, and the drafted one's answers; its part has the `speed_up` of the rounds too.

    A round is a share of the prompts, which both are asked: in all no more is asked than of one after the other.
    """
    servers = {"plain": plain, "drafted": drafted}
    count = max(1, min(_ROUNDS, len(asked.prompts) // concurrency))
    at = [len(asked.prompts) * one // count for one in range(count + 1)]
    with RowProgress("both servers in turn", 2 * len(asked.prompts)) as progress:
        for server in servers.values():
            _ask(server, asked, asked.prompts[:concurrency], concurrency, lambda *_: None, tokens=WARM_TOKENS)
        before = [0, 0]

        def once(server: SglangServer, prompts: Sequence[Sequence[int]]) -> Timed:
            def done(rows: int, tokens: int) -> None:
                progress.update(before[0] + rows, before[1] + tokens, rejects={})

            timed = _ask(server, asked, prompts, concurrency, done)
            before[0], before[1] = before[0] + len(prompts), before[1] + timed.tokens
            return timed

        said = in_turn(servers, [asked.prompts[one:end] for one, end in pairwise(at)], once)
    faster = [b.tokens * a.seconds / (a.tokens * b.seconds) for a, b in zip(*said.values(), strict=True)]
    plainly, speculated = (
        Timed([answer for timed in its for answer in timed.answers], sum(timed.seconds for timed in its))
        for its in said.values()
    )
    part = _part(drafted, asked, speculated, concurrency) | {"speed_up": spread(faster), "rounds": count}
    return _part(plain, asked, plainly, concurrency), part, speculated


def _ask(
    server: SglangServer,
    asked: Asked,
    prompts: Sequence[Sequence[int]],
    concurrency: int,
    done: Callable[[int, int], None],
    *,
    tokens: int | None = None,
) -> Timed:
    return server.answer(
        prompts,
        max_new_tokens=tokens or asked.max_new_tokens,
        stop=asked.stop,
        stop_texts=asked.stop_texts,
        temperature=asked.temperature,
        concurrency=concurrency,
        done=done,
    )


def _part(server: SglangServer, asked: Asked, timed: Timed, concurrency: int) -> Part:
    return {
        **({"temperature": asked.temperature} if asked.temperature else {}),
        "prompts": len(timed.answers),
        "tokens": timed.tokens,
        "seconds": timed.seconds,
        "tokens_per_s": timed.tokens / timed.seconds,
        "concurrency": concurrency,
        "server": {
            "version": server.info.get("version"),
            "model": server.model_info["model_path"],
            "dtype": server.info.get("dtype"),
            "context_length": server.context_length,
            "device": server.info.get("device"),
            "max_running_requests": server.max_running_requests,
        },
        "outputs": [answer.tokens for answer in timed.answers],
    }


def counts(prompts: Sequence[Sequence[int]], answers: Sequence[ServedAnswer], steps: int) -> list[Counted]:
    """Answers as counted, each with a whole histogram."""
    return [
        Counted(len(prompt), len(answer.tokens), answer.histogram + [0] * (steps + 1 - len(answer.histogram)))
        for prompt, answer in zip(prompts, answers, strict=True)
    ]


def acceptance(
    server: SglangServer, prompts: Sequence[Sequence[int]], timed: Timed, steps: int, *, accepts_offline: bool
) -> dict[str, Any]:
    """The server's own counts. `BadInput` if they say that speculation was silently off."""
    answers = counts(prompts, timed.answers, steps)
    counted = figures.acceptance(answers)
    if counted.forwards == 0 and any(len(answer.tokens) > 1 for answer in timed.answers):
        raise BadInput(
            f"{server.url} says that it speculates but reports no spec_verify_ct: nothing was speculated; see its log"
        )
    if counted.forwards and not sum(counted.histogram[1:]) and accepts_offline:
        raise BadInput(
            f"{server.url} kept no draft in {counted.forwards} forwards (accept length 1.00), where the offline run of "
            "the same draft keeps some: it misreads the draft or has another; see its log and its draft path"
        )
    return {
        **counted.figures(),
        "interval": figures.interval(answers),
        "by_context": figures.by_context(answers),
        "num_steps": steps,
        "histograms": [answer.histogram for answer in answers],
    }
