import importlib.util
import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from spec import cli
from spec.storage import Store, open_store
from tests.s3 import bucket, s3_endpoint  # noqa: F401
from tests.stub_server import StubServer

TOOL = Path(__file__).parents[3] / "tools" / "filter_data.py"


@pytest.fixture
def stub() -> Iterator[StubServer]:
    with StubServer() as server:
        yield server


@pytest.fixture
def exact(stub: StubServer) -> StubServer:
    """The stand-in as SGLang is: it says which tokens it read and wrote."""
    stub.ids, stub.tokenizes = True, False
    return stub


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path / "run")


@pytest.fixture
def filter_data(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start tools/filter_data.py; what still runs at the end of the test is killed."""
    started = []

    def start(*options: Any) -> subprocess.Popen[str]:
        command = [sys.executable, str(TOOL), *map(str, options)]
        process = subprocess.Popen(
            command, cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def run(
    stub: StubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., tuple[int, str]]]:
    """Call the tool with `options` as its command line does; gives its exit code, and what it said."""
    loading = importlib.util.spec_from_file_location("filter_data", TOOL)
    tool = importlib.util.module_from_spec(loading)
    loading.loader.exec_module(tool)
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    monkeypatch.chdir(tmp_path)

    def call(*options: Any) -> tuple[int, str]:
        command = ["filter_data.py", "--base-url", stub.url, "--output", tmp_path / "run", "--parallel", 8, *options]
        monkeypatch.setattr(sys, "argv", [str(part) for part in command])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.run(tool.main)
        captured = capsys.readouterr()
        return ended.value.code or 0, captured.out + captured.err

    yield call
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def jsonl(tmp_path: Path) -> Callable[[list[Any]], Path]:
    """Write rows to a file of their own."""

    def write(rows: list[Any], name: str = "rows.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return write
