import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.s3 import bucket, s3_endpoint  # noqa: F401
from tests.stub_server import StubServer

TOOL = Path(__file__).parents[3] / "tools" / "filter_data.py"


@pytest.fixture
def stub() -> Iterator[StubServer]:
    with StubServer() as server:
        yield server


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
def jsonl(tmp_path: Path) -> Callable[[list[Any]], Path]:
    """Write rows to a file of their own."""

    def write(rows: list[Any], name: str = "rows.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return write
