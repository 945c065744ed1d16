"""A draft that is worse than the published one is not published: judged on prompts that neither was trained on."""

import threading
from contextlib import nullcontext
from pathlib import Path

import pytest

from spec.errors import BadInput, BelowBar
from spec.evaluation import offline, served, step
from spec.evaluation.gate import Bar, gate
from spec.evaluation.prompts import Asked
from spec.evaluation.regression import Standing, compare, judge, spread
from spec.evaluation.settings import Settings
from spec.methods.files import MARKER
from spec.publishing import versions
from spec.publishing.drafts import publish
from spec.publishing.manifest import Overtaken
from spec.publishing.standing import NONE, standing, to_compare_with
from spec.storage.markers import Marker, read_marker
from tests.command_line import run_tool
from tests.runs import OFFLINE, add_draft, add_report, make_run
from tests.stub_generate import GeneratingStub

PUBLISHED = {"version": "abcd", "measured": "offline", "prompts": 30, "left_out": 2, "not_known": 0}


def quiet(line: str) -> None:
    pass


def part(*forwards: int, tokens: int = 12, tokens_per_s: float = 10.0) -> dict:
    """Answers of `tokens` tokens each, which took so many forwards."""
    outputs = [[7] * tokens for _ in forwards]
    return {
        "outputs": outputs,
        "histograms": [[n, 0] for n in forwards],
        "tokens_per_s": tokens_per_s,
        "concurrency": 8,
    }


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "run")


def marker(run, seed: int, below: int | None = None) -> Marker:
    made = add_draft(run, seed=seed)
    return made.model_copy(update={"facts": made.facts | {"held_out_below": below}})


def found(ratio: float, spread: float = 0.01, **more) -> dict:
    return PUBLISHED | {"accept_length": 2 * ratio, "its_accept_length": 2.0, "ratio": ratio, "spread": spread} | more


# -- what is compared --------------------------------------------------------------------------------------------------


def test_prompts_that_either_draft_was_trained_on_are_left_out_and_counted(run):
    old, new = marker(run, 1, below=25), marker(run, 2, below=35)
    parts = {"offline": part(6, 6, 6, 2), "published_offline": part(4, 4, 1, 1)}
    there = compare(Standing("abcd", "published/abcd", old), new, parts, hashes=[10, 20, 30, 40])
    assert there is not None and (there["prompts"], there["left_out"], there["not_known"]) == (2, 2, 0)
    assert (there["accept_length"], there["its_accept_length"]) == (24 / 12, 24 / 8)
    assert there["ratio"] == pytest.approx(8 / 12) and there["spread"] == 0


def test_a_draft_that_does_not_say_what_it_was_trained_on_is_compared_on_all_and_that_is_said(run):
    old, new = marker(run, 1), marker(run, 2, below=99)
    parts = {"offline": part(6, 6), "published_offline": part(4, 4)}
    there = compare(Standing("abcd", "published/abcd", old), new, parts, hashes=[10, 20])
    assert there is not None and (there["prompts"], there["not_known"]) == (2, 1)
    assert "it does not say" in judge(there, 0.5)[1]


def test_without_a_prompt_that_is_new_to_both_nothing_is_published(run):
    old, new = marker(run, 1, below=5), marker(run, 2, below=99)
    parts = {"offline": part(4, 4), "published_offline": part(4, 4)}
    there = compare(Standing("abcd", "published/abcd", old), new, parts, hashes=[10, 20])
    assert there is not None and judge(there, 0.02)[0] == [
        "no prompt to compare it with version abcd: one was trained on each; hold more out"
    ]


def test_the_servers_figures_go_before_those_without_one(run):
    old, new = marker(run, 1), marker(run, 2)
    parts = {"offline": part(9), "published_offline": part(3), "speculative": part(4, tokens_per_s=9.0)}
    at = Standing("abcd", "published/abcd", old)
    there = compare(at, new, parts, [1])
    assert there is not None and there["measured"] == "offline"
    there = compare(at, new, parts | {"published_speculative": part(4, tokens_per_s=12.0)}, [1])
    assert there is not None and (there["measured"], there["ratio"], there["speed"]) == ("on the server", 1.0, 0.75)


def test_the_spread_is_that_of_pairs():
    """Prompts that are hard for both drafts say nothing against either; those where they take turns do."""
    assert spread(part(3, 6, 12), part(2, 4, 8), [0, 1, 2]) == pytest.approx(0)
    assert spread(part(3, 6, 12), part(8, 4, 2), [0, 1, 2]) > 0.5


# -- the bar -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ratio", "spread", "passed"),
    [(1.1, 0.0, True), (0.985, 0.0, True), (0.975, 0.0, False), (0.975, 0.01, True), (0.9, 0.03, False)],
)
def test_worse_by_more_than_the_fraction_and_the_spread_is_refused(ratio, spread, passed):
    judged = gate({"offline": OFFLINE, "published": found(ratio, spread)}, Bar(max_regression=0.02))
    assert judged["passed"] is passed and judged["max_regression"] == 0.02


def test_the_message_says_both_figures():
    judged = gate({"offline": OFFLINE, "published": found(0.9)}, Bar(1.6, max_regression=0.02))
    assert judged["why"] == (
        "accept length 1.800 offline against 2.000 of version abcd, which is published there (-10.0% ± 1.0% on 30 "
        "prompts, 2 left out that one was trained on), is worse by more than 0.02"
    )


@pytest.mark.parametrize(("speed", "passed"), [(1.2, True), (0.94, True), (0.92, False)])
def test_speed_counts_where_it_was_measured(speed, passed):
    judged = gate({"offline": OFFLINE, "published": found(1.2, speed=speed)}, Bar(max_regression=0.02))
    assert judged["passed"] is passed
    assert passed or "0.92 times the tokens/s of version abcd is slower by more than 0.02" in judged["why"]


def test_where_nothing_is_published_there_is_nothing_to_be_worse_than(run):
    there = compare(None, marker(run, 1), {}, [])
    assert there == {"version": None} and judge(there, 0.0)[0] == []


def test_without_a_comparison_a_bar_of_regression_is_no_bar():
    with pytest.raises(BadInput, match="was not compared with the one that is published"):
        gate({"offline": OFFLINE}, Bar(max_regression=0.02))


# -- the published draft comes to the run ------------------------------------------------------------------------------


def test_the_published_draft_is_brought_to_the_run_and_stays_what_it_was(run, place):
    old = read_marker(run, "draft/draft.json")
    first = publish(run, place, say=quiet).version
    add_draft(run, seed=1)
    its = standing(run, place)
    assert its is not None and (its.version, its.marker) == (first, old)
    add_report(run)
    second = publish(run, place, say=quiet).version
    again = standing(run, place, first)
    assert again == its and run.read(f"{its.folder}/{MARKER}")
    newer = standing(run, place)
    assert newer is not None and newer.version == second


def test_where_nothing_is_published_nothing_is_brought(run, place):
    assert standing(run, place) is None and standing(run, place, NONE) is None
    assert to_compare_with(run, place) == NONE


def test_a_run_that_published_its_draft_keeps_the_comparison_it_had(run, place):
    first = publish(run, place, say=quiet).version
    assert to_compare_with(run, place) == first
    add_draft(run, seed=1)
    add_report(run, published=found(1.0, version=first))
    publish(run, place, bar=Bar(max_regression=0.02), say=quiet)
    assert versions.open_place(place, "draft").latest() != first
    assert to_compare_with(run, place) == first


# -- two at once -------------------------------------------------------------------------------------------------------


def compared_run(tmp_path: Path, seed: int, version: str | None):
    run = make_run(tmp_path / f"run-{seed}")
    add_draft(run, seed=seed)
    add_report(run, published={"version": None} if version is None else found(1.0, version=version))
    return run


def test_of_runs_that_publish_at_once_the_later_is_told_to_compare_again(tmp_path, place):
    """Both were compared with the same version; only one may follow it."""
    first = publish(make_run(tmp_path / "first"), place, say=quiet).version
    one, two = (compared_run(tmp_path, seed, first) for seed in (1, 2))
    its = publish(one, place, bar=Bar(max_regression=0.02), say=quiet).version
    with pytest.raises(Overtaken, match=f"version {its} is published there by now, .* compared with version {first}"):
        publish(two, place, bar=Bar(max_regression=0.02), say=quiet)
    assert versions.open_place(place, "draft").latest() == its
    assert publish(one, place, bar=Bar(max_regression=0.02), say=quiet).version == its  # again changes nothing
    assert Overtaken.exit_code == BelowBar.exit_code


def test_a_draft_with_another_card_follows_itself(tmp_path, place):
    """A finished run, submitted again with a newer image, whose page or card reads otherwise."""
    first = publish(make_run(tmp_path / "first"), place, say=quiet).version
    run = compared_run(tmp_path, 1, first)
    second = publish(run, place, bar=Bar(max_regression=0.02), say=quiet).version
    add_report(run, published=found(1.01, version=first))
    third = publish(run, place, bar=Bar(max_regression=0.02), say=quiet).version
    assert len({first, second, third}) == 3 and versions.open_place(place, "draft").latest() == third


@pytest.mark.parametrize("published", [True, False])
@pytest.mark.parametrize("kind", ["directory", "s3"])
def test_of_runs_that_publish_at_the_same_moment_one_wins(tmp_path, kind, published, request, monkeypatch):
    """All have seen the same `latest` before any of them writes it."""
    place = f"s3://{request.getfixturevalue('bucket')}/drafts" if kind == "s3" else str(tmp_path / "published")
    first = publish(make_run(tmp_path / "first"), place, say=quiet).version if published else None
    runs = [compared_run(tmp_path, seed, first) for seed in (1, 2, 3)]
    barrier, order = threading.Barrier(len(runs)), versions.StorePlace._order
    ended: list[object] = []

    def together(self) -> tuple[list[str], bytes | None]:
        there = order(self)
        if there[0] == ([first] if first else []):
            barrier.wait(30)
        return there

    def attempt(run) -> None:
        try:
            ended.append(publish(run, place, bar=Bar(max_regression=0.02), say=quiet).version)
        except Overtaken as error:
            ended.append(error)

    with monkeypatch.context() as patched:
        patched.setattr(versions.StorePlace, "_order", together)
        threads = [threading.Thread(target=attempt, args=(run,)) for run in runs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    won = [one for one in ended if isinstance(one, str)]
    assert len(ended) == 3 and len(won) == 1
    assert versions.open_place(place, "draft").latest() == won[0]


def test_publishing_refuses_a_report_without_the_comparison(run, tmp_path):
    with pytest.raises(BadInput, match="was not compared"):
        publish(run, str(tmp_path / "published"), bar=Bar(max_regression=0.02), say=quiet)
    add_report(run, published=found(0.9))
    with pytest.raises(BelowBar, match="1.800 offline against 2.000"):
        publish(run, str(tmp_path / "published"), bar=Bar(max_regression=0.02), say=quiet)
    assert not (tmp_path / "published").exists()


# -- the step ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def evaluated(run, tmp_path, monkeypatch):
    """An evaluation of a run whose draft is to replace a published one, which nobody has measured yet."""
    place = str(tmp_path / "published")
    publish(run, place, say=quiet)
    add_draft(run, seed=1)
    asked = Asked(tuple((at, at + 1) for at in range(6)), ("?",) * 6, 9, frozenset({2}), hashes=tuple(range(6)))
    monkeypatch.setattr(step, "read_asked", lambda *args, **options: asked)
    monkeypatch.setattr(step, "verified_draft", lambda *args: nullcontext(tmp_path))
    monkeypatch.setattr(served, "check_target", lambda *args: None)
    run.delete("report/report.json")
    return step.Evaluation(
        run, tmp_path, Settings(concurrency=4, without=frozenset({"offline"})), standing=standing(run, place)
    )


def test_both_drafts_are_asked_the_same_and_the_report_has_both_figures(evaluated, tmp_path):
    with (
        GeneratingStub(round_seconds=0.01) as plain,
        GeneratingStub(drafts=3, kept=1, round_seconds=0.01) as new,
        GeneratingStub(drafts=3, kept=3, round_seconds=0.01) as old,
    ):
        evaluated.measure_baseline(plain.url)
        evaluated.measure_speculative(new.url)
        with pytest.raises(BadInput, match="no figure was measured as those of the new one"):
            evaluated.conclude(Bar(1.0, max_regression=0.02))
        evaluated.measure_standing_speculative(old.url)
        assert [one.body["input_ids"] for one in old.asked] == [one.body["input_ids"] for one in new.asked]
    report = evaluated.conclude(Bar(1.0, max_regression=0.02))
    there, judged = report.facts["published"], report.facts["gate"]
    assert (there["accept_length"], there["its_accept_length"]) == (9 / 4, 9 / 2) and there["prompts"] == 6
    assert not judged["passed"] and "2.250 on the server against 4.500 of version" in judged["why"]
    assert evaluated.conclude(Bar(1.0)).facts["gate"]["passed"]  # without the bar, nothing is compared
    assert read_marker(evaluated.run, "report/report.json").inputs == report.inputs


def test_figures_of_another_published_draft_are_not_used(evaluated, tmp_path):
    evaluated.parts.keep("published_offline", part(3))
    again = step.Evaluation(evaluated.run, tmp_path, evaluated.settings, standing=evaluated.standing)
    assert "published_offline" in again.parts
    other = evaluated.standing.marker.model_copy(update={"digest": "0"})
    other = Standing("ffff", evaluated.standing.folder, other)
    assert "published_offline" not in step.Evaluation(evaluated.run, tmp_path, evaluated.settings, standing=other).parts


def test_the_offline_run_of_the_published_draft_is_of_its_own_files(evaluated, monkeypatch):
    seen = []
    monkeypatch.setattr(step, "verified_draft", lambda store, *args: nullcontext(store.url))
    monkeypatch.setattr(step, "read_tokenizer", lambda target: None)
    monkeypatch.setattr(offline, "load", lambda method, target, folder, device: seen.append(folder))
    monkeypatch.setattr(offline, "measure", lambda *args, **options: {})
    evaluated.measure_standing("cpu")
    assert seen == [evaluated.run.at(evaluated.standing.folder).url]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--max-regression", "0.02"], "go together"),
        (["--against", "s3://bucket/drafts"], "go together"),
        (["--max-regression", "2", "--against", "s3://bucket/drafts"], "max-regression"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_read(tmp_path, options, said):
    done = run_tool("evaluate_draft", tmp_path, "--target", tmp_path, *options)
    assert done.returncode == 2 and said in done.stderr and done.stderr.count("\n") == 1
