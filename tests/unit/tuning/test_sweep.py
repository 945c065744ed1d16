"""A sweep with servers that are as fast as they are told to be: what is measured, kept, left out and recommended."""

import json
from contextlib import ExitStack, contextmanager, nullcontext

import pytest

from spec.costs.budget import Budget, write_budget
from spec.costs.records import Record, write
from spec.errors import BadInput, PassingFault
from spec.evaluation import served
from spec.evaluation.prompts import Asked
from spec.publishing.drafts import fetch, publish
from spec.report import card
from spec.report import page as report
from spec.report import sweep as picture
from spec.report.command import serving_command
from spec.report.evidence import gather
from spec.report.verdict import verdict
from spec.server.sglang import SglangServer
from spec.storage.markers import read_marker
from spec.tuning import sweep
from spec.tuning.measure import measure
from spec.tuning.settings import Settings
from spec.tuning.sweep import Sweep
from tests.runs import make_run
from tests.stub_generate import GeneratingStub
from tests.stub_server import Reply

ASKED = Asked(tuple((at, at + 1) for at in range(4)), ("?",) * 4, 13, frozenset({2}))
FORWARD = 0.02


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, "read_asked", lambda *args, **options: ASKED)
    monkeypatch.setattr(sweep, "verify_files", lambda *args, **options: None)
    monkeypatch.setattr(served, "check_target", lambda *args: None)
    return make_run(tmp_path / "run")


class Servers:
    """Stand-ins by their drafts a round; each keeps one draft, and a round costs so many forwards."""

    def __init__(self, costs):
        self.costs, self.opened = costs, []
        self.behave = lambda body: None

    @contextmanager
    def __call__(self, drafts):
        self.opened.append(drafts)
        seconds = FORWARD / 4 * (self.costs[drafts] if drafts else 1)
        with GeneratingStub(drafts=drafts, kept=1 if drafts else 0, round_seconds=seconds, behave=self.behave) as stub:
            yield stub.url


def swept(run, servers, loads=(1, 4), drafts=(1, 3), **options):
    found = Sweep(run, None, Settings(loads, drafts, rounds=2, **options))
    found.measure(servers, None)
    return found.conclude().facts


def test_every_figure_is_what_the_servers_do():
    with ExitStack() as stack:
        stubs = [GeneratingStub(round_seconds=FORWARD), GeneratingStub(drafts=3, kept=2, round_seconds=2 * FORWARD)]
        plain, drafted = (SglangServer(stack.enter_context(stub).url) for stub in stubs)
        facts = measure(plain, drafted, ASKED, drafts=3, load=2, rounds=3)
    # 13 tokens: one with the prompt, then 12 rounds of one or 4 of three, of which each takes twice as long.
    assert facts["accepts"] == pytest.approx(3) and facts["acceptance_by_position"] == [1, 1, 0]
    assert facts["plain"]["round_ms"][0] == pytest.approx(1e3 * FORWARD, rel=0.3)
    assert facts["drafted"]["round_ms"][0] == pytest.approx(2e3 * FORWARD, rel=0.3)
    assert facts["drafted"]["gap_ms"][0] == pytest.approx(2e3 * FORWARD, rel=0.3)
    assert facts["drafted"]["per_token_ms"][0] == pytest.approx(2e3 * FORWARD * 4 / 12, rel=0.3)
    assert 2e3 * FORWARD <= facts["drafted"]["first_token_ms"][0] < 4e3 * FORWARD  # a busy machine adds to it
    assert facts["costs"][0] == pytest.approx(2, rel=0.3)
    assert facts["speed_up"][0] == pytest.approx(13 / (5 * 2), rel=0.3)
    assert facts["speed_up"][1] <= facts["speed_up"][0] <= facts["speed_up"][2]
    assert facts["same_answers"] == 4
    assert [len(stub.asked) for stub in stubs] == [3 + 3 * 5] * 2  # warm ones, and before each pass one more


def test_the_flags_that_win_stand_in_draft_json_on_the_card_and_in_what_fetch_prints(run, tmp_path):
    before = read_marker(run, "draft/draft.json")
    facts = swept(run, Servers({1: 1.2, 3: 3.0}), loads=(1,))
    assert facts["recommended"]["drafts"] == 1
    assert facts["recommended"]["flags"]["--speculative-num-draft-tokens"] == "2"
    assert verdict(gather(run)).startswith("deploy it with 1 draft a round: 1.")
    draft = read_marker(run, "draft/draft.json")
    assert draft.facts["serving"]["drafts"] == 1 and draft.facts["serving"]["max_running_requests"] == 16
    assert (draft.identity, draft.finished_at) == (before.identity, before.finished_at)
    assert "--speculative-num-steps 1" in card.render(gather(run)) and "| 1 | 1." in card.render(gather(run))
    publish(run, str(tmp_path / "there"), say=lambda line: None)
    fetched = fetch(str(tmp_path / "there"), tmp_path / "here", say=lambda line: None)
    served_by = serving_command(fetched, "HERE")
    assert "--speculative-num-steps 1" in served_by and "--max-running-requests 16" in served_by


def test_an_adaptive_number_is_measured_last_whatever_is_known_and_told_by_its_name(run):
    servers = Servers({1: 3.0, "adaptive": 1.1})
    facts = swept(run, servers, loads=(1,), drafts=("adaptive", 1))
    assert servers.opened == [0, 1, "adaptive"]
    assert [one["drafts"] for one in facts["measured"]] == [1, "adaptive"]
    assert len(facts["measured"][1]["acceptance_by_position"]) == 5  # as long as its longest chain
    assert facts["recommended"]["drafts"] == "adaptive"
    told = card.render(gather(run))
    assert "\n  --speculative-adaptive" in told and "--speculative-num-steps 3" in told and "| adaptive | 1." in told
    assert verdict(gather(run)).startswith("deploy it with an adaptive number of drafts a round: 1.")
    picture.write(run)
    assert b"adaptive" in run.read("report/sweep.svg")
    again = Servers({})
    assert swept(run, again, loads=(1,), drafts=(1, "adaptive")) == facts and again.opened == []


@pytest.mark.parametrize(
    ("served_with", "measured", "said"),
    [
        (3, "adaptive", "does not adapt its drafts a round"),
        ("adaptive", 5, "serves with --speculative-adaptive and changes its drafts a round"),
    ],
)
def test_a_server_that_adapts_is_not_taken_for_one_that_does_not(run, served_with, measured, said):
    stubs = GeneratingStub(), GeneratingStub(drafts=served_with, kept=1)
    with stubs[0] as plain, stubs[1] as stub, pytest.raises(BadInput, match=said):
        swept(run, lambda drafts: nullcontext(stub.url if drafts else plain.url), loads=(1,), drafts=(measured,))


def test_the_flag_of_a_server_that_turned_it_off_counts_for_nothing(run):
    with GeneratingStub() as plain, GeneratingStub(drafts=3, kept=1) as stub:
        stub.info["speculative_adaptive"] = True  # the server's record of its flags
        with pytest.raises(BadInput, match="does not adapt"):
            swept(run, lambda drafts: nullcontext(stub.url if drafts else plain.url), loads=(1,), drafts=("adaptive",))


def test_a_table_of_steps_that_only_the_server_has_is_refused(run):
    with GeneratingStub() as plain, GeneratingStub(drafts="adaptive", kept=1) as stub:
        stub.info["speculative_adaptive_config"] = "/etc/steps.json"
        with pytest.raises(BadInput, match="adapts by /etc/steps.json, a file that no recommended flags"):
            swept(run, lambda drafts: nullcontext(stub.url if drafts else plain.url), loads=(1,), drafts=("adaptive",))


def test_figures_of_different_servers_are_not_put_together(run):
    @contextmanager
    def on_a_gpu(drafts):
        with GeneratingStub(drafts=drafts, kept=min(drafts, 1), round_seconds=FORWARD / 4) as stub:
            stub.info["device"] = "cuda"
            yield stub.url

    swept(run, Servers({1: 1.0}), loads=(1,), drafts=(1,))
    before = run.read("report/sweep.json")
    with pytest.raises(BadInput, match="on servers whose device is cpu and cuda: their speeds do not compare"):
        swept(run, on_a_gpu, loads=(1, 4), drafts=(1,))
    assert run.read("report/sweep.json") == before


def test_where_no_load_gains_the_report_says_so_and_the_flags_stay(run):
    facts = swept(run, Servers({1: 9.0}), loads=(1,), drafts=(1,))
    assert facts["recommended"]["drafts"] is None and facts["recommended"]["flags"] == {}
    assert verdict(gather(run)).startswith("do not deploy it for speed: 0.")
    assert "--speculative-num-steps 3" in card.render(gather(run))


def test_what_cannot_win_is_not_measured_and_no_server_is_started_for_it(run):
    # The report's draft keeps 1.75 tokens a round at three drafts; a round of one already costs four forwards.
    servers = Servers({1: 4.0, 3: 1.0})
    facts = swept(run, servers)
    assert servers.opened == [0, 1]
    assert [(one["drafts"], one["concurrency"]) for one in facts["measured"]] == [(1, 1), (1, 4)]
    assert [(one["drafts"], one["concurrency"]) for one in facts["skipped"]] == [(3, 1), (3, 4)]
    assert all(one["at_most"] < 0.95 for one in facts["skipped"])
    assert "3 drafts at one request at a time (at most 0." in report.render(gather(run))


def test_a_killed_sweep_goes_on_with_what_is_not_measured(run):
    servers, asked = Servers({1: 1.0, 3: 1.0}), 0

    def dies(body):
        nonlocal asked
        asked += 1
        return Reply(status=503, error="gone") if asked > 2 * (2 + 2 * 5) + 3 else None

    servers.behave = dies
    with pytest.raises(PassingFault, match="gone.*what is measured is kept"):
        swept(run, servers)
    kept = run.read("report/sweep/drafts-1-at-1.json")
    assert not run.exists("report/sweep.json")
    servers.behave = lambda body: None
    swept(run, servers)
    assert run.read("report/sweep/drafts-1-at-1.json") == kept
    again = Servers({})
    facts = swept(run, again)
    assert not again.opened and len(facts["measured"]) == 4


def test_at_the_run_s_cap_of_gpu_hours_no_further_server_is_started(run):
    write(run, Record(step="serve", pod="s", gpus=8, began=0, seen=0, of_cluster=True, lives_on=True))
    write_budget(run, Budget(max_gpu_hours=1))
    servers = Servers({1: 1.0, 3: 1.0})
    with pytest.raises(BadInput, match="max-gpu-hours: .*; what is measured is kept; submit"):
        swept(run, servers)
    assert not servers.opened


def test_processes_that_share_a_sweep_come_to_what_one_does(run):
    costs = {1: 1.2, 3: 9.0, 7: 1.0}

    def part(*drafts):
        return Sweep(run, None, Settings((1, 4), drafts, rounds=2))

    assert part(1, 3, 7).left(print) == [1, 3, 7]  # nothing is known of what a round accepts
    for drafts in (1, 3):
        part(drafts).measure(Servers(costs), None)
    assert part(1, 3, 7).left(print) == []  # a round of 7 costs no less than one of 3
    joined = part(1, 3, 7)
    joined.left(print)
    facts = joined.conclude().facts
    assert [one["drafts"] for one in facts["skipped"]] == [7, 7]
    whole = swept(run, Servers(costs), drafts=(1, 3, 7))
    assert whole == facts


def test_what_was_measured_otherwise_is_named_and_not_mixed_in(run):
    swept(run, Servers({1: 1.0}), loads=(1,), drafts=(1,))
    with pytest.raises(BadInput, match="drafts-1-at-1.json was made otherwise: settings.rounds: 2 there, 3 asked"):
        Sweep(run, None, Settings((1,), (1,), rounds=3)).measure(Servers({1: 1.0}), None)


def test_overwriting_measures_again(run):
    swept(run, Servers({1: 1.0}), loads=(1,), drafts=(1,))
    again = Servers({1: 6.0})  # far below the bar, whatever else the machine does
    found = Sweep(run, None, Settings((1,), (1,), rounds=1), overwrite=True)
    found.measure(again, None)
    assert again.opened == [0, 1] and found.conclude().facts["recommended"]["drafts"] is None


def test_overwriting_in_several_processes_is_done_once_and_then_gone_on_with(run):
    swept(run, Servers({1: 1.0, 3: 1.0}), loads=(1,), drafts=(1, 3))
    first = Sweep(run, None, Settings((1,), (1,), rounds=2))
    first.forget()
    assert first.left(print) == [1] and run.exists("report/sweep/drafts-3-at-1.json")
    Sweep(run, None, Settings((1,), (1,), rounds=2)).measure(Servers({1: 6.0}), None)
    joined = Sweep(run, None, Settings((1,), (1,), rounds=2))
    assert joined.left(print) == [] and joined.conclude().facts["recommended"]["drafts"] is None


def test_servers_started_with_other_flags_are_not_mixed_in(run):
    swept(run, Servers({1: 1.0}), loads=(1,), drafts=(1,))
    with pytest.raises(BadInput, match="made otherwise: settings.server_options"):
        swept(run, Servers({1: 1.0}), loads=(1,), drafts=(1,), server_options="--dtype float16")


def test_what_a_sampled_report_accepts_bounds_nothing(run):
    report = json.loads(run.read("report/report.json"))
    for part in ("speculative", "offline"):
        report["facts"][part] |= {"temperature": 1.0, "acceptance_by_position": [0.1, 0.0, 0.0]}
    run.write("report/report.json", json.dumps(report).encode())
    assert swept(run, Servers({3: 1.0}), loads=(1,), drafts=(3,))["skipped"] == []


def test_servers_of_other_weights_are_not_compared(run):
    @contextmanager
    def other(drafts):
        with GeneratingStub(drafts=drafts, kept=min(drafts, 1)) as stub:
            stub.shift = drafts
            yield stub.url

    with pytest.raises(BadInput, match="4 of 4 answers begin otherwise .* other weights"):
        swept(run, other, loads=(1,), drafts=(1,))


def test_the_picture_has_a_line_a_number_of_drafts_and_one_at_1(run):
    swept(run, Servers({1: 1.0, 3: 1.1}))
    picture.write(run)
    svg = run.read("report/sweep.svg").decode()
    assert svg.startswith('<svg xmlns="http://www.w3.org/2000/svg" viewBox') and svg.count("<polyline") == 3
    assert ">1 draft</text>" in svg and ">3 drafts</text>" in svg and ">no draft</text>" in svg
    assert "<style>" in svg and "--accent" in svg and "&" not in svg.split("</style>")[0]
    page = report.render(gather(run))
    assert "Speed over load" in page and page.count("<polyline") >= 3
    assert "run at most 16 requests at once" in page and "in every setting: 4 of 4" in page
    assert json.loads(run.read("report/sweep.json"))["facts"]["recommended"]["drafts"] in (1, 3)


def test_a_sweep_of_another_draft_is_not_shown(run):
    swept(run, Servers({1: 1.0}), loads=(1,), drafts=(1,))
    marker = json.loads(run.read("report/sweep.json"))
    marker["inputs"]["draft"] = "another"
    run.write("report/sweep.json", json.dumps(marker).encode())
    assert "Speed over load" not in report.render(gather(run))


def test_more_at_once_than_prompts_is_refused_before_any_server(run):
    with pytest.raises(BadInput, match="8 requests at once: more than the 4 held-out prompts"):
        Sweep(run, None, Settings((1, 8), (1,)))


def test_servers_that_queue_are_refused(run):
    @contextmanager
    def small(drafts):
        with GeneratingStub(drafts=drafts, kept=min(drafts, 1), most=2) as stub:
            yield stub.url

    with pytest.raises(BadInput, match="runs 2 requests at once, so that 4 would wait"):
        swept(run, small)
