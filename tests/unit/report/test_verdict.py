"""A report answers whether to deploy the draft, at the load that was measured."""

import pytest

from spec.report import card
from spec.report import page as report
from spec.report.evidence import gather
from spec.report.verdict import verdict
from tests.runs import SPECULATIVE, add_report, make_run

APART = "; each server was measured at its own time, so what else the machines did is in it"


@pytest.mark.parametrize(
    ("its", "words"),
    [
        ({"tokens_per_s": 91.1}, "deploy it: 1.30 times faster at 8 requests at once" + APART),
        (
            {"tokens_per_s": 71.0},
            "do not deploy it for speed: no faster at 8 requests at once (1.01 times the tokens/s without it)" + APART,
        ),
        (
            {"tokens_per_s": 91.1, "speed_up": [0.71, 0.65, 0.8]},
            "do not deploy it for speed: slower at 8 requests at once (0.71 times the tokens/s without it)"
            "; 0.65 to 0.80 in rounds of both servers in turn",
        ),
    ],
    ids=["faster", "no faster", "in turn"],
)
def test_page_and_card_say_whether_to_deploy_it_and_at_which_load(tmp_path, its, words):
    """What rounds of both servers in turn say goes before what each did at another time."""
    run = make_run(tmp_path / "run")
    add_report(run, speculative=SPECULATIVE | its)
    evidence = gather(run)
    assert verdict(evidence) == words
    sentence = f"{words[0].upper()}{words[1:]}."
    assert sentence in report.render(evidence) and f"**{sentence}**" in card.render(evidence)


def test_one_request_is_said_as_one(tmp_path):
    run = make_run(tmp_path / "run")
    add_report(run, speculative=SPECULATIVE | {"concurrency": 1})
    assert verdict(gather(run)).partition("; ")[0].endswith("at one request at a time")


def test_nothing_is_said_of_a_speed_that_nobody_measured(tmp_path):
    run = make_run(tmp_path / "run")
    add_report(run, baseline=None)
    assert verdict(gather(run)) == ""
    assert "eploy it" not in report.render(gather(run)) + card.render(gather(run))
