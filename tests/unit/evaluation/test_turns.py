"""Two servers asked in turn: a machine that others slow down slows both."""

from contextlib import ExitStack

import pytest

from spec.evaluation import served
from spec.evaluation.prompts import Asked
from spec.evaluation.turns import in_turn
from spec.server.sglang import SglangServer
from tests.stub_generate import GeneratingStub

ASKED = Asked(tuple((at, at + 1) for at in range(16)), ("?",) * 16, 13, frozenset({2}))


def test_who_is_first_changes_with_each_round():
    order = []
    said = in_turn({"a": "A", "b": "B"}, [1, 2, 3], lambda server, one: order.append((server, one)) or one)
    assert order == [("A", 1), ("B", 1), ("B", 2), ("A", 2), ("A", 3), ("B", 3)]
    assert said == {"a": [1, 2, 3], "b": [1, 2, 3]}


def test_a_machine_that_gets_busy_does_not_decide():
    """Servers of one speed on a machine that is four times as slow for the second half: one after the other, the
    second would be a quarter as fast."""
    with ExitStack() as stack:
        stubs = [stack.enter_context(GeneratingStub(round_seconds=0.004)) for _ in range(2)]

        def behave(body):
            busy = sum(len(stub.asked) for stub in stubs) > 18 + 16  # two for each server's warm answers
            for stub in stubs:
                stub.round_seconds = 0.016 if busy else 0.004

        for stub in stubs:
            stub.behave = behave
        plain, drafted = (SglangServer(stub.url) for stub in stubs)
        without, part, answers = served.measure_in_turn(plain, drafted, ASKED, concurrency=4)
    assert part["rounds"] == 4 and part["prompts"] == without["prompts"] == len(answers.answers) == 16
    assert part["outputs"] == without["outputs"]
    assert part["speed_up"][0] == pytest.approx(1, rel=0.5)
