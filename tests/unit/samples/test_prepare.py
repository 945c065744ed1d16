"""The whole step: from finished answers to samples and their marker."""

import json
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from spec.costs.budget import Budget, Training, write_budget
from spec.costs.records import read_all
from spec.errors import BadInput
from spec.samples.dataset import Samples
from spec.samples.held_out import held_out_below, prompt_hash
from spec.samples.prepare import Settings, Tolerance, prepare
from spec.samples.vocabulary import DraftVocabulary
from spec.storage import open_store
from spec.storage.markers import check_files
from tests import chat_tokenizers
from tests.answered import answered, answered_run, chat, save_target

REPOSITORY = Path(__file__).parents[3]
CLOSING = "<|im_end|>"
SETTINGS = Settings(max_length=128, held_out=0.2, draft_vocab_size=100)


@pytest.fixture(scope="module")
def tokenizer():
    return chat_tokenizers.qwen3(chat_tokenizers.CHATML_TEMPLATE)


@pytest.fixture(scope="module")
def target(tokenizer, tmp_path_factory):
    return save_target(tokenizer, tmp_path_factory.mktemp("target"), vocab_size=320)


@pytest.fixture(scope="module")
def rows(tokenizer):
    """300 conversations of one to three turns."""
    rng = random.Random(0)
    unique = {row["id"]: row for row in (conversation(tokenizer, rng) for _ in range(320))}
    return list(unique.values())[:300]


@pytest.fixture
def run(rows, target, tmp_path):
    return answered_run(tmp_path / "run", rows, target)


def conversation(tokenizer, rng: random.Random):
    contents = [f"Question {rng.randint(0, 10**6)}?" for _ in range(2 * rng.randint(1, 3))]
    contents[0] = f"Question {rng.randint(0, 200)}?"  # asked more than once
    contents[1::2] = ["Paris lies" + " on the Seine" * rng.randint(1, 4) + "." for _ in contents[1::2]]
    return answered(tokenizer, chat(*contents), [text + CLOSING for text in contents[1::2]])


def test_every_conversation_is_counted_once(run, rows, target):
    marker, worked = prepare(run, str(target), SETTINGS)
    assert worked
    assert marker.counts["answers"] == 300
    assert sum(marker.counts.values()) == 2 * 300
    samples = folder_of(run)
    train, held_out = Samples.open(samples / "train"), Samples.open(samples / "held_out")
    assert (len(train), len(held_out)) == (marker.counts["train"], marker.counts["held_out"])
    assert marker.facts["train"]["rows"] == len(train)
    assert marker.facts["train"]["tokens"] == len(train.input_ids)
    assert marker.facts["train"]["loss_tokens"] == train.loss_mask.sum()
    assert sum(marker.facts["lengths"]["rows"]) == len(train)
    check_files(samples, marker)


def test_rows_are_those_of_the_conversations_in_the_order_of_shards_and_ids(run, rows, target, tokenizer):
    prepare(run, str(target), Settings(held_out=0, draft_vocab_size=100))
    train = Samples.open(folder_of(run) / "train")
    in_order = sorted(rows, key=lambda row: (int(row["id"][:16], 16) % 2, row["id"]))
    texts = [tokenizer.apply_chat_template(row["messages"], tokenize=False) for row in in_order]
    assert [tokenizer.decode(train[row][0]) for row in range(len(train))] == texts


def test_the_samples_are_the_same_bytes_with_any_number_of_processes(rows, target, tmp_path):
    markers = [
        prepare(answered_run(tmp_path / str(processes), rows, target), str(target), SETTINGS, processes=processes)[0]
        for processes in (1, 3)
    ]
    assert markers[0].files == markers[1].files
    assert markers[0].digest == markers[1].digest


def test_equal_prompts_are_never_on_both_sides(run, rows, target, tokenizer):
    prepare(run, str(target), SETTINGS)
    sides = {}
    for split in ("train", "held_out"):
        samples = Samples.open(folder_of(run) / split)
        texts = (tokenizer.decode(samples[row][0]) for row in range(len(samples)))
        sides[split] = {text.split("<|im_start|>user\n")[1].split("<|im_end|>")[0] for text in texts}
    assert len(sides["train"]) + len(sides["held_out"]) < 300
    assert sides["train"].isdisjoint(sides["held_out"])
    assert 0.1 < len(sides["held_out"]) / 200 < 0.3


def test_held_out_prompts_are_what_the_server_is_given_first(run, target, tokenizer):
    marker, _ = prepare(run, str(target), SETTINGS)
    prompts = [json.loads(line) for line in (folder_of(run) / "held_out/prompts.jsonl").read_text().splitlines()]
    assert 0 < len(prompts) <= marker.counts["held_out"]
    assert len({prompt["messages"][-1]["content"] for prompt in prompts}) == len(prompts)
    for prompt in prompts:
        assert [message["role"] for message in prompt["messages"]] == ["user"]
        given = tokenizer.apply_chat_template(prompt["messages"], add_generation_prompt=True, return_dict=False)
        assert prompt["input_ids"] == given


def test_a_number_of_held_out_conversations(rows, target, tmp_path, tokenizer):
    alone = [answered(tokenizer, chat(f"Q{i}", "Paris."), ["Paris." + CLOSING]) for i in range(50)]
    run = answered_run(tmp_path / "run", alone, target)
    marker, _ = prepare(run, str(target), Settings(held_out=7, draft_vocab_size=100))
    assert (marker.counts["held_out"], marker.counts["train"]) == (7, 43)


def test_the_vocabulary_counts_training_rows_alone_and_keeps_the_templates_special_tokens(run, target, tokenizer):
    marker, _ = prepare(run, str(target), Settings(max_length=128, held_out=0.2, draft_vocab_size=20))
    train = Samples.open(folder_of(run) / "train")
    counts = np.bincount(train.input_ids[train.loss_mask == 1], minlength=320)
    special = tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    assert counts[special[0]] == 0  # bears no loss, and is kept all the same
    best_first = sorted(range(320), key=lambda token: (token not in special, -counts[token], token))
    vocabulary = DraftVocabulary.load(folder_of(run) / "vocab_map.safetensors")
    assert (vocabulary.d2t + np.arange(20)).tolist() == sorted(best_first[:20])
    assert len(vocabulary.t2d) == 320  # the model's, which is more than the tokenizer has
    share = counts[best_first[:20]].sum() / counts.sum()
    assert marker.facts["train"]["vocabulary_coverage"] == pytest.approx(share, abs=1e-4)


def test_what_is_held_out_does_not_count_for_the_vocabulary(target, tmp_path, tokenizer):
    below = held_out_below(0.5, list)
    answers = {f"Q{i}": "x" * 9 if prompt_hash(chat(f"Q{i}")) < below else "y" for i in range(20)}
    rows = [answered(tokenizer, chat(question, text), [text + CLOSING]) for question, text in answers.items()]
    run = answered_run(tmp_path / "run", rows, target)
    prepare(run, str(target), Settings(held_out=0.5, draft_vocab_size=3))
    kept = np.flatnonzero(DraftVocabulary.load(folder_of(run) / "vocab_map.safetensors").t2d)
    assert tokenizer.convert_ids_to_tokens(kept.tolist()) == ["y", "<|im_start|>", "<|im_end|>"]


def test_longer_rows_are_rejected_or_cut(rows, target, tmp_path):
    longest = max(turns_total(row) for row in rows)
    limit = longest // 2
    rejecting = Settings(max_length=limit, held_out=0, draft_vocab_size=100)
    run = answered_run(tmp_path / "rejecting", rows, target)
    marker, _ = prepare(run, str(target), rejecting)
    kept = Samples.open(folder_of(run) / "train")
    assert marker.counts["too_long"] > 0
    assert marker.counts["train"] + marker.counts["too_long"] == 300
    assert kept.lengths.max() <= limit

    run = answered_run(tmp_path / "cutting", rows, target)
    marker, _ = prepare(run, str(target), Settings(max_length=limit, truncate=True, held_out=0, draft_vocab_size=100))
    cut = Samples.open(folder_of(run) / "train")
    assert marker.counts["train"] == 300
    assert cut.lengths.max() == limit
    assert all(cut[row][1].any() for row in range(len(cut)))


def test_a_conversation_whose_rows_bear_no_loss_once_cut_is_too_long(target, tmp_path, tokenizer):
    asked = chat("Why " * 60, "Paris.")
    short = answered(tokenizer, chat("Where?", "Paris."), ["Paris." + CLOSING])
    run = answered_run(tmp_path / "run", [answered(tokenizer, asked, ["Paris." + CLOSING]), short], target)
    marker, _ = prepare(run, str(target), Settings(max_length=32, truncate=True, held_out=0, draft_vocab_size=100))
    assert (marker.counts["train"], marker.counts["too_long"]) == (1, 1)


def test_done_once_there_is_nothing_to_do(run, target):
    first, _ = prepare(run, str(target), SETTINGS)
    again, worked = prepare(run, str(target), SETTINGS, tolerance=Tolerance(0.5, 0.5), processes=2)
    assert not worked
    assert again == first


def test_other_settings_answers_or_tokenizers_are_told_and_replaced_only_when_asked(
    run, rows, target, tmp_path, tokenizer
):
    prepare(run, str(target), SETTINGS)
    shorter = Settings(max_length=64, held_out=0.2, draft_vocab_size=100)
    with pytest.raises(BadInput, match="settings.max_length: 128 there, 64 asked; --overwrite"):
        prepare(run, str(target), shorter)
    other = save_target(tokenizer, tmp_path / "other", vocab_size=320)
    (other / "chat_template.jinja").write_text(chat_tokenizers.CHATML_TEMPLATE + "{# another #}")
    with pytest.raises(BadInput, match="inputs.tokenizer"):
        prepare(run, str(other), SETTINGS)
    assert prepare(run, str(target), shorter, overwrite=True)[0].settings["max_length"] == 64
    answered_run(tmp_path / "run", rows[:-1], target)
    with pytest.raises(BadInput, match="inputs.answers/shard-0000[01]-of-00002"):
        prepare(run, str(target), shorter)


def test_too_many_answers_that_read_back_otherwise(run, rows, target, tmp_path):
    spoiled = [with_counts(row, completion=1) if place < 40 else row for place, row in enumerate(rows)]
    run = answered_run(tmp_path / "spoiled", spoiled, target)
    with pytest.raises(
        BadInput, match="retokenised_differently: 40 of 300 conversations, more than 10%; the first is row"
    ):
        prepare(run, str(target), SETTINGS)
    assert not run.exists("samples/samples.json")
    marker, _ = prepare(run, str(target), SETTINGS, tolerance=Tolerance(retokenised_differently=0.2))
    assert marker.counts["retokenised_differently"] == 40
    assert "answer 1 does not read back" in marker.facts["why"]["retokenised_differently"]


def test_too_many_empty_masks(tmp_path, tokenizer):
    """A template that marks what the assistant wrote, but only where the answer is long."""
    template = chat_tokenizers.CHATML_TEMPLATE.replace(
        "{{- '<|im_start|>' + message.role",
        "{% if message.content | length > 30 %}{% generation %}{{- '' }}{% endgeneration %}{% endif %}"
        "{{- '<|im_start|>' + message.role",
    )
    marking = chat_tokenizers.qwen3(template)
    target = save_target(marking, tmp_path / "target", vocab_size=320)
    rows = [answered(marking, chat(f"Q{i}", "Paris."), ["Paris." + CLOSING]) for i in range(20)]
    with pytest.raises(BadInput, match="empty_mask: 20 of 20 conversations, more than 5%; .* raise --max-empty"):
        prepare(answered_run(tmp_path / "run", rows, target), str(target), SETTINGS)


def test_nothing_left_to_train_on(run, target):
    with pytest.raises(BadInput, match="nothing is left to train on: too_long 300"):
        prepare(run, str(target), Settings(max_length=8, draft_vocab_size=100))


def test_a_run_without_a_single_answer(target, tmp_path):
    rejects = [{"id": f"{place:032x}-0", "reject": "empty", "detail": ""} for place in range(4)]
    with pytest.raises(BadInput, match="nothing is left to train on: there are no answers"):
        prepare(answered_run(tmp_path / "run", rejects, target), str(target), SETTINGS)


def test_a_draft_vocabulary_larger_than_the_targets_is_told_before_anything_else(target, tmp_path):
    with pytest.raises(BadInput, match="a draft vocabulary of 32000 is larger than the target's 320"):
        prepare(open_store(tmp_path / "no-run"), str(target), Settings())


def test_samples_in_an_object_store_are_those_in_a_directory(rows, target, tmp_path, bucket):
    local = answered_run(tmp_path / "run", rows, target)
    remote = open_store(f"s3://{bucket}/run")
    for entry in local.list():
        remote.upload(entry.key, tmp_path / "run" / entry.key)
    expected, _ = prepare(local, str(target), SETTINGS)
    marker, _ = prepare(remote, str(target), SETTINGS)
    assert marker.files == expected.files
    assert {entry.key for entry in remote.list("samples")} == {entry.key for entry in local.list("samples")}
    assert not prepare(remote, str(target), SETTINGS)[1]


@pytest.mark.parametrize("damage", ["directory", "tokenizer", "config"])
def test_a_target_that_is_not_whole(run, tokenizer, tmp_path, damage):
    folder = save_target(tokenizer, tmp_path / "damaged")
    if damage == "directory":
        folder = tmp_path / "nowhere"
    elif damage == "config":
        (folder / "config.json").write_text("{}")
    else:
        (folder / "tokenizer.json").write_text('{"version": ')
    expected = {"directory": "no such directory", "tokenizer": "no tokenizer to load", "config": "no vocab_size"}
    with pytest.raises(BadInput, match=expected[damage]):
        prepare(run, str(folder), SETTINGS)


class TestCommandLine:
    def test_without_torch_it_shows_the_mask_and_ends_with_0(self, run, tmp_path):
        done = command(tmp_path / "run", "--draft-vocab-size", "100", "--processes", "2", torch=False)
        assert done.returncode == 0, done.stderr
        assert "⟦Paris lies on the Seine" in done.stdout and ".<|im_end|>⟧" in done.stdout
        assert "done: answers 300, train " in done.stdout
        again = command(tmp_path / "run", "--draft-vocab-size", "100")
        assert again.returncode == 0
        assert "already done: answers 300, train " in again.stdout

    def test_with_a_cap_it_says_what_training_takes_now_that_the_tokens_are_known(self, run, tmp_path):
        training = Training(tokens_per_gpu_second=1, epochs=1)
        options = ("--draft-vocab-size", "100", "--processes", "1")
        write_budget(run, Budget(max_gpu_hours=1000, training=training))
        done = command(tmp_path / "run", *options, torch=False)
        assert done.returncode == 0 and "0 GPU-hours are used, and what is left takes from " in done.stdout
        costs = read_all(run)
        assert [(its.step, its.over) for its in costs] == [("prepare", True)]
        write_budget(run, Budget(max_gpu_hours=0.1, training=training))
        again = command(tmp_path / "run", *options, torch=False)
        assert again.returncode == 2 and "already done" in again.stdout and read_all(run) == costs
        assert again.stderr.startswith("error: parameter max-gpu-hours: 0 GPU-hours are used")

    def test_a_users_mistake_is_one_line_and_2(self, run, tmp_path):
        done = command(tmp_path / "run")
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("error: a draft vocabulary of 32000 is larger") and done.stderr.count("\n") == 1

    def test_a_run_that_nobody_filtered(self, tmp_path):
        done = command(tmp_path / "empty")
        assert done.returncode == 2
        assert "run tools/filter_data.py first" in done.stderr


def command(run: Path, *options: str, torch: bool = True) -> subprocess.CompletedProcess[str]:
    without = "" if torch else "sys.modules['torch'] = None; "
    script = f"import runpy, sys; {without}runpy.run_path('tools/prepare_data.py', run_name='__main__')"
    return subprocess.run(
        [sys.executable, "-c", script, str(run), *options], cwd=REPOSITORY, capture_output=True, text=True, timeout=300
    )


def folder_of(run) -> Path:
    return run.local_path() / "samples"


def turns_total(row) -> int:
    return row["turns"][-1]["prompt_tokens"] + row["turns"][-1]["completion_tokens"]


def with_counts(row, completion: int):
    first, *others = row["turns"]
    return {**row, "turns": [{**first, "completion_tokens": first["completion_tokens"] + completion}, *others]}
