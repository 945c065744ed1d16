"""The gate knows speed: at a load that is named, on two servers that run the same number of requests at once."""

import subprocess
import sys
from pathlib import Path

import pytest

from spec.errors import BadInput, BelowBar
from spec.evaluation.gate import Bar, gate
from spec.evaluation.served import check_room
from spec.publishing.drafts import publish
from spec.server.sglang import SglangServer
from tests.runs import BASELINE, OFFLINE, SPECULATIVE, make_run
from tests.stub_generate import GeneratingStub

ROOT = Path(__file__).parents[3]
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
    command = [sys.executable, "tools/evaluate_draft.py", str(tmp_path), "--target", str(tmp_path), *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and said in done.stderr and done.stderr.count("\n") == 1
