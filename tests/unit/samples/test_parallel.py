import os
import signal
import subprocess
import sys
import time

import pytest

from spec.errors import BadInput, PassingFault
from spec.samples.parallel import ordered_map


def slower_first(item):
    time.sleep(0.05 if item % 5 == 0 else 0)
    return item * item


@pytest.mark.parametrize("processes", [1, 3])
def test_results_come_in_the_order_of_the_items(processes):
    assert list(ordered_map(slower_first, range(40), processes)) == [item * item for item in range(40)]


@pytest.mark.parametrize("processes", [1, 2])
def test_items_are_read_only_a_little_ahead(processes):
    read = 0

    def items():
        nonlocal read
        for item in range(1000):
            read += 1
            yield item

    results = ordered_map(slower_first, items(), processes)
    next(results)
    assert read <= 4 * processes
    results.close()


def test_the_work_is_shared_and_not_pickled():
    def cannot_be_pickled(item):
        return item + 1

    assert list(ordered_map(cannot_be_pickled, range(4), 2)) == [1, 2, 3, 4]


def refuse(item):
    if item == 3:
        raise BadInput(f"item {item}")
    return item


@pytest.mark.parametrize("processes", [1, 2])
def test_an_error_comes_out_where_it_was_raised(processes):
    results = ordered_map(refuse, range(10), processes)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(BadInput, match="item 3"):
        next(results)


def die(item):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_process_is_a_passing_fault():
    with pytest.raises(PassingFault, match="fewer --processes"):
        list(ordered_map(die, range(4), 2))


def test_processes_end_with_a_parent_that_is_killed():
    script = """
import os, time
from spec.samples.parallel import ordered_map
results = ordered_map(lambda item: os.getpid(), range(100), 2)
print(next(results), next(results), flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        workers = [int(word) for word in parent.stdout.readline().split()]
        parent.kill()
    deadline = time.monotonic() + 20
    while any(map(is_running, workers)):
        assert time.monotonic() < deadline, "a process outlived its parent"
        time.sleep(0.05)


def is_running(process: int) -> bool:
    try:
        with open(f"/proc/{process}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
