"""One client of a running server, for whoever asks it: how it is reached, what its refusals mean, how long it is borne.

aiohttp, since the filter keeps thousands of requests in flight and wants a say in their sockets.
"""

import asyncio
import itertools
import json
import random
import socket
import time
from collections.abc import AsyncIterator
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple, NoReturn

import aiohttp

from spec.errors import BadInput, PassingFault
from spec.server.address import address_of

_FOR_GOOD = {
    401: "it wants a key: set SGL_SPEC_API_KEY",
    403: "it forbids this: check SGL_SPEC_API_KEY and what stands between",
    404: "no such path or model: check --base-url and what is served there",
    405: "not such a server: check --base-url",
}
_PASSING = {408, 409, 425, 429}
_LONGEST_PAUSE = 30.0  # seconds between two tries


class Fault(Exception):
    """No answer this time; another try may get one."""

    def __init__(self, what: str, *, after: float = 0.0, maybe_the_row: bool = False):
        super().__init__(what)
        self.after = after  # seconds that the server asks to be left alone
        self.maybe_the_row = maybe_the_row  # the server lives, and fails on what was asked


class Reply(NamedTuple):
    status: int
    headers: Any
    body: bytes

    @property
    def said(self) -> str:
        """What an error's body says, in SGLang's form or OpenAI's."""
        try:
            told = json.loads(self.body)
            told = told.get("error", told)
            text = told if isinstance(told, str) else told["message"]
        except (ValueError, LookupError, TypeError, AttributeError):
            text = self.body.decode(errors="replace")
        return " ".join(str(text).split())[:300] or "no word"


class Client:
    """Use as `async with Client(url) as client`, one event loop at a time.

    `patience`: seconds without any answer, over all requests together, after which `pause` gives up. `timeout`: seconds
    for one answer. Raises `BadInput` for a URL or a key that cannot be one.
    """

    def __init__(self, url: str, *, key: str | None = None, patience: float, timeout: float):
        self.url, self._headers = address_of(url, key)
        self.patience, self.timeout = patience, timeout
        self.answered_at = time.monotonic()
        self._failing_since: float | None = None
        self._proven: set[str] = set()  # paths that have answered: what looks wrong there is a fault on the way

    async def __aenter__(self) -> "Client":
        connector = aiohttp.TCPConnector(limit=0, socket_factory=_watched_socket)
        self.session = aiohttp.ClientSession(connector=connector, headers=self._headers)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.session.close()

    async def ask(self, path: str, body: Any = None) -> Any:
        """The JSON that `path` answers, asked again while it fails for what may pass.

        Raises `PassingFault` once patience is over, and `BadInput` for what no retry mends.
        """
        for attempt in itertools.count():
            try:
                reply = await self.send("GET" if body is None else "POST", path, body)
                self.check(path, reply)
            except Fault as fault:
                await self.pause(fault, attempt)
                continue
            self.answered()
            if reply.status != 200:
                raise BadInput(f"{self.url}{path} answers {reply.status}: {reply.said}")
            try:
                return json.loads(reply.body)
            except ValueError as error:
                raise BadInput(f"{self.url}{path}: no JSON comes back, so it is no SGLang server ({error})") from error
        raise AssertionError("unreachable")

    async def send(self, method: str, path: str, body: Any = None, timeout: float | None = None) -> Reply:
        """One request, whatever the status. Raises `Fault` where none comes back."""
        seconds = timeout or self.timeout
        limit = aiohttp.ClientTimeout(total=seconds, sock_connect=10)
        try:
            async with self.session.request(method, self.url + path, json=body, timeout=limit) as response:
                return Reply(response.status, response.headers, await response.read())
        except TimeoutError as error:
            raise Fault(f"no answer within {seconds:.0f} s", maybe_the_row=True) from error
        except aiohttp.ClientSSLError as error:
            raise BadInput(f"{self.url}: no trusted TLS connection: {error}; check --base-url") from error
        except (aiohttp.ClientError, OSError) as error:
            raise Fault(f"{type(error).__name__}: {error}") from error

    async def stream(self, path: str, body: Any) -> AsyncIterator[tuple[float, Any]]:
        """The JSON events of `path` as they come, each with the seconds since it was asked for.

        Never asked again: what was timed would be nobody's. Raises `Fault` where the stream breaks off.
        """
        begun = time.monotonic()
        limit = aiohttp.ClientTimeout(total=self.timeout, sock_connect=10)
        try:
            async with self.session.post(self.url + path, json=body, timeout=limit) as response:
                if response.status != 200:
                    reply = Reply(response.status, response.headers, await response.read())
                    self.check(path, reply)
                    raise BadInput(f"{self.url}{path} answers {reply.status}: {reply.said}")
                rest = b""
                async for data in response.content.iter_any():
                    seconds = time.monotonic() - begun
                    *events, rest = (rest + data).split(b"\n\n")
                    for event in events:
                        said = event.removeprefix(b"data: ")
                        if said != b"[DONE]":
                            yield seconds, json.loads(said)
        except TimeoutError as error:
            raise Fault(f"no whole answer within {self.timeout:.0f} s") from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise Fault(f"{type(error).__name__}: {error}") from error

    def check(self, path: str, reply: Reply) -> None:
        """Raises `BadInput` for a status that no retry mends, `Fault` for one that may pass, nothing for any other."""
        status = reply.status
        if status == 200:
            self._proven.add(path)
        elif status in _FOR_GOOD and path not in self._proven:
            raise BadInput(f"{self.url}{path} answers {status} ({reply.said}): {_FOR_GOOD[status]}")
        elif status in _PASSING or status in _FOR_GOOD or status >= 500:
            raise Fault(f"{status} ({reply.said})", after=_retry_after(reply.headers), maybe_the_row=status == 500)

    async def pause(self, fault: Fault, attempt: int) -> None:
        """Wait before another try, longer each time and never all at once; give up when patience is over."""
        now = time.monotonic()
        if self._failing_since is None:
            self._failing_since = now
        if now - self._failing_since > self.patience:
            self.give_up(str(fault))
        longest = min(_LONGEST_PAUSE, 0.5 * 2 ** min(attempt, 10), self.patience / 4)
        await asyncio.sleep(min(fault.after, self.patience) + longest * random.uniform(0.5, 1.0))

    def answered(self) -> None:
        self.answered_at = time.monotonic()
        self._failing_since = None

    def give_up(self, last: str) -> NoReturn:
        raise PassingFault(
            f"{self.url} gave no answer for {self.patience:.0f} s (last: {last}); what is finished is kept: "
            f"run this again once the server is back"
        )


def _retry_after(headers: Any) -> float:
    """Seconds that a Retry-After header asks for, as a number or a date; 0 where there is none."""
    asked = headers.get("Retry-After", "")
    try:
        seconds = float(asked) if asked.strip().isdecimal() else parsedate_to_datetime(asked).timestamp() - time.time()
    except (ValueError, TypeError):
        return 0.0
    return max(seconds, 0.0)


def _watched_socket(address: tuple[Any, ...]) -> socket.socket:
    """A socket that notices within about a minute that the other machine is gone, instead of two hours."""
    family, kind, protocol, _, _ = address
    made = socket.socket(family, kind, protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, option):  # macOS names the first one otherwise
            made.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
    made.setblocking(False)
    return made
