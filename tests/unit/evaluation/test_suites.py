"""Suites are asked as they are published: turns in order, texts that stop, what was trained on left out and counted."""

import json
import shutil
from contextlib import nullcontext

import pytest

from spec.conversations.suites import Question, Suite, read_suite
from spec.errors import BadInput
from spec.evaluation import step, suites
from spec.evaluation.figures import Counted, by_context, interval
from spec.evaluation.prompts import Asked, text_ends
from spec.evaluation.settings import OfSuites, Settings
from spec.evaluation.suites import Counts, Rendering, Suites, ask, summary
from spec.report import card, page
from spec.report.evidence import gather
from spec.server.sglang import ServedAnswer
from spec.storage import open_store
from tests.runs import add_answers, make_run, row_id
from tests.stub_generate import GeneratingStub
from tests.tiny_models import tiny_tokenizer

BLANK = Asked((), (), 6, frozenset({2}))


@pytest.fixture
def tokenizer():
    return tiny_tokenizer()


def spoken(tokenizer, prompt):
    return tokenizer.decode(prompt)


def test_a_second_turn_is_asked_after_the_answer_to_the_first(tokenizer, tmp_path):
    asked = []

    def answer(its):
        asked.append([spoken(tokenizer, prompt) for prompt in its.prompts])
        return [ServedAnswer(tokenizer.encode(f"said{len(asked)}"), [1, 1]) for _ in its.prompts]

    questions = [Question(("one", "two"), "be brief"), Question(("alone",))]
    counts = ask(questions, Rendering(tokenizer, open_store(tmp_path)), answer, BLANK, room=1000, drafts=3)
    assert [len(turn) for turn in counts.turns] == [2, 1]
    assert "be brief" in asked[0][0] and "one" in asked[0][0] and "two" not in asked[0][0]
    first, second = asked[0][0], asked[1][0]
    assert second.startswith(first) and second.index("said1") < second.index("two")
    figures = summary(counts)
    assert [(one["turn"], one["answers"]) for one in figures["by_turn"]] == [(1, 2), (2, 1)]
    assert (figures["prompts"], figures["answers"], figures["histogram"]) == (2, 3, [3, 3, 0, 0])


def test_a_turn_without_room_ends_its_conversation_and_is_counted(tokenizer, tmp_path):
    questions = [Question(("a" * 400,)), Question(("b", "c" * 400)), Question(("d", "e"))]
    rendering = Rendering(tokenizer, open_store(tmp_path))
    answers = lambda its: [ServedAnswer([70], [1]) for _ in its.prompts]  # noqa: E731
    counts = ask(questions, rendering, answers, BLANK, room=200, drafts=1)
    assert counts.too_long == 2 and [len(turn) for turn in counts.turns] == [2, 1]
    with pytest.raises(BadInput, match="leaves room for answers of 6 tokens.*--suite-tokens"):
        ask(questions[:1], rendering, answers, BLANK, room=200, drafts=1)


def test_a_text_ends_an_answer_at_the_token_that_completes_it(tokenizer):
    ends = text_ends(tokenizer, ["stop"])
    said = tokenizer.encode("go on, stop it")
    at = len(tokenizer.encode("go on, stop"))
    assert [ends(said[:count], 1) for count in range(1, len(said))].index(at) == at - 1
    assert ends(said, len(said)) == at and ends(said, 2) is None
    assert text_ends(tokenizer, [])(said, len(said)) is None


def test_the_interval_covers_the_ratio_and_narrows_with_answers():
    few = [Counted(9, tokens, [forwards]) for tokens, forwards in ((10, 5), (12, 5), (8, 5), (14, 5))]
    low, high = interval(few)
    assert low < 44 / 20 < high
    narrow = interval(few * 25)
    assert narrow[1] - narrow[0] == pytest.approx((high - low) / 5, rel=0.15)
    assert interval(few[:1]) is None and interval([Counted(9, 10, [5])] * 8) == pytest.approx([2.0, 2.0])


def test_contexts_are_buckets_that_double():
    answers = [Counted(10, 20, [5, 5]), Counted(500, 20, [4, 4]), Counted(511, 1, [0, 0]), Counted(3000, 100, [50, 0])]
    found = by_context(answers)
    assert [(its["below"], its["answers"], its["tokens"]) for its in found] == [(512, 3, 41), (4096, 1, 100)]
    assert by_context([Counted(512, 0, [1])])[0]["below"] == 1024


@pytest.fixture
def evaluation(tmp_path, monkeypatch, tokenizer):
    """Of a run that was trained on `Question 4.0?`, and whose draft a stub serves."""
    store = make_run(tmp_path / "run")
    row = {"id": row_id("q0", 0), "messages": [{"role": "user", "content": "Question 0.0?"}], "input_ids": [5]}
    monkeypatch.setattr(suites, "held_out_ids", lambda run: frozenset({row["id"]}))
    monkeypatch.setattr(suites, "read_tokenizer", lambda target: tokenizer)
    monkeypatch.setattr(suites, "stop_tokens", lambda target: frozenset({2}))
    monkeypatch.setattr(step, "read_asked", lambda *args, **options: Asked(((1, 2),), ("?",), 9, frozenset({2})))
    monkeypatch.setattr(step, "verified_draft", lambda *args: nullcontext(tmp_path))
    monkeypatch.setattr(step.served, "check_target", lambda *args: None)
    return step.Evaluation(store, tmp_path, Settings(concurrency=1), overwrite=True)


def own(tmp_path, *prompts):
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    return str(path)


def test_a_served_suite_leaves_out_what_was_trained_on_and_is_measured_once(evaluation, tmp_path, capsys):
    asked = own(tmp_path, "Question 4.0?", "Question 0.0?", "never seen")
    with GeneratingStub(drafts=3, kept=2) as stub:
        (facts,) = Suites(evaluation, [asked], OfSuites(own_max_new_tokens=7)).measure_served(stub.url)
        before = len(stub.asked)
        (again,) = Suites(evaluation, [asked], OfSuites(own_max_new_tokens=7)).measure_served(stub.url)
        assert len(stub.asked) == before and again == facts
    assert (facts["questions"], facts["trained_on"], facts["prompts"]) == (3, 1, 2)
    assert facts["accept_length"] == pytest.approx(7 / 2) and "measured already" in capsys.readouterr().out
    with pytest.raises(BadInput, match="max_new_tokens: 7 there, 9 asked"):
        Suites(evaluation, [asked], OfSuites(own_max_new_tokens=9)).measure_served("http://nowhere")
    html, text = page.render(gather(evaluation.run)), card.render(gather(evaluation.run))
    assert "mine, on the server" in html and "1 prompts that the draft was trained on are left out" in html
    assert "| mine, on the server | all | 2 | 3.50 |" in text


def test_a_suite_of_trained_prompts_alone_asks_nobody(evaluation, tmp_path):
    asked = own(tmp_path, "Question 4.0?")
    (facts,) = Suites(evaluation, [asked], OfSuites()).measure_served("http://nowhere")
    assert (facts["trained_on"], facts["prompts"], facts["accept_length"]) == (1, 0, 1.0)


def test_a_draft_from_elsewhere_says_that_nobody_knows(evaluation, tmp_path):
    for entry in evaluation.run.list("answers"):
        evaluation.run.delete(entry.key)
    with GeneratingStub(drafts=3, kept=2) as stub:
        (facts,) = Suites(evaluation, [own(tmp_path, "x")], OfSuites()).measure_served(stub.url)
    assert facts["trained_on"] is None


def test_humaneval_comes_from_its_package_and_figures_of_others_stand_beside_it(evaluation):
    suite = read_suite("humaneval")
    assert len(suite.questions) == 164 == suite.prompts and suite.max_new_tokens == 1024
    assert suite.questions[0].turns[0].startswith("from typing import List") and suite.lineage["sha256"]
    draft = json.loads(evaluation.run.read("draft/draft.json"))
    draft["facts"]["run"]["target"]["model"] = "/models/Llama-3.1-8B-Instruct"
    evaluation.run.write("draft/draft.json", json.dumps(draft).encode())
    with GeneratingStub(drafts=3, kept=2) as stub:
        Suites(evaluation, ["humaneval", "own"], OfSuites(prompts=4, max_new_tokens=5)).measure_served(stub.url)
    html = page.render(gather(evaluation.run))
    assert "3.34 (SpecBundle, 3 drafts)" in html and "4 prompts of 164, answers of 5 tokens at most, not 1024" in html


def test_names_are_refused_before_anything_is_asked(evaluation, tmp_path):
    asked = own(tmp_path, "x")
    named_gsm8k, named_own = (str(shutil.copy(asked, tmp_path / name)) for name in ("gsm8k.jsonl", "own.jsonl"))
    for names, said in [
        ([asked, asked], "given twice"),
        (["gsm8k="], "which file"),
        (["nosuch.jsonl"], "no such file"),
        ([named_gsm8k], "told as gsm8k, which is another.*or ask gsm8k=.*gsm8k.jsonl"),
        ([named_own], "told as own, which is another; give the file another name$"),
    ]:
        with pytest.raises(BadInput, match=said):
            Suites(evaluation, names, OfSuites())


def test_a_report_from_before_suites_still_renders(tmp_path):
    store = make_run(tmp_path / "run")
    assert "Suites and contexts" not in page.render(gather(store)) and "### Suites" not in card.render(gather(store))


def test_an_empty_count_is_no_division():
    assert summary(Counts())["accept_length"] == 1.0


def test_held_out_rows_are_no_training_rows(tmp_path, monkeypatch):
    store = open_store(tmp_path)
    rows = [{"id": row_id("a"), "messages": [{"role": "user", "content": "a"}], "turns": []}]
    add_answers(store, rows)
    wanted = {suites.prompt_hash("a")}
    monkeypatch.setattr(suites, "held_out_ids", lambda run: frozenset())
    assert suites.trained_on(store, wanted) == wanted
    monkeypatch.setattr(suites, "held_out_ids", lambda run: frozenset({row_id("a")}))
    assert suites.trained_on(store, wanted) == frozenset()


def test_another_suites_answers_do_not_pass_for_this_ones(tokenizer, tmp_path):
    rendering = Rendering(tokenizer, open_store(tmp_path))
    one, other = (Suite("s", "s", {}, (Question(("same", later)),)) for later in ("x", "y"))
    assert rendering.identity(one, one.questions) != rendering.identity(other, other.questions)
