"""The gate knows speed: at a load that is named, on two servers that run the same number of requests at once."""

from contextlib import nullcontext

import pytest

from spec.errors import BadInput, BelowBar
from spec.evaluation import served, step
from spec.evaluation.gate import Bar, gate
from spec.evaluation.prompts import Asked
from spec.evaluation.served import check_room
from spec.evaluation.settings import Settings
from spec.publishing.drafts import publish
from spec.server.sglang import SglangServer
from tests.command_line import run_tool
from tests.runs import BASELINE, OFFLINE, SPECULATIVE, make_run
from tests.stub_generate import GeneratingStub

FACTS = {"offline": OFFLINE, "baseline": BASELINE, "speculative": SPECULATIVE}  # 84.2 over 70.1 tokens/s, 8 at once


def test_a_speed_above_its_bar_passes_and_says_at_which_load():
    judged = gate(FACTS, Bar(1.6, 1.2, 8))
    assert judged["passed"] and judged["speed_up"] == pytest.approx(84.2 / 70.1)
    assert judged["why"] == (
        "accept length 1.745 on the server; the bar is 1.6; 1.20 times the tokens/s without the draft, measured at 8 "
        "requests at once; the bar is 1.2"
    )


def test_a_speed_below_its_bar_fails_whatever_the_accept_length_and_says_at_which_load():
    judged = gate(FACTS, Bar(1.6, 1.3, 8))
    assert not judged["passed"]
    assert judged["why"] == "1.20 times the tokens/s without the draft, measured at 8 requests at once, is below 1.3"


def test_without_a_bar_of_speed_a_report_is_what_it_was():
    assert set(gate(FACTS, Bar(1.6))) == {"min_accept_length", "accept_length", "measured", "passed", "why"}


@pytest.mark.parametrize("bar", [{"speed_up": 1.2}, {"at_concurrency": 8}])
def test_a_speed_without_a_load_is_no_bar(bar):
    with pytest.raises(BadInput, match="go together"):
        Bar(**bar)


@pytest.mark.parametrize(
    ("facts", "seen"),
    [(FACTS, "measured at 8"), ({"offline": OFFLINE}, "no speed was measured"),
     (FACTS | {"baseline": BASELINE | {"concurrency": 4}}, "measured at 4 and 8")],
)  # fmt: skip
def test_a_speed_at_another_load_says_nothing_of_this_one(facts, seen):
    with pytest.raises(BadInput, match=f"--at-concurrency 16: {seen}; run tools/evaluate_draft.py"):
        gate(facts, Bar(speed_up=1.2, at_concurrency=16))


def test_publishing_has_a_bar_of_its_own(tmp_path):
    run = make_run(tmp_path / "run")
    with pytest.raises(BelowBar, match="missed its bar: 1.20 times .* at 8 requests at once, is below 1.3"):
        publish(run, str(tmp_path / "there"), bar=Bar(speed_up=1.3, at_concurrency=8))
    assert not (tmp_path / "there").exists()
    publish(run, str(tmp_path / "there"), bar=Bar(speed_up=1.1, at_concurrency=8), say=lambda line: None)


def test_servers_that_run_other_numbers_of_requests_are_not_compared():
    with GeneratingStub(most=8) as stub:
        server = SglangServer(stub.url)
        check_room(server, 8, 8)
        check_room(server, 8, None)  # measured before anybody asked
        with pytest.raises(
            BadInput, match="at most 8 .* compared with 48: start both with the same --max-running-requ"
        ):
            check_room(server, 8, 48)
        with pytest.raises(BadInput, match="runs 8 requests at once, so that 9 would wait"):
            check_room(server, 9, None)


@pytest.fixture
def evaluation(tmp_path, monkeypatch):
    """Of a run whose draft nobody has measured on a server, at 4 requests at once."""
    run = make_run(tmp_path / "run")
    run.delete("report/report.json")
    asked = Asked(tuple((at, at + 1) for at in range(6)), ("?",) * 6, 9, frozenset({2}))
    monkeypatch.setattr(step, "read_asked", lambda *args, **options: asked)
    monkeypatch.setattr(step, "verified_draft", lambda *args: nullcontext(tmp_path))
    monkeypatch.setattr(served, "check_target", lambda *args: None)
    return step.Evaluation(run, tmp_path, Settings(concurrency=4, without=frozenset({"offline"})))


def test_a_load_that_so_few_prompts_never_make_is_refused(evaluation, tmp_path):
    with pytest.raises(BadInput, match="7 requests at once: more than the 6 held-out prompts that are asked"):
        step.Evaluation(evaluation.run, tmp_path, Settings(concurrency=7))
    assert step.Evaluation(evaluation.run, tmp_path, Settings()).load == 6


def test_an_evaluation_asks_both_servers_and_judges_their_speed(evaluation):
    with GeneratingStub(round_seconds=0.02) as plain, GeneratingStub(drafts=3, kept=3, round_seconds=0.02) as drafted:
        evaluation.measure_baseline(plain.url)
        evaluation.measure_speculative(drafted.url)
    judged = evaluation.conclude(Bar(1.0, 1.5, 4)).facts["gate"]
    assert judged["passed"] and 2 < judged["speed_up"] < 4  # 9 tokens: 9 rounds or 3
    assert not evaluation.conclude(Bar(1.0, 5.0, 4)).facts["gate"]["passed"]
    assert evaluation.parts["baseline"]["server"]["max_running_requests"] == 16


def test_an_evaluation_refuses_the_second_server_before_it_is_asked(evaluation):
    with GeneratingStub() as plain, GeneratingStub(drafts=3, kept=1, most=8) as drafted:
        evaluation.measure_baseline(plain.url)
        with pytest.raises(BadInput, match="at most 8 requests at once.* compared with 16"):
            evaluation.measure_speculative(drafted.url)
    assert not drafted.asked and "speculative" not in evaluation.parts


def test_what_came_of_the_flag_counts_over_all_copies():
    with GeneratingStub(most=48) as stub:
        stub.info["internal_states"] = [{"effective_max_running_requests_per_dp": 16}] * 2
        assert SglangServer(stub.url).max_running_requests == 32
        stub.info = {}
        assert SglangServer(stub.url).max_running_requests is None


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--min-speed-up", "1.2"], "go together"),
        (["--min-speed-up", "1.2", "--at-concurrency", "4", "--concurrency", "8"], "wants the servers asked at it"),
        (["--min-speed-up", "1.2", "--at-concurrency", "4", "--without", "baseline"], "leave out --without"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_read(tmp_path, options, said):
    done = run_tool("evaluate_draft", tmp_path, "--target", tmp_path, *options)
    assert done.returncode == 2 and said in done.stderr and done.stderr.count("\n") == 1
