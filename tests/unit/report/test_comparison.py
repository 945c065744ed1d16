"""Drafts side by side: figures in columns, the sure best of a row marked, and what was made otherwise."""

import json
import shutil
from html.parser import HTMLParser

import pytest

from spec.errors import BadInput
from spec.publishing.drafts import fetch, publish
from spec.report.comparison import read, render
from spec.storage import open_store
from tests.command_line import run_tool
from tests.runs import OFFLINE, SPECULATIVE, add_draft, add_report, add_suite, add_sweep, make_run


class Cells(HTMLParser):
    """Rows of every table as texts, and what is bold."""

    def __init__(self, html):
        super().__init__()
        self.rows, self.bold, self.open = [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        if tag in self.open:
            while self.open.pop() != tag:
                pass

    def handle_data(self, data):
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data
        if "b" in self.open:
            self.bold.append(data)

    def row(self, *begins):
        return next(row for row in self.rows if row[: len(begins)] == list(begins))


def make(tmp_path, name, *, seed=0, length=1.7, lr=0.001, suites=(), sweep=None):
    store = make_run(tmp_path / name)
    draft = add_draft(store, seed=seed)
    trained = json.loads(store.read("draft/draft.json"))
    trained["facts"]["training"]["settings"]["optimizer"]["lr"] = lr
    store.write("draft/draft.json", json.dumps(trained).encode())
    figures = {"accept_length": length, "interval": [length - 0.05, length + 0.05]}
    contexts = [{"below": end, "answers": 9, "accept_length": length - end / 9000} for end in (512, 1024)]
    add_report(store, offline=OFFLINE | figures, speculative=SPECULATIVE | figures | {"by_context": contexts})
    for suite, its in suites:
        add_suite(store, suite, accept_length=its, turns=(its, its - 0.2) if suite == "mt-bench" else ())
    if sweep:
        add_sweep(store, speed_ups=sweep)
    assert draft.identity
    return store


@pytest.fixture
def runs(tmp_path):
    return [
        make(
            tmp_path,
            "week-1",
            suites=[("mt-bench", 2.0), ("gsm8k", 2.5)],
            sweep={(3, 1): 1.4, (3, 8): 0.9, (1, 8): 1.1},
        ),
        make(tmp_path, "week-2", seed=1, length=1.9, lr=0.0005, suites=[("mt-bench", 2.05)], sweep={(7, 1): 1.8}),
    ]


def test_columns_are_drafts_and_the_sure_best_is_bold(runs):
    html = render(read(runs))
    cells = Cells(html)
    assert cells.row("", "week-1", "week-2") and cells.row("method", "EAGLE-3", "EAGLE-3")
    assert cells.row("held-out prompts", "all") == ["held-out prompts", "all", "1.70 ± 0.05", "1.90 ± 0.05"]
    assert cells.row("MT-BENCH", "all") == ["MT-BENCH", "all", "2.00 ± 0.10", "2.05 ± 0.10"]  # the intervals overlap
    assert cells.row("GSM8K", "all")[-1] == "–" and cells.bold == ["1.90 ± 0.05"]
    assert cells.row("", "2")[2:] == ["1.80 ± 0.10", "1.85 ± 0.10"]
    assert cells.row("optimizer.lr") == ["optimizer.lr", "0.001", "0.0005"]
    assert not any(row[0] == "target.model" for row in cells.rows)  # the same for both
    assert html.count("<svg") == 4 and "no draft" not in "".join(cells.bold)


def test_a_line_of_speed_is_the_best_number_of_drafts_at_each_load(runs):
    html = render(read(runs))
    chart = html[html.index('aria-label="Speed-up over requests at once"') :]
    first = chart[: chart.index("</svg>")].split("<polyline")[2]
    assert first.count("<circle") == 2  # loads 1 and 8, the latter with one draft


def test_what_cannot_be_compared_is_said(tmp_path, runs):
    other = make(tmp_path, "other")
    draft = json.loads(other.read("draft/draft.json"))
    draft["facts"]["run"]["target"]["model"] = "ORG/Another"
    other.write("draft/draft.json", json.dumps(draft).encode())
    add_report(other, speculative=None)
    add_suite(other, "mt-bench", questions=8)
    html = render(read([*runs, other]))
    assert "The targets differ" in html and "MT-BENCH was not asked alike" in html
    assert "Places, offline and a server, of the figures on held-out prompts differ" in html
    assert "Temperatures" not in html and "Requests at once" not in html


def test_greedy_and_sampled_figures_or_other_loads_are_told_apart(tmp_path, runs):
    other = make(tmp_path, "other")
    report = json.loads(other.read("report/report.json"))
    report["facts"]["speculative"] |= {"temperature": 0.6, "concurrency": 1}
    report["settings"] |= {"max_new_tokens": 9, "concurrency": 1}
    other.write("report/report.json", json.dumps(report).encode())
    html = render(read([*runs, other]))
    for what in ("Temperatures of the figures", "Lengths of the answers", "Requests at once"):
        assert f"{what} on held-out prompts differ" in html, what
    assert Cells(html).row("speed-up")[-1].endswith(" at one request at a time")


def test_a_published_draft_brings_what_was_measured_of_it(tmp_path, runs):
    publish(runs[0], str(tmp_path / "published"), say=lambda line: None)
    fetch(str(tmp_path / "published"), tmp_path / "fetched", say=lambda line: None)
    html = render(read([runs[1], open_store(tmp_path / "fetched")]))
    cells = Cells(html)
    assert cells.row("GSM8K", "all") == ["GSM8K", "all", "–", "2.50 ± 0.10"]
    assert cells.row("best drafts a round") == ["best drafts a round", "7", "3"]


def test_a_run_from_before_suites_has_its_column_too(tmp_path, runs):
    bare = make_run(tmp_path / "bare")
    shutil.rmtree(tmp_path / "bare" / "checkpoints")
    cells = Cells(render(read([bare, runs[0]])))
    assert cells.row("held-out prompts", "all")[2] == "1.75"


def test_the_tool_writes_the_page_and_names_what_has_no_draft(tmp_path, runs):
    paths = [str(tmp_path / name) for name in ("week-1", "week-2")]
    done = run_tool("compare_drafts", *paths, "--html", tmp_path / "page.html")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "page.html").read_text().startswith("<!doctype html>") and "week-1, week-2" in done.stdout
    with pytest.raises(BadInput, match="no draft there"):
        read([open_store(tmp_path / "nothing")])
