"""A stand-in for SGLang's own `/generate`, with speculation or without: it answers as fast as it is told to.

An answer is always `max_new_tokens` long, the same with drafts and without. With `drafts` a round keeps `kept` of them
and lasts `round_seconds`; without, it is one token. Streamed answers come a round at a time, as SGLang's do: each chunk
has all tokens so far.
"""

import asyncio
import json
import time
from collections.abc import Iterator
from typing import Any

from aiohttp import web

from spec.methods.method import ADAPTIVE, Drafts
from tests.stub_server import Asked, Json, StubServer

ADAPTS_TO = 5  # drafts a round, where their number is adaptive


class GeneratingStub(StubServer):
    def __init__(
        self, *, drafts: Drafts = 0, kept: int = 0, round_seconds: float = 0.0, most: int = 16, **options: Any
    ):
        super().__init__(**options, ids=True)
        self.drafts = ADAPTS_TO if drafts == ADAPTIVE else drafts
        self.kept, self.round_seconds = kept, round_seconds
        self.shift = 0  # of all tokens: other weights
        self.info: Json = {"max_running_requests": most}
        if drafts:
            self.info |= {
                "speculative_algorithm": "EAGLE3",
                "speculative_num_steps": self.drafts,
                "speculative_eagle_topk": 1,
                "speculative_num_draft_tokens": self.drafts + 1,
                "internal_states": [{"speculative_adaptive": drafts == ADAPTIVE}],
            }

    def routes(self, app: web.Application) -> None:
        super().routes(app)
        app.router.add_post("/generate", self._generate)
        app.router.add_post("/flush_cache", self._flush)

    async def _server_info(self, request: web.Request) -> web.Response:
        return web.json_response({"version": "0.5.23", "model_path": self.model, "device": "cpu"} | self.info)

    async def _flush(self, _: web.Request) -> web.Response:
        return web.Response()

    async def _generate(self, request: web.Request) -> web.StreamResponse:
        asked = Asked(await request.json(), request.headers.get("Authorization", ""), time.monotonic())
        self.asked.append(asked)
        try:
            reply = self.behave(asked.body)
            if isinstance(reply, Exception):
                request.transport.abort()
                raise reply
            if reply is not None:
                return self._response(asked, reply)
            return await self._answer(request, asked.body)
        finally:
            asked.ended = time.monotonic()

    async def _answer(self, request: web.Request, body: Json) -> web.StreamResponse:
        if not body.get("stream"):
            replies = list(self._rounds(body))
            await asyncio.sleep(len(replies) * self.round_seconds)
            return web.json_response(replies[-1])
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for reply in self._rounds(body):
            await asyncio.sleep(self.round_seconds)
            await response.write(b"data: " + json.dumps(reply).encode() + b"\n\n")
        await response.write(b"data: [DONE]\n\n")
        return response

    def _rounds(self, body: Json) -> Iterator[Json]:
        """What is known of an answer after the prompt's forward and after each round."""
        wanted = body["sampling_params"]["max_new_tokens"]
        tokens = [(sum(body["input_ids"]) + self.shift + at) % 250 for at in range(wanted)]
        histogram, at = [0] * (self.drafts + 1), 1
        while True:
            meta: Json = {"finish_reason": {"type": "length"} if at >= wanted else None, "completion_tokens": at}
            if self.drafts and sum(histogram):
                meta |= {"spec_verify_ct": sum(histogram), "spec_correct_drafts_histogram": [*histogram]}
            yield {"output_ids": tokens[:at], "meta_info": meta}
            if at >= wanted:
                return
            histogram[self.kept] += 1
            at = min(at + self.kept + 1, wanted)
