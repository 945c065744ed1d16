"""What a running SGLang server says of itself, and the answers and acceptance counts that it gives.

SGLang 0.5.23 counts for each request (managers/tokenizer_manager.py): `spec_verify_ct`, the forwards of the target;
`spec_correct_drafts_histogram`, how many of them kept 0, 1, .. drafts; `completion_tokens`, of which the first came
with the prompt. The fields are missing where there was no forward: without speculation, and for answers of one token.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from spec.errors import BadInput, PassingFault
from spec.progress import Wait
from spec.server.client import Client, Fault

_PATIENCE = 15.0  # seconds: a figure that waited for its server for longer would be none


@dataclass(frozen=True)
class ServedAnswer:
    tokens: list[int]
    histogram: list[int]  # forwards that kept n drafts; empty without speculation
    arrivals: tuple[tuple[float, int], ...] = ()  # of each chunk: seconds after asking, and tokens there by then


@dataclass(frozen=True)
class Timed:
    answers: list[ServedAnswer]
    seconds: float  # from the first request to the last answer

    @property
    def tokens(self) -> int:
        return sum(len(answer.tokens) for answer in self.answers)


class SglangServer:
    """One server. Every method raises `PassingFault` where it does not answer, `BadInput` for what no retry mends."""

    def __init__(self, url: str, *, timeout: float = 600.0):
        """`timeout`: seconds for one answer."""
        self._client = Client(url, patience=_PATIENCE, timeout=timeout)
        self.url = self._client.url
        with Wait(f"{self.url} to say what it serves"):
            self.info = self._ask("/server_info")
            self.model_info = self._ask("/model_info")
            models = self._ask("/v1/models")["data"]
        self.context_length: int = models[0]["max_model_len"]

    @property
    def max_running_requests(self) -> int | None:
        """Requests that it runs at once, over all its copies; more wait in its queue. None where it does not say.

        `internal_states` has what came of the flag, for each copy of the model that `--dp-size` makes.
        """
        states = self.info.get("internal_states") or []
        each = [state.get("effective_max_running_requests_per_dp") for state in states]
        return sum(each) if each and all(each) else self.info.get("max_running_requests")

    def tokenize(self, text: str) -> list[int]:
        """`text` in the server's tokens, without special ones around it."""
        return self._ask("/tokenize", {"prompt": text, "add_special_tokens": False})["tokens"]

    def answer(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        stop: frozenset[int],
        concurrency: int,
        done: Callable[[int, int], None] = lambda rows, tokens: None,
        stream: bool = False,
        stop_texts: Sequence[str] = (),
        temperature: float = 0.0,
    ) -> Timed:
        """Answers to prompts of token ids, greedy or sampled at a temperature, `concurrency` at a time, from an empty
        prefix cache.

        `done(rows, tokens)` is called as answers come in. With `stream` each has its `arrivals`, and a fault on the way
        is a `PassingFault` at once: an answer that was asked for twice has no time.
        """
        sampling = _greedy(max_new_tokens, stop) | ({"stop": list(stop_texts)} if stop_texts else {})
        if temperature:  # and nothing of what the model's own settings would add
            sampling |= {"temperature": temperature, "top_p": 1.0, "top_k": -1, "min_p": 0.0}
        return asyncio.run(self._answer(prompts, sampling, concurrency, done, stream))

    async def _answer(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: dict[str, Any],
        concurrency: int,
        done: Callable[[int, int], None],
        stream: bool,
    ) -> Timed:
        ask = self._stream if stream else self._generate
        free, finished, tokens = asyncio.Semaphore(concurrency), 0, 0

        async def one(prompt: Sequence[int]) -> ServedAnswer:
            nonlocal finished, tokens
            async with free:
                answer = await ask(prompt, sampling)
            finished, tokens = finished + 1, tokens + len(answer.tokens)
            done(finished, tokens)
            return answer

        async with self._client:
            # The first request of a server's life is slow.
            await self._generate(prompts[0], sampling | {"max_new_tokens": 4})
            await self._flush_cache()
            begun = time.monotonic()
            try:
                async with asyncio.TaskGroup() as group:  # after a fault nothing more is asked
                    answers = [group.create_task(one(prompt)) for prompt in prompts]
            except ExceptionGroup as faults:
                raise faults.exceptions[0] from None
            return Timed([answer.result() for answer in answers], time.monotonic() - begun)

    def gap(self, prefix: Sequence[int], one: int, other: int) -> float:
        """By how many nats two next tokens differ after `prefix`; infinite where one is not among the likeliest."""
        sampling = {"max_new_tokens": 1, "temperature": 0}
        wanted = {"input_ids": list(prefix), "sampling_params": sampling, "return_logprob": True, "top_logprobs_num": 8}
        likeliest = self._ask("/generate", wanted)["meta_info"]["output_top_logprobs"][0]
        found = {token: logprob for logprob, token, _ in likeliest}
        return abs(found[one] - found[other]) if one in found and other in found else float("inf")

    async def _generate(self, prompt: Sequence[int], sampling: dict[str, Any]) -> ServedAnswer:
        wanted = {"input_ids": list(prompt), "sampling_params": sampling}
        return self._read(await self._client.ask("/generate", wanted))

    async def _stream(self, prompt: Sequence[int], sampling: dict[str, Any]) -> ServedAnswer:
        wanted = {"input_ids": list(prompt), "sampling_params": sampling, "stream": True}
        reply: dict[str, Any] = {}
        arrivals: list[tuple[float, int]] = []
        try:
            async for seconds, reply in self._client.stream("/generate", wanted):
                if "error" in reply:
                    raise Fault(str(reply["error"]))
                arrivals.append((seconds, reply["meta_info"]["completion_tokens"]))
            if not arrivals or not reply["meta_info"]["finish_reason"]:
                raise Fault("the answer broke off")
        except Fault as fault:
            raise PassingFault(f"{self.url}: {fault}; what is measured is kept: run this again") from fault
        answer = self._read(reply)
        if len(answer.tokens) != arrivals[-1][1]:
            raise BadInput(f"{self.url} streams each chunk alone: serve without --incremental-streaming-output")
        return replace(answer, arrivals=tuple(arrivals))

    def _read(self, reply: dict[str, Any]) -> ServedAnswer:
        meta = reply["meta_info"]
        if meta["finish_reason"]["type"] == "abort":
            raise PassingFault(
                f"{self.url}: aborted a request: {meta['finish_reason'].get('message', 'no reason given')}"
            )
        histogram = meta.get("spec_correct_drafts_histogram") or []
        if sum(histogram) != meta.get("spec_verify_ct", 0):
            raise BadInput(f"{self.url}: its histogram of kept drafts does not add up to spec_verify_ct; it is no "
                           f"SGLang 0.5.23 but {self.info.get('version')}")  # fmt: skip
        return ServedAnswer(reply["output_ids"], histogram)

    async def _flush_cache(self) -> None:
        # Refused where others use the server too, or where it is not ours to flush; short prompts gain little from it.
        with contextlib.suppress(Fault):
            await self._client.send("POST", "/flush_cache", {})

    def _ask(self, path: str, body: dict[str, Any] | None = None) -> Any:
        async def ask() -> Any:
            async with self._client as client:
                return await client.ask(path, body)

        return asyncio.run(ask())


def _greedy(max_new_tokens: int, stop: frozenset[int]) -> dict[str, Any]:
    return {"max_new_tokens": max_new_tokens, "temperature": 0, "stop_token_ids": sorted(stop)}
