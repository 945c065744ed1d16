"""What the evaluation asks of a server, and what becomes of faults on the way: the same as everywhere else."""

import pytest

from spec.errors import BadInput, PassingFault
from spec.server import sglang
from spec.server.sglang import SglangServer
from tests.stub_generate import GeneratingStub
from tests.stub_server import Reply, StubServer

PROMPTS = [[at, at + 1] for at in range(12)]


@pytest.fixture
def stub():
    with GeneratingStub(drafts=3, kept=1, round_seconds=0.005) as stub:
        yield stub


def answers(stub, **options):
    options = {"max_new_tokens": 9, "stop": frozenset({2}), "concurrency": 4} | options
    return SglangServer(stub.url).answer(PROMPTS, **options)


def first_times(count, reply):
    left = iter([reply] * count)
    return lambda body: next(left, None)


def test_answers_come_in_the_order_of_the_prompts_with_the_servers_counts(stub):
    found = answers(stub).answers
    assert [answer.tokens[0] for answer in found] == [sum(prompt) for prompt in PROMPTS]
    assert all(answer.histogram == [0, 4, 0, 0] for answer in found)


def test_no_more_are_in_flight_than_asked_for_and_no_fewer(stub):
    stub.round_seconds = 0.06  # beside which a busy machine's own time is little
    answers(stub, concurrency=3)
    stub.asked = stub.asked[1:]  # the first one warms the server up
    assert 2.2 < stub.mean_in_flight(0.1, 0.9) <= 3.0


@pytest.mark.parametrize("reply", [Reply(status=503, error="full"), Reply(status=500, error="boom"), ConnectionError()])
def test_passing_faults_are_tried_again(stub, reply):
    stub.behave = first_times(2, reply)
    assert len(answers(stub).answers) == len(PROMPTS)


def test_after_what_no_retry_mends_nothing_more_is_asked(stub):
    stub.behave = lambda body: Reply(status=400, error="no such token") if body["input_ids"] == PROMPTS[2] else None
    with pytest.raises(BadInput, match="/generate answers 400: no such token"):
        answers(stub)
    assert len(stub.asked) < len(PROMPTS)


def test_a_server_that_stays_away_is_given_up_after_patience(stub, monkeypatch):
    monkeypatch.setattr(sglang, "_PATIENCE", 0.3)
    server = SglangServer(stub.url)
    stub.stop()
    with pytest.raises(PassingFault, match=f"{stub.url} gave no answer for 0 s .*run this again"):
        server.tokenize("a")


def test_a_server_that_is_no_sglang_is_named_at_once():
    with StubServer() as other, pytest.raises(BadInput, match="/nowhere/server_info answers 404.*--base-url"):
        SglangServer(other.url + "/nowhere")
