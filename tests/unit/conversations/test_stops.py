"""The tool as a process: killed, stopped, left by its server, begun again. No row is lost, doubled or asked twice."""

import asyncio
import json
import os
import pty
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from spec.conversations import token_ids
from spec.conversations.filter import filter_shard
from spec.conversations.ids import Shard
from spec.conversations.server import Sampling, Server
from spec.conversations.shards import read_answers, read_counts
from spec.conversations.sources import open_source
from spec.costs.budget import Budget, write_budget
from spec.costs.records import Record, write
from spec.errors import BadInput
from spec.storage import open_store
from tests.stub_server import END, StubServer, prompt_ids, written_ids
from tests.unit.conversations.conftest import TOOL
from tests.waiting import wait_for

# 300 rows of 120 contents, in an order that scatters the duplicates.
PROMPTS = [f"question {number % 120}" for number in range(300)]
random.Random(0).shuffle(PROMPTS)
ROWS = [{"prompt": prompt} for prompt in PROMPTS]


@pytest.fixture
def slow_stub():
    """Answers take 0 to 0.3 s, so that they come out of order and a kill hits many in flight."""
    with StubServer(delay=(0.0, 0.3), ids=True) as server:
        yield server


def finished(store):
    """Whole rows in the run's parts: the prompt of each, with its id."""
    found = {}
    for entry in store.list("answers"):
        if "/part-" in entry.key:
            for line in store.read(entry.key).split(b"\n")[:-1]:
                row = json.loads(line)
                assert row["id"] not in found
                found[row["id"]] = row["messages"][0]["content"]
    return found


def check_nothing_finished_was_asked(stub, since, before):
    """What was asked from request `since` on are rows that were not among the finished ones of `before`."""
    asked = Counter(request.messages[0]["content"] for request in stub.asked[since:])
    left = Counter(PROMPTS)
    left.subtract(before.values())
    assert all(asked[prompt] <= left[prompt] for prompt in asked), asked - left


def check_every_row_once(store):
    answers = list(read_answers(store))
    assert len({row["id"] for row in answers}) == 300
    assert Counter(row["messages"][0]["content"] for row in answers) == Counter(PROMPTS)
    counts = read_counts(store)
    assert counts["rows"] == counts["exact"] == 300
    for row in answers:
        (turn,), (asked, said) = row["turns"], row["messages"]
        assert token_ids.decode(turn["prompt_ids"]).tolist() == prompt_ids([asked])
        assert token_ids.decode(turn["response_ids"]).tolist() == [*written_ids(said["content"]), END]


def test_killed_at_any_moment_and_begun_again(filter_data, slow_stub, jsonl, tmp_path):
    options = ("--dataset-name", jsonl(ROWS), "--base-url", slow_stub.url, "--output", "run", "--parallel", 16)
    store = open_store(tmp_path / "run")
    dice = random.Random(1)
    for _ in range(3):
        since, before = len(slow_stub.asked), finished(store)
        process = filter_data(*options)
        after = since + dice.randint(20, 110)
        wait_for(lambda count=after: len(slow_stub.asked) >= count, process)
        process.kill()
        process.wait()
        check_nothing_finished_was_asked(slow_stub, since, before)
        assert before.items() <= finished(store).items()
    since, before = len(slow_stub.asked), finished(store)
    assert 0 < len(before) < 300
    process = filter_data(*options)
    said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    check_nothing_finished_was_asked(slow_stub, since, before)
    assert len(slow_stub.asked) - since == 300 - len(before)
    check_every_row_once(store)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopped_it_saves_and_ends_with_143(filter_data, slow_stub, jsonl, tmp_path, number):
    options = ("--dataset-name", jsonl(ROWS), "--base-url", slow_stub.url, "--output", "run", "--parallel", 16)
    store = open_store(tmp_path / "run")
    process = filter_data(*options)
    wait_for(lambda: len(slow_stub.asked) >= 60, process)
    process.send_signal(number)
    _, said = process.communicate(timeout=20)
    assert process.returncode == 143
    assert said.splitlines()[-1].startswith("error: stopped; what is finished is kept")
    before = finished(store)
    assert len(before) >= 60 - 16
    since = len(slow_stub.asked)
    process = filter_data(*options)
    assert process.wait(120) == 0
    assert len(slow_stub.asked) - since == 300 - len(before)
    check_every_row_once(store)


def test_at_the_cap_of_gpu_hours_it_keeps_its_answers_and_goes_on_with_a_higher_one(
    slow_stub, jsonl, tmp_path, monkeypatch
):
    monkeypatch.setattr("spec.conversations.filter._CAP_SECONDS", 0.5)
    store, source = open_store(tmp_path / "run"), open_source(str(jsonl(ROWS)))
    write(store, Record(step="serve", pod="s", gpus=8, began=0, seen=0, of_cluster=True, lives_on=True))

    def filtered():
        server = Server(slow_stub.url, Sampling(max_tokens=64))
        return asyncio.run(filter_shard(store, source, server, Shard(0, 1), parallel=4))

    write_budget(store, Budget(max_gpu_hours=1))
    with pytest.raises(BadInput, match=r"^max-gpu-hours: .* are used of 1; \d+ answers of shard 0/1 are kept; submit"):
        filtered()
    since, before = len(slow_stub.asked), finished(store)
    assert 0 < len(before) < 300
    write_budget(store, Budget())
    filtered()
    assert len(slow_stub.asked) - since == 300 - len(before)
    check_every_row_once(store)


def test_in_an_object_store_a_stop_saves_and_a_kill_costs_seconds(filter_data, slow_stub, jsonl, bucket):
    url = f"s3://{bucket}/runs/1"
    options = ("--dataset-name", jsonl(ROWS), "--base-url", slow_stub.url, "--output", url, "--parallel", 4)
    store = open_store(url)
    process = filter_data(*options)
    wait_for(lambda: len(finished(store)) > 10, process)  # the first flush, after five seconds
    process.kill()
    process.wait()
    since, before = len(slow_stub.asked), finished(store)
    process = filter_data(*options)
    wait_for(lambda: len(slow_stub.asked) >= since + 20, process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 143
    check_nothing_finished_was_asked(slow_stub, since, before)
    since, before = len(slow_stub.asked), finished(store)
    assert since - len(before) <= 4 + 5 / 0.15 * 4 * 2  # in flight at two ends, and five seconds' worth
    process = filter_data(*options)
    assert process.wait(120) == 0
    assert len(slow_stub.asked) - since == 300 - len(before)
    check_every_row_once(store)


def test_a_server_that_is_gone_for_good_ends_with_75_and_loses_nothing(filter_data, slow_stub, jsonl, tmp_path):
    options = ("--dataset-name", jsonl(ROWS), "--base-url", slow_stub.url, "--output", "run", "--parallel", 16)
    store = open_store(tmp_path / "run")
    process = filter_data(*options, "--patience", 3)
    wait_for(lambda: len(slow_stub.asked) >= 60, process)
    slow_stub.stop()
    gone = time.monotonic()
    _, said = process.communicate(timeout=30)
    assert process.returncode == 75
    assert 3.0 <= time.monotonic() - gone < 12.0
    error = said.splitlines()[-1]
    assert error.startswith(f"error: {slow_stub.url} gave no answer for 3 s") and "run this again" in error
    before, since = finished(store), len(slow_stub.asked)
    assert len(before) >= 60 - 16
    slow_stub.start()
    process = filter_data(*options)
    assert process.wait(120) == 0
    assert len(slow_stub.asked) - since == 300 - len(before)
    check_every_row_once(store)


def test_a_server_that_is_gone_for_a_while_is_waited_for(filter_data, slow_stub, jsonl, tmp_path):
    process = filter_data(
        "--dataset-name", jsonl(ROWS), "--base-url", slow_stub.url, "--output", "run", "--parallel", 16
    )
    wait_for(lambda: len(slow_stub.asked) >= 60, process)
    slow_stub.stop()
    time.sleep(2)
    slow_stub.start()
    assert process.wait(120) == 0
    check_every_row_once(open_store(tmp_path / "run"))


def test_as_many_requests_as_asked_for_are_in_flight(filter_data, jsonl, tmp_path):
    # At 110 requests a second a quiet machine keeps 255.8 of 256 in flight; the bound leaves room for a busy one, which
    # adds its own tenth of a second to each request. A tool that asks in waves stays far below it.
    rows = [{"prompt": f"question {number}"} for number in range(1536)]
    with StubServer(delay=(0.5, 4.0)) as stub:
        process = filter_data(
            "--dataset-name", jsonl(rows), "--base-url", stub.url, "--output", "run", "--parallel", 256
        )
        said = process.communicate(timeout=300)
        assert process.returncode == 0, said
        mean = stub.mean_in_flight(0.25, 0.75)
        print(f"mean in flight over the middle: {mean:.1f} of 256")
        assert 0.9 * 256 <= mean <= 256
        assert len(stub.asked) == 1536


def test_on_a_terminal_progress_is_a_bar(stub, jsonl, tmp_path):
    stub.delay = (0.2, 0.4)
    ours, theirs = pty.openpty()
    command = [sys.executable, TOOL, "--dataset-name", jsonl(ROWS[:100]), "--base-url", stub.url, "--parallel", "8"]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "80"}
    process = subprocess.Popen(command, cwd=tmp_path, stderr=theirs, stdout=subprocess.DEVNULL, env=environment)
    os.close(theirs)
    shown = b""
    while chunk := read_some(ours):
        shown += chunk
    assert process.wait(60) == 0
    assert re.search("━━━━━━━━[^\r\n]*left: 00:0", shown.decode())  # 80 columns have room for the bar too
    for word in (b"/100", b"answers/s", b"tokens/s", b"8 in flight", b"rejects: none", b"left: 00:0"):
        assert word in shown, shown[-2000:]


def read_some(descriptor):
    try:
        return os.read(descriptor, 65536)
    except OSError:  # how Linux says that the other end of a terminal is closed
        return b""


def test_the_tools_image_needs_no_torch(tmp_path):
    code = (
        "import sys; sys.modules['torch'] = None; sys.argv = ['filter_data.py', '--help'];"
        f"import runpy; runpy.run_path({str(Path(TOOL))!r}, run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "--dataset-name" in done.stdout
