"""A stand-in for SGLang's OpenAI-compatible server: answers at once or after a while, and remembers what it was asked.

    with StubServer(delay=(0.2, 2.0)) as stub:
        ...  # stub.url, stub.asked, stub.mean_in_flight(...)

It runs in a thread of the test. The answer is a function of the messages, so a test knows what to expect (`answer_to`).
`behave(body)` may answer in its place: a `Reply`, an exception to drop the connection, or None for the usual.
With `ids` it gives token ids where it is asked for them, as SGLang 0.5.23 does: one a byte of a ChatML rendering.
Error bodies are those of SGLang 0.5.23.
"""

import asyncio
import hashlib
import json
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

Json = dict[str, Any]


@dataclass
class Asked:
    """One chat request: what came, and when it was in flight (seconds of `time.monotonic`)."""

    body: Json
    authorization: str
    started: float
    ended: float | None = None

    @property
    def messages(self) -> list[Json]:
        return self.body["messages"]


@dataclass
class Reply:
    """An answer that differs from the usual one."""

    content: str | None = None
    finish_reason: str = "stop"
    status: int = 200
    error: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    reasoning: str | None = None
    tool_calls: list[Json] | None = None
    written: str | None = None  # what the model wrote, where parsers took it apart; default: `content`
    counted: tuple[int, int] | None = None  # tokens of the prompt and the answer; default: words


END = 256  # the token that ends a turn


def prompt_ids(messages: list[Json], template: Json | None = None, tools: list[Json] | None = None) -> list[int]:
    """What the stub's model is given: an answer that stands in the history reads back as the tokens it was."""
    ids = [] if not template else written_ids(json.dumps(template, sort_keys=True))
    ids += written_ids(json.dumps(tools)) if tools else []
    for message in messages:
        content = message.get("content") or ""
        said = content if isinstance(content, str) else " ".join(part["text"] for part in content)
        calls = json.dumps(message["tool_calls"]) if message.get("tool_calls") else ""
        ids += [*written_ids(f"{message['role']}\n{said}{calls}"), END]
    return [*ids, *written_ids("assistant\n")]


def written_ids(text: str) -> list[int]:
    return list(text.encode())


def answer_to(messages: list[Json]) -> str:
    digest = hashlib.sha256(json.dumps(messages, sort_keys=True).encode()).hexdigest()
    return f"answer {digest[:16]}"


def too_long(tokens: int = 9000, context: int = 8192) -> Reply:
    error = f"The input ({tokens} tokens) is longer than the model's context length ({context} tokens)."
    return Reply(status=400, error=error)


class StubServer:
    def __init__(
        self,
        *,
        model: str = "stub-model",
        context: int | None = 8192,
        delay: tuple[float, float] = (0.0, 0.0),
        behave: Callable[[Json], Reply | Exception | None] = lambda body: None,
        ids: bool = False,
        usage: bool = True,
    ):
        self.model = model
        self.architectures = ["LlamaForCausalLM"]
        self.context = context
        self.delay = delay
        self.behave = behave
        self.ids = ids
        self.usage = usage
        self.tokenizes = True
        self.healthy = True
        self.asked: list[Asked] = []
        self.probes = 0
        self._random = random.Random(0)
        self._port = 0
        self._answering: set[asyncio.Transport] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def __enter__(self) -> "StubServer":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Listen; again on the same port after a `stop`."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(10)

    def stop(self) -> None:
        """Vanish: drop every connection without a word. A second call does nothing."""
        if self._loop.is_closed():
            return
        asyncio.run_coroutine_threadsafe(self._vanish(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def mean_in_flight(self, first: float, last: float) -> float:
        """Mean number of requests in flight between two fractions of the time from first request to last answer."""
        ended = [asked.ended or time.monotonic() for asked in self.asked]
        begin, end = min(asked.started for asked in self.asked), max(ended)
        left, right = begin + first * (end - begin), begin + last * (end - begin)
        shared = (min(stop, right) - max(asked.started, left) for asked, stop in zip(self.asked, ended, strict=True))
        return sum(max(0.0, seconds) for seconds in shared) / (right - left)

    async def _listen(self) -> None:
        app = web.Application(client_max_size=1 << 26)
        self.routes(app)
        self._runner = web.AppRunner(app, access_log=None, handler_cancellation=True)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self._port, backlog=1024)
        await site.start()
        self._port = self._runner.addresses[0][1]

    def routes(self, app: web.Application) -> None:
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/health", self._health)
        app.router.add_get("/server_info", self._server_info)
        app.router.add_get("/model_info", self._model_info)
        app.router.add_post("/v1/tokenize", self._tokenize)
        app.router.add_post("/v1/chat/completions", self._chat)

    async def _vanish(self) -> None:
        for transport in list(self._answering):
            transport.abort()
        await self._runner.cleanup()

    async def _models(self, _: web.Request) -> web.Response:
        card = {"id": self.model, "object": "model", "root": self.model, "max_model_len": self.context}
        return web.json_response({"object": "list", "data": [card]})

    async def _health(self, _: web.Request) -> web.Response:
        self.probes += 1
        return web.Response(status=200 if self.healthy else 503)

    async def _server_info(self, _: web.Request) -> web.Response:
        return web.json_response({"version": "0.5.23", "revision": None, "model_path": self.model})

    async def _model_info(self, _: web.Request) -> web.Response:
        return web.json_response({"model_path": self.model, "architectures": self.architectures})

    async def _tokenize(self, request: web.Request) -> web.Response:
        if not (self.ids and self.tokenizes):
            raise web.HTTPNotFound
        ids = written_ids((await request.json())["prompt"])
        return web.json_response({"tokens": ids, "count": len(ids), "max_model_len": self.context})

    async def _chat(self, request: web.Request) -> web.Response:
        asked = Asked(await request.json(), request.headers.get("Authorization", ""), time.monotonic())
        self.asked.append(asked)
        self._answering.add(request.transport)
        try:
            reply = self.behave(asked.body)
            await asyncio.sleep(self._random.uniform(*self.delay))
            if isinstance(reply, Exception):
                request.transport.abort()
                raise reply
            return self._response(asked, reply or Reply())
        finally:
            asked.ended = time.monotonic()
            self._answering.discard(request.transport)

    def _response(self, asked: Asked, reply: Reply) -> web.Response:
        if reply.status != 200:
            error = {"object": "error", "message": reply.error, "type": "BadRequestError", "code": reply.status}
            return web.json_response(error, status=reply.status, headers=reply.headers)
        content = answer_to(asked.messages) if reply.content is None else reply.content
        message = {"role": "assistant", "content": content, "reasoning_content": reply.reasoning}
        if reply.tool_calls is not None:
            message |= {"tool_calls": reply.tool_calls, "content": reply.content}
        choice = {"index": 0, "message": message, "finish_reason": reply.finish_reason, "matched_stop": None}
        if self.ids and asked.body.get("return_token_ids"):
            written = content if reply.written is None else reply.written
            its = (asked.body.get(name) for name in ("messages", "chat_template_kwargs", "tools"))
            choice["prompt_token_ids"] = prompt_ids(*its)
            choice["response_token_ids"] = written_ids(written) + [END] * (reply.finish_reason != "length")
            prompt, completion = len(choice["prompt_token_ids"]), len(choice["response_token_ids"])
        else:
            prompt = sum(len(message["content"].split()) for message in asked.messages)
            completion = len(content.split()) + 1
        prompt, completion = reply.counted or (prompt, completion)
        usage = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
        usage["reasoning_tokens"] = len(written_ids(reply.reasoning or ""))
        said = {"id": "1", "object": "chat.completion", "model": asked.body["model"], "choices": [choice]}
        return web.json_response(said | ({"usage": usage} if self.usage else {}), headers=reply.headers)
