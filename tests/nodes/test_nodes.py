"""The command of several nodes as users know it, by launchers in network namespaces of their own: two machines' worth.

Making namespaces wants root; without it these are skipped. They take minutes, and are no part of `make test`:

    python -m pytest tests/nodes
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.unit.recipe.test_launch import RECIPE, launch, tiny_run
from tests.waiting import wait_for

TUNE = str(Path(sys.executable).with_name("tune"))
FIRST = "10.77.0.1"
KNOWN = "--nproc-per-node 1 --nnodes 2 --node-rank {rank} --master-addr {host} --master-port 10999"
UNDERSCORES = "--nproc_per_node 1 --nnodes 2 --node_rank {rank} --master_addr {host} --master_port 10999"

pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("ip"), reason="network namespaces want root and iproute2"),
]


@pytest.fixture
def namespaces() -> Iterator[tuple[str, str]]:
    """Two network namespaces with a cable between them, at 10.77.0.1 and 10.77.0.2."""
    token = uuid.uuid4().hex[:6]
    pair = (f"spec-a-{token}", f"spec-b-{token}")
    try:
        for name in pair:
            _ip(f"netns add {name}")
        _ip(f"link add node netns {pair[0]} type veth peer name node netns {pair[1]}")
        for number, name in enumerate(pair, start=1):
            _ip(f"-n {name} addr add 10.77.0.{number}/24 dev node")
            _ip(f"-n {name} link set lo up")
            _ip(f"-n {name} link set node up")
        yield pair
    finally:
        for name in pair:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


@pytest.mark.parametrize("form", [KNOWN, UNDERSCORES])
def test_the_known_command_trains_on_both_nodes(namespaces, tmp_path, form):
    run, recipe = tiny_run(tmp_path, "max_steps=2")
    nodes = start(namespaces, (0, 1), recipe, form)
    assert ends(nodes)[0] == [0, 0]
    assert json.loads((run / "checkpoints/step-000002/checkpoint.json").read_text())["facts"]["ranks"] == 2


def test_a_node_that_never_comes_ends_the_one_that_waits(namespaces):
    codes, said = ends(start(namespaces, (0,), NOWHERE, KNOWN + " --rdzv-conf timeout=5"))
    assert codes == [75]
    assert said[0].count("error: ") == 1 and "the nodes did not meet" in said[0]


def test_two_nodes_of_one_rank_are_both_told(namespaces):
    codes, said = ends(start(namespaces, (0, 0), NOWHERE, KNOWN + " --rdzv-conf timeout=8"))
    assert codes == [2, 2]
    assert all(text.count("error: ") == 1 and "the same --node-rank" in text for text in said)


@pytest.mark.parametrize("killed", [0, 1])
def test_a_rank_that_dies_ends_both_nodes(namespaces, tmp_path, killed):
    run, recipe = tiny_run(tmp_path, "epochs=10000", "save_every=1000000")
    nodes = start(namespaces, (0, 1), recipe, KNOWN)
    try:
        wait_for(lambda: (run / "checkpoints/metrics.jsonl").is_file(), nodes[0], 300)
        rank = next(child for child in psutil.Process(nodes[killed].pid).children(recursive=True) if _is_rank(child))
        os.kill(rank.pid, signal.SIGKILL)
    finally:
        codes, said = ends(nodes, seconds=120)
    assert codes == [75, 75]
    assert all(text.count("error: ") >= 1 for text in said)
    assert "a rank was killed" in said[killed] and "another rank is gone" in said[1 - killed]


NOWHERE = [RECIPE, "--config", "nowhere.yaml", "run_dir=RUN", "target=DIR"]


def start(namespaces: tuple[str, str], ranks: tuple[int, ...], recipe: list[str], form: str) -> list[subprocess.Popen]:
    # Gloo would else take the address that the host's name has, which is none of theirs.
    way = ("env", "GLOO_SOCKET_IFNAME=node", TUNE, "run")
    return [
        launch("ip", "netns", "exec", name, *way, *form.format(rank=rank, host=FIRST).split(), *recipe)
        for name, rank in zip(namespaces, ranks, strict=False)
    ]


def ends(nodes: list[subprocess.Popen], seconds: float = 300) -> tuple[list[int], list[str]]:
    """Each launcher's exit code and what it said on stderr; kills those that have not ended by then."""
    try:
        said = [node.communicate(timeout=seconds)[1] for node in nodes]
    finally:
        for node in nodes:
            node.kill()
    return [node.returncode for node in nodes], said


def _is_rank(process: psutil.Process) -> bool:
    return "spec.eagle_full_finetune_distributed" in process.cmdline()


def _ip(words: str) -> None:
    subprocess.run(["ip", *words.split()], check=True, capture_output=True)
