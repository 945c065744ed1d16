"""The report: one file that says how good the draft is, holds nothing from outside, and shows what was measured."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from spec.report import card
from spec.report import page as report
from spec.report.evidence import gather
from spec.storage import open_store
from tests.runs import FIGURES, OFFLINE, SPECULATIVE, add_answers, add_draft, add_report, make_run


class Page(HTMLParser):
    """The page's text, every tag with its attributes, and whether tags close as they open."""

    def __init__(self, html: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.text = ""
        self.open: list[str] = []
        self.crossed: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.crossed.append(tag)
        if tag in ("dt", "dd", "th", "td", "i"):
            self.text += " "

    def handle_data(self, data):
        if not {"style", "script"} & set(self.open):
            self.text += data

    def said(self) -> str:
        return " ".join(self.text.split())

    def of(self, kind: str) -> list[dict]:
        """Attributes of the elements with a class."""
        return [attributes for _, attributes in self.tags if kind in (attributes.get("class") or "").split()]


@pytest.fixture
def run(tmp_path: Path):
    return make_run(tmp_path / "run")


def page(run) -> Page:
    return Page(report.render(gather(run)))


def test_it_is_one_well_formed_file_that_needs_nothing_from_outside(run):
    report.write(run)
    html = run.read("report/report.html").decode()
    read = Page(html)
    assert not read.crossed and not read.open
    assert not {"script", "link", "img", "iframe", "object"} & {tag for tag, _ in read.tags}
    assert not [a for _, a in read.tags if {"src", "href"} & a.keys()]
    assert not re.search(r"url\(|@import|https?://", html)
    policy = next(a["content"] for _, a in read.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")


def test_the_figures_stand_at_the_top(run):
    said = page(run).said()
    top = said[: said.index("What the target accepts")]
    assert "EAGLE-3 draft ORG/Target-8B-Instruct passed accept length 1.745 on the server; the bar is 1.6." in top
    assert "Accept length 1.75 tokens a forward of the target; untrained 1.00" in top
    assert "Speed-up 1.20× 84.2 tokens/s with the draft, 70.1 without" in top
    assert "First guess kept 49%" in top
    assert "Same tokens yes" in top
    assert "32 held-out prompts · chains of 3 drafts · SGLang 0.5.23" in top


def test_acceptance_by_position_is_drawn_and_read_out(run):
    read = page(run)
    chart = next(a["aria-label"] for _, a in read.tags if a.get("aria-label", "").startswith("Drafts kept by position"))
    assert "on the server: 49.1%, 19.0%, 6.5%" in chart and "offline: 49.1%, 19.0%, 6.5%" in chart
    bars = [a for tag, a in read.tags if tag == "rect" and a["class"] in ("b0", "b1") and "height" in a]
    assert len(bars) >= 6
    assert "1st draft" in read.text and "3rd draft" in read.text


def test_accept_lengths_are_bars_from_zero_with_the_bar_for_publishing_across(run):
    read = page(run)
    widths = [a["style"] for a in read.of("fill")]
    assert widths == ["width: 100.0%", "width: 100.0%", "width: 57.5%"]  # 1.7453, 1.7453 and untrained 1.004
    assert {a["style"] for a in read.of("bar")} == {"left: 91.7%"}  # 1.6
    add_report(run, passed=False)  # the bar is beyond the draft
    read = page(run)
    assert [a["style"] for a in read.of("fill")] == ["width: 91.9%", "width: 91.9%", "width: 52.8%"]
    assert {a["style"] for a in read.of("bar")} == {"left: 100.0%"}


def test_loss_and_accuracy_have_a_line_for_each_position_and_the_held_out_first_dashed(run):
    read = page(run)
    lines = [a for tag, a in read.tags if tag == "polyline"]
    plain = [a["class"] for a in lines if "dashed" not in a["class"]]
    assert sorted(plain) == sorted([*(2 * [f"line c{at}" for at in range(7)]), "line c2"])  # the last: calibrated
    assert [a["class"] for a in lines if "dashed" in a["class"]] == 3 * ["line c0 dashed"]  # the last: estimated
    assert len(lines[0]["points"].split()) == 40  # a row of metrics each
    assert len([a for tag, a in read.tags if tag == "circle"]) == (2 + 2) * 4  # an evaluation each, even of one alone
    assert "held-out values of the 1st dashed" in read.said()
    assert "1st 2nd 3rd 4th 5th 6th 7th" in read.said()


def test_answers_show_what_each_forward_added_and_how_much_of_it_was_drafted(run):
    read = page(run)
    pieces = OFFLINE["examples"][0]["pieces"]
    shown = read.of("piece")[: len(pieces)]
    assert [a["title"] for a in shown] == [f"{piece['accepted']} drafts kept" for piece in pieces]
    assert [a["style"] for a in shown] == [f"--kept: {piece['accepted'] / 3:.2f}" for piece in pieces]
    assert "The capital of France is Paris, a city on the Seine.<|im_end|>" in read.text
    assert "6 forwards, 7 drafts kept" in read.said()


def test_prompts_and_answers_are_text_never_markup(run):
    html = report.render(gather(run))
    assert "&lt;script&gt;alert(&#39;prompt&#39;)&lt;/script&gt;" in html
    assert "&lt;img src=x onerror=alert(1)&gt;" in html
    assert "What is &lt;b&gt;2 + 2&lt;/b&gt;?" in html  # the training row


@pytest.mark.parametrize("field", ["model", "revision"])
def test_names_are_text_too(run, field: str):
    lineage = json.loads(run.read("run.json"))
    lineage["target"][field] = lineage["dataset"]["name"] = '</style><script>alert("name")</script>'
    run.write("run.json", json.dumps(lineage).encode())
    draft = json.loads(run.read("draft/draft.json"))
    draft["facts"]["run"] = lineage
    run.write("draft/draft.json", json.dumps(draft).encode())
    read = page(run)
    assert "script" not in {tag for tag, _ in read.tags}
    assert 'alert("name")' in read.text


def test_data_statistics_and_what_was_left_out(run):
    said = page(run).said()
    kinds = "of these text 25.0% 100.0% of these reasoning 50.0% 0.0% of these tool calls 25.0% 0.0%"
    assert f"rows 33 3 tokens 2,900 250 bearing loss 1,300 110 {kinds} in the draft's vocabulary 99.3% 98.1%" in said
    assert "Left out: 2 too_long at filter, 2 truncated at filter." in said


def test_lineage_names_every_step_by_what_the_next_one_knows_it_by(run):
    said = page(run).said()
    lineage = said[said.index("Lineage") : said.index("Figures and settings")]
    draft = gather(run).draft
    for part in (
        "target ORG/Target-8B-Instruct, revision 0123abc",
        "prompts ORG/prompts, split train, revision fe12",
        "answers 36 of 40 rows answered by the target, temperature 0, 64 tokens at most",
        "samples 33 rows to train on, 3 held out",
        "checkpoint step-000400, 320,000 tokens seen, 2 processes",
        f"identity {draft.identity}",
        "report 32 held-out prompts, cpu float32, SGLang 0.5.23",
    ):
        assert part in lineage
    for file in draft.files.values():
        assert file.sha256 in said


def test_a_draft_that_missed_the_bar_is_said_to(run):
    add_report(run, passed=False)
    said = page(run).said()
    assert "missed the bar accept length 1.745 on the server is below 1.9." in said and "passed" not in said[:200]


@pytest.mark.parametrize(
    ("gap", "passed", "word"), [(0.04, True, "nearly"), (0.04, False, "nearly"), (1.7, False, "no")]
)
def test_answers_that_differ_are_not_called_the_same(run, gap: float, passed: bool, word: str):
    differ = SPECULATIVE | {"differ": [{"prompt": 3, "at": 9, "gap": gap}], "tokens_equal_baseline": False}
    add_report(run, passed=passed, speculative=differ)
    ties = 1 if word == "nearly" else 0
    assert f"Same tokens {word} in 31 of 32 answers; {ties} of the others part at near ties" in page(run).said()


def test_a_report_of_another_draft_is_not_shown(run):
    add_draft(run, seed=1)
    said = page(run).said()
    assert "not measured" in said and "1.75" not in said


def test_what_is_missing_is_said(tmp_path: Path):
    run = open_store(tmp_path / "run")
    add_answers(run)
    said = page(run).said()
    for part in ("not measured", "No answers were kept", "No checkpoints/metrics.jsonl", "No samples in this run"):
        assert part in said
    assert "Serve it" not in said


@pytest.mark.parametrize("left_out", [("offline",), ("speculative", "baseline"), ("baseline",), ("speculative",)])
def test_an_evaluation_without_some_part_has_a_page(run, left_out: tuple[str, ...]):
    add_report(run, agreement=None, **dict.fromkeys(left_out))
    read = page(run)
    assert not read.crossed
    assert ("not measured" in read.said()) == bool({"baseline", "speculative"} & set(left_out))


def test_longer_chains_are_shown_whole(run):
    five = FIGURES | {"num_steps": 5, "acceptance_by_position": [0.5, 0.2, 0.1, 0.05, 0.02]}
    add_report(run, offline=OFFLINE | five, speculative=SPECULATIVE | five)
    said = page(run).said()
    assert "drafts kept: 0 1 2 3 4 5" in said and "5th draft" in said
    assert "--speculative-num-steps 5" in said and "--speculative-num-draft-tokens 6" in said


def test_without_an_offline_run_the_command_has_the_drafts_that_the_server_was_asked_with(run):
    five = FIGURES | {"num_steps": 5, "acceptance_by_position": [0.5, 0.2, 0.1, 0.05, 0.02]}
    add_report(run, offline=None, agreement=None, speculative=SPECULATIVE | five)
    assert "--speculative-num-steps 5" in page(run).said()
    assert "--speculative-num-steps 5" in card.render(gather(run))


def test_metrics_of_a_training_that_was_killed_are_shown_as_far_as_they_go(run):
    whole = run.read("checkpoints/metrics.jsonl")
    run.write("checkpoints/metrics.jsonl", whole[: len(whole) // 2] + b'\n{"step": 9')
    assert [a for tag, a in page(run).tags if tag == "polyline"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_losses_that_are_no_numbers_are_left_out(run, value: float):
    rows = [json.loads(line) for line in run.read("checkpoints/metrics.jsonl").splitlines()]
    rows[3]["loss_by_position"] = [value] * 7
    run.write("checkpoints/metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
    lines = [a["points"] for tag, a in page(run).tags if tag == "polyline"]
    assert lines and not [points for points in lines if "nan" in points or "inf" in points]
    assert len(lines[0].split()) == 39
