"""The target behind its OpenAI-compatible server: one chat completion at a time, until it is answered or refused.

What SGLang 0.5.23 does, and what is made of it here:
- it answers under any `model` name, so the name is compared with `/v1/models`, also after each lost connection;
- a prompt that does not fit is 400, "The input (N tokens) is longer than the model's context length" or "Requested
  token count exceeds the model's maximum context length" (prompt and `max_tokens` together);
- a prompt that its chat template refuses is 400 too; a full queue is 503; an aborted request is 200 with
  `finish_reason` "abort", and no answer;
- `usage` has `prompt_tokens` and `completion_tokens` (the end-of-turn token included), and `reasoning_tokens` where it
  runs with a reasoning parser;
- with `return_token_ids` each choice has `prompt_token_ids` and `response_token_ids`, as the model read and wrote them,
  whatever its parsers made of the text. Other servers ignore the field, or refuse it by name.
"""

import asyncio
import itertools
import json
import math
import sys
import time
from dataclasses import asdict, dataclass
from typing import Any, NoReturn

from spec.conversations import token_ids
from spec.conversations.answer import Answer, read_answer
from spec.conversations.day import days_of
from spec.conversations.rows import Message, Reject
from spec.errors import BadInput
from spec.server.client import Client, Fault, Reply

_TOO_LONG = ("context length", "maximum allowed length", "too long")
_TRIES = 4  # of a row that the server fails on, before asking whether it fails on others too
_SILENCE = 15.0  # seconds without any answer before asking whether the server is alive


@dataclass(frozen=True)
class Sampling:
    """How the target answers; recorded in `run.json`. At temperature 0 it is its greedy answer.

    `seed` decides the samples only where the server runs with `--enable-deterministic-inference`. With
    `keep_truncated` an answer that reached `max_tokens` is kept as far as it goes; it is its row's last turn.
    """

    temperature: float = 0.0
    max_tokens: int = 2048
    seed: int | None = None
    chat_template_kwargs: dict[str, Any] | list[dict[str, Any]] | None = None  # several: each row once for each
    keep_truncated: bool = False
    samples: int = 1  # answers to each prompt, each a row of its own
    turns: str | int = "all"  # answers to ask for of a row with tools: all, or the last ones
    keep_sampling: bool = False  # a request's own parameters in place of these

    def __post_init__(self) -> None:
        if not math.isfinite(self.temperature):
            raise BadInput(f"--temperature {self.temperature}: a finite number is wanted")
        if self.samples > 1 and self.temperature == 0:
            raise BadInput(f"--samples {self.samples} at temperature 0 are equal answers; set --temperature above 0")

    @property
    def variants(self) -> list[dict[str, Any] | None]:
        asked = self.chat_template_kwargs
        return [*asked] if isinstance(asked, list) else [asked]

    @property
    def lineage(self) -> dict[str, Any]:
        """What `run.json` records: as it was before there were samples, where there is one.

        `turns` stands with what else decides about rows with tools, where there are any.
        """
        later = {"samples": 1, "turns": self.turns, "keep_sampling": False}
        return {name: value for name, value in asdict(self).items() if name not in later or later[name] != value}

    def of_request(self, own: dict[str, Any], wanted: dict[str, Any], sample: int) -> dict[str, Any]:
        """`wanted` with a request's own parameters: `max_tokens` at most ours, its template's settings below ours."""
        both = {**wanted, **own}
        if isinstance(own.get("max_tokens"), int):
            both["max_tokens"] = min(own["max_tokens"], wanted["max_tokens"])
        if isinstance(own.get("seed"), int):
            both["seed"] = own["seed"] + sample
        if isinstance(own.get("chat_template_kwargs"), dict):
            both["chat_template_kwargs"] = own["chat_template_kwargs"] | wanted.get("chat_template_kwargs", {})
        return both


class Server:
    """Use as `async with Server(...) as server: await server.connect()`.

    Any method raises `PassingFault` once nothing was answered for `patience` seconds, and `BadInput` for what no retry
    mends (wrong URL, wrong model, no permission).
    """

    def __init__(
        self,
        base_url: str,
        sampling: Sampling,
        *,
        model: str | None = None,
        patience: float = 300.0,
        request_timeout: float = 1800.0,
        api_key: str | None = None,
    ):
        self._client = Client(base_url, key=api_key, patience=patience, timeout=request_timeout)
        self.url = self._client.url
        self.sampling = sampling
        self.model = model  # None until `connect` has asked
        self.tokenizer: str | None = None  # what `connect` found it to be known by
        self.in_flight = 0
        self._ask_ids = True  # until it refuses the field
        self._told_no_ids = False

    async def __aenter__(self) -> "Server":
        await self._client.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.__aexit__()

    async def connect(self) -> tuple[dict[str, Any], str | None]:
        """Wait for the server; gives the target it serves, `{"model", "revision"}`, and its name and version."""
        for attempt in itertools.count():
            try:
                context = await self._check_model()
                break
            except Fault as fault:
                await self._client.pause(fault, attempt)
        if context is not None and self.sampling.max_tokens >= context:
            raise BadInput(
                f"--max-tokens {self.sampling.max_tokens} leaves no room for a prompt: {self.url} serves {self.model} "
                f"with a context of {context} tokens; lower --max-tokens, or serve with a longer context"
            )
        self._client.answered()
        architectures = (await self._told("/model_info")).get("architectures")
        if architectures == ["Llama4ForCausalLM"]:
            raise BadInput(
                f"{self.url} serves {self.model} as text alone, and SGLang 0.5.23 answers wrongly then (it turns the "
                "halves of each head, and only the whole model's loader orders the weights for that): serve the whole "
                "checkpoint, Llama4ForConditionalGeneration"
            )
        self.tokenizer = await self._tokenizer()
        info = await self._told("/server_info")
        version = info.get("version")
        target = {"model": self.model, "revision": info.get("revision")}
        return target, f"sglang {version}" if version else None

    async def chat(
        self,
        messages: list[Message],
        *,
        variant: int = 0,
        sample: int = 0,
        tools: list[Any] | None = None,
        own: dict[str, Any] | None = None,
    ) -> Answer:
        """The target's answer to `messages`. Raises `Reject` where the server has none for them.

        Asked with the template settings of a variant, with tools that it may call, and with a request's `own`
        parameters; a seed is another one for each sample.
        """
        if tools and self._told_no_ids:
            raise _no_token_ids()
        own_faults = 0
        for attempt in itertools.count():
            try:
                if attempt:
                    await self._check_model()  # who answers now need not be who answered before
                answer = await self._complete(messages, self.sampling.max_tokens, variant, sample, tools, own)
            except Fault as fault:
                own_faults += fault.maybe_the_row
                if own_faults >= _TRIES and await self._answers_others():
                    raise Reject("server_error", str(fault)) from fault
                await self._client.pause(fault, attempt)
            except Reject:
                self._client.answered()
                raise
            else:
                self._client.answered()
                return answer
        raise AssertionError("unreachable")

    async def watch(self) -> NoReturn:
        """Tell a server that is slow from one that hangs: it never returns, and raises `PassingFault` for the latter.

        Without it, requests to a server that has stopped would wait for `request_timeout` each.
        """
        alive_at = time.monotonic()
        pause = min(_SILENCE, self._client.patience / 4)
        while True:
            await asyncio.sleep(pause)
            if time.monotonic() - self._client.answered_at < pause or await self._healthy():
                alive_at = time.monotonic()
            elif time.monotonic() - alive_at > self._client.patience:
                self._client.give_up("it answers neither requests nor /health")

    async def _complete(
        self,
        messages: list[Message],
        max_tokens: int,
        variant: int = 0,
        sample: int = 0,
        tools: list[Any] | None = None,
        own: dict[str, Any] | None = None,
    ) -> Answer:
        sampling = self.sampling
        wanted: dict[str, Any] = {
            "model": self.model,
            "messages": messages,
            "temperature": sampling.temperature,
            "max_tokens": max_tokens,
        }
        if sampling.seed is not None:
            wanted["seed"] = sampling.seed + sample
        if (template := sampling.variants[variant]) is not None:
            wanted["chat_template_kwargs"] = template
        if tools:
            wanted |= {"tools": tools, "tool_choice": "auto"}
        if own:
            wanted = sampling.of_request(own, wanted, sample)
        if self._ask_ids:
            wanted["return_token_ids"] = True
        self.in_flight += 1
        begun = time.monotonic()
        try:
            reply = await self._client.send("POST", "/v1/chat/completions", wanted)
        finally:
            self.in_flight -= 1
        if reply.status in (400, 422) and self._ask_ids and "return_token_ids" in reply.said:
            self._ask_ids = False
            return await self._complete(messages, max_tokens, variant, sample, tools, own)
        self._check("/v1/chat/completions", reply)
        try:
            days = days_of(reply.headers.get("Date"), time.monotonic() - begun)
            answer = read_answer(reply.body, self.url, days)
        except ValueError as error:
            raise Fault(f"200 without a chat completion: {reply.body[:200]!r}", maybe_the_row=True) from error
        if answer.finish_reason == "abort":
            raise Fault("the server aborted the request")
        if answer.response_ids is None and not self._told_no_ids:
            self._told_no_ids = True
            print(
                f"{self.url} gives no token ids (SGLang 0.5.23 does): its answers are kept as text, and preparing "
                f"renders them again with the chat template",
                file=sys.stderr,
            )
        if answer.response_ids is None and (tools or answer.message.get("tool_calls")):
            raise _no_token_ids()
        return answer

    def _check(self, path: str, reply: Reply) -> None:
        """`Reject` for what the server refuses in a row; other trouble as `Client.check` has it."""
        self._client.check(path, reply)
        if reply.status == 200:
            return
        if reply.status == 413 or any(words in reply.said.lower() for words in _TOO_LONG):
            raise Reject("too_long", reply.said)
        raise Reject("refused_by_server", f"{reply.status}: {reply.said}")

    async def _check_model(self) -> int | None:
        """Compare the served model with ours, or take it as ours; gives its context length where the server says."""
        reply = await self._client.send("GET", "/v1/models", timeout=30)
        try:
            self._check("/v1/models", reply)
        except Reject as refused:
            raise BadInput(f"{self.url}/v1/models: {refused}; is it a chat server?") from refused
        try:
            served = {card["id"]: card.get("max_model_len") for card in json.loads(reply.body)["data"]}
            first = next(iter(served))
        except (ValueError, LookupError, TypeError, AttributeError, StopIteration) as error:
            raise BadInput(f"{self.url}/v1/models names no model; is it a chat server? check --base-url") from error
        if self.model is None:
            self.model = first
        if self.model not in served:
            raise BadInput(
                f"{self.url} serves {', '.join(served)}, not {self.model}; serve that one, or name what is served"
            )
        return served[self.model]

    async def _told(self, path: str) -> dict[str, Any]:
        """What SGLang says of its settings (`/server_info`) or its model (`/model_info`); {} from other servers."""
        try:
            status, _, body = await self._client.send("GET", path, timeout=30)
            info = json.loads(body) if status == 200 else {}
        except (Fault, ValueError):
            return {}
        return info if isinstance(info, dict) else {}

    async def _tokenizer(self) -> str | None:
        """What the server's tokenizer is known by; None from servers that do not tokenise on demand."""
        asked = {"model": self.model, "prompt": token_ids.PROBE, "add_special_tokens": False}
        try:
            status, _, body = await self._client.send("POST", "/v1/tokenize", asked, timeout=30)
            tokens = json.loads(body)["tokens"] if status == 200 else None
            return None if tokens is None else token_ids.fingerprint([int(token) for token in tokens])
        except (Fault, ValueError, LookupError, TypeError):
            return None

    async def _answers_others(self) -> bool:
        """Whether the server answers the plainest request, so that a failure is the row's own."""
        try:
            await self._complete([{"role": "user", "content": "Hi"}], 1)
        except (Fault, Reject):
            return False
        return True

    async def _healthy(self) -> bool:
        try:
            status, _, _ = await self._client.send("GET", "/health", timeout=25)  # SGLang takes up to 20 s
        except Fault:
            return False
        return status in (200, 404)  # 404: it answers, and has no such path


def _no_token_ids() -> Reject:
    """What a template makes of tools and calls is the server's alone to know."""
    return Reject("no_token_ids", "tools or calls, and a server that does not say which tokens it read and wrote")
