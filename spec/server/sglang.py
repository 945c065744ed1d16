"""What a running SGLang server says of itself, and the greedy answers and acceptance counts that it gives.

SGLang 0.5.23 counts for each request (managers/tokenizer_manager.py): `spec_verify_ct`, the forwards of the target;
`spec_correct_drafts_histogram`, how many of them kept 0, 1, .. drafts; `completion_tokens`, of which the first came
with the prompt. The fields are missing where there was no forward: without speculation, and for answers of one token.
"""

import contextlib
import http.client
import json
import random
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any

from spec.errors import BadInput, PassingFault
from spec.server.address import address_of

_TRIES = 4
_FOR_GOOD = {
    401: "it wants a key: set SGL_SPEC_API_KEY",
    403: "it forbids this: check SGL_SPEC_API_KEY and what stands between",
    404: "not an SGLang server, or an old one: check the URL",
}


@dataclass(frozen=True)
class ServedAnswer:
    tokens: list[int]
    histogram: list[int]  # forwards that kept n drafts; empty without speculation


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
        self.url, authorization = address_of(url)
        self.timeout = timeout  # seconds for one answer
        self.headers = {"Content-Type": "application/json", **authorization}
        self._direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        self.info = self._ask("/server_info")
        self.model_info = self._ask("/model_info")
        models = self._ask("/v1/models")["data"]
        self.context_length: int = models[0]["max_model_len"]

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
    ) -> Timed:
        """Greedy answers to prompts of token ids, `concurrency` at a time, from an empty prefix cache.

        `done(rows, tokens)` is called as answers come in.
        """
        self._generate(prompts[0], 4, stop)  # the first request of a server's life is slow
        self._flush_cache()
        tokens = 0
        begun = time.monotonic()
        pool = ThreadPoolExecutor(concurrency)
        try:
            answers = [pool.submit(self._generate, prompt, max_new_tokens, stop) for prompt in prompts]
            for rows, answer in enumerate(as_completed(answers), 1):
                tokens += len(answer.result().tokens)
                done(rows, tokens)
        finally:
            pool.shutdown(cancel_futures=True)  # after a fault nothing more is asked
        return Timed([answer.result() for answer in answers], time.monotonic() - begun)

    def gap(self, prefix: Sequence[int], one: int, other: int) -> float:
        """By how many nats two next tokens differ after `prefix`; infinite where one is not among the likeliest."""
        sampling = {"max_new_tokens": 1, "temperature": 0}
        wanted = {"input_ids": list(prefix), "sampling_params": sampling, "return_logprob": True, "top_logprobs_num": 8}
        likeliest = self._ask("/generate", wanted)["meta_info"]["output_top_logprobs"][0]
        found = {token: logprob for logprob, token, _ in likeliest}
        return abs(found[one] - found[other]) if one in found and other in found else float("inf")

    def _generate(self, prompt: Sequence[int], max_new_tokens: int, stop: frozenset[int]) -> ServedAnswer:
        sampling = {"max_new_tokens": max_new_tokens, "temperature": 0, "stop_token_ids": sorted(stop)}
        reply = self._ask("/generate", {"input_ids": list(prompt), "sampling_params": sampling})
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

    def _flush_cache(self) -> None:
        # Refused where others use the server too, or where it is not ours to flush; short prompts gain little from it.
        with contextlib.suppress(OSError, http.client.HTTPException):
            self._send("/flush_cache", {})

    def _ask(self, path: str, body: dict[str, Any] | None = None) -> Any:
        for attempt in range(_TRIES):
            try:
                return json.loads(self._send(path, body))
            except urllib.error.HTTPError as error:
                said = " ".join(error.read().decode(errors="replace").split())[:300]
                if error.code in _FOR_GOOD:
                    raise BadInput(f"{self.url}{path} answers {error.code}: {_FOR_GOOD[error.code]}") from error
                if error.code < 500 and error.code not in (408, 425, 429):
                    raise BadInput(f"{self.url}{path} answers {error.code}: {said}") from error
                fault: str = f"{error.code}: {said}"
            except ValueError as error:
                raise BadInput(f"{self.url}{path}: no JSON comes back, so it is no SGLang server ({error})") from error
            except TimeoutError:
                raise PassingFault(f"{self.url}{path} gave no answer within {self.timeout:.0f} s") from None
            except (OSError, http.client.HTTPException) as error:
                fault = str(getattr(error, "reason", error)) or type(error).__name__
            if attempt + 1 < _TRIES:
                time.sleep(2**attempt * random.uniform(0.5, 1.0))
        raise PassingFault(
            f"{self.url} does not answer ({fault}); what is measured is kept: run this again once the server is back"
        )

    def _send(self, path: str, body: dict[str, Any] | None) -> bytes:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, self.headers)
        with self._direct.open(request, timeout=self.timeout) as response:
            return response.read()
