"""A real SGLang server on this machine's CPU, started and stopped by us: for the demo and for tests.

On a GPU the server is SGLang's own image, started by Kubernetes or by hand; nothing here is used then.
"""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from spec.errors import BadInput, PassingFault
from spec.progress import Wait
from spec.server.client import Client, Fault

_STAGE = 100  # characters: SGLang prints all its arguments in one line
SERVE = Path(__file__).parents[2] / "images" / "server-cpu" / "serve"


class Starting:
    """A server that was started and may not be ready yet."""

    def __init__(self, what: str, url: str, log: Path, process: subprocess.Popen[bytes]):
        self._what, self._url, self._log, self._process = what, url, log, process

    def ready(self, patience: float = 600) -> str:
        """Its URL, once a token was generated.

        Raises `PassingFault` with the log's last line if the server ends, or is not ready within `patience` seconds.
        """
        with Wait(f"SGLang on CPU, {self._what}") as wait:
            asyncio.run(_wait_until_ready(self._url, self._process, self._log, patience, wait))
        return self._url


@contextmanager
def sglang_on_cpu(
    model: Path | str, draft: Path | str | None = None, *, log: Path, patience: float = 600, **options: Any
) -> Iterator[str]:
    """Serve `model`, with speculation if there is a `draft`; gives the URL once a token was generated.

    Options and errors as of `starting` and `Starting.ready`.
    """
    with starting(model, draft, log=log, **options) as server:
        yield server.ready(patience)


@contextmanager
def starting(
    model: Path | str,
    draft: Path | str | None = None,
    *,
    log: Path,
    port: int | None = None,
    flags: tuple[str, ...] = (),
    environment: dict[str, str] | None = None,
) -> Iterator[Starting]:
    """The same before it is ready, so that others can start meanwhile.

    `port` None takes a free one. `flags` go to `sglang.launch_server`.
    """
    if not SERVE.is_file():
        raise BadInput(f"{SERVE}: missing; the CPU server runs from a checkout of the project")
    port = port or free_port()
    settings = {"MODEL": str(model), "PORT": str(port), "PYTHON": sys.executable, **(environment or {})}
    if draft is not None:
        settings["DRAFT"] = str(draft)
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "wb") as output:
        server = subprocess.Popen(
            [str(SERVE), *flags],
            env={**os.environ, **settings},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that Ctrl-C reaches us first, and `_stop` reaches all of its processes
        )
    try:
        yield Starting("with the draft" if draft else "without a draft", f"http://127.0.0.1:{port}", log, server)
    finally:
        _stop(server)


def free_port(wanted: int | None = None) -> int:
    """`wanted` if nobody listens there, else any free port."""
    for port in (wanted, 0):
        if port is None:
            continue
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return probe.getsockname()[1]
    raise PassingFault("no free port on 127.0.0.1")


async def _wait_until_ready(
    url: str, server: subprocess.Popen[bytes], log: Path, patience: float, wait: Callable[[str], None]
) -> None:
    deadline = time.monotonic() + patience
    async with Client(url, patience=patience, timeout=patience) as client:
        while time.monotonic() < deadline:
            wait(_stage(log))
            if server.poll() is not None:
                raise PassingFault(f"the server ended with {server.returncode}: {_last_line(log)} (all of it: {log})")
            with suppress(Fault):  # not listening yet, or busy with its first token
                if (await client.send("GET", "/health_generate", timeout=25)).status == 200:
                    return
            await asyncio.sleep(0.5)
    raise PassingFault(f"the server generated nothing within {patience:.0f} s: {_last_line(log)} (all of it: {log})")


def _stage(log: Path) -> str:
    """What the server says that it is at: its last line with a time, without that."""
    said = [line.partition("] ")[2] for line in log.read_text(errors="replace").splitlines() if line.startswith("[2")]
    return said[-1][:_STAGE] if said else "importing"


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it printed nothing"


def _stop(server: subprocess.Popen[bytes]) -> None:
    """Let it finish what it answers, then end what is left of its processes."""
    if server.poll() is None:
        server.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired), Wait("SGLang to end"):
            server.wait(60)
    with suppress(ProcessLookupError):  # all of them are gone
        os.killpg(server.pid, signal.SIGKILL)
    server.wait()
