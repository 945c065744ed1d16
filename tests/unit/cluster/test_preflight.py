"""What cannot succeed is refused by name before anything starts."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from spec.cluster import preflight
from spec.errors import BadInput
from spec.publishing.drafts import publish
from spec.storage import open_store
from tests.hub import Hub
from tests.runs import add_draft, add_report, make_run

ROOT = Path(__file__).parents[3]


def quota(hard: str, used: str) -> dict:
    return {
        "metadata": {"name": "gpus"},
        "status": {"hard": {"requests.nvidia.com/gpu": hard}, "used": {"requests.nvidia.com/gpu": used}},
    }


def test_a_quota_counts_what_others_hold():
    preflight.check_quota([quota("16", "0")], {"nvidia.com/gpu": 16}, names="nodes")
    with pytest.raises(BadInput, match="parameters nodes: 16 nvidia.com/gpu needed, and quota gpus has 8 of 16 left"):
        preflight.check_quota([quota("16", "8")], {"nvidia.com/gpu": 16}, names="nodes")


@pytest.mark.parametrize("text, value", [("500m", 0.5), ("16Gi", 16 * 2**30), ("8", 8), ("1k", 1000)])
def test_quantities(text: str, value: float):
    assert preflight.quantity(text) == value


@pytest.mark.parametrize("name", ["Upper", "1st", "a" * 41, "with.dot"])
def test_a_name_that_no_host_can_have_is_refused(name: str):
    with pytest.raises(BadInput, match="workflow's name"):
        preflight.check_workflow_name(name)


def test_the_number_out_of_range_is_named():
    with pytest.raises(BadInput, match="parameter shards: 0, where 1 to 512"):
        preflight.check_number("shards", 0, least=1, most=512)


def test_what_is_done_is_found(tmp_path: Path):
    store = open_store(tmp_path)
    assert set(preflight.remaining(store, 1).values()) == {"missing"}
    store.write("answers/shard-00000-of-00001/shard.json", b"{}")
    store.write("draft/draft.json", b"{}")
    assert preflight.remaining(store, 1) == {"answers": "done", "training": "done", "report": "missing"}


def test_a_file_where_the_run_should_be_names_the_parameter(tmp_path: Path):
    (tmp_path / "run").write_text("")
    with pytest.raises(BadInput, match="parameter run"):
        preflight.check_writable("run", str(tmp_path / "run"))


def test_a_volume_that_cannot_be_read_says_what_to_do(tmp_path: Path):
    preflight.check_volume(tmp_path)
    with pytest.raises(BadInput, match="volume models: .*/none cannot be read by user .*fsGroup"):
        preflight.check_volume(tmp_path / "none")


def test_a_directory_is_no_place_that_pods_share():
    preflight.check_shared("run", "s3://bucket/run", ("s3://",))
    with pytest.raises(BadInput, match="parameter run: /tmp/run: pods share no directory"):
        preflight.check_shared("run", "/tmp/run", ("s3://",))


def test_a_hub_to_publish_on_wants_a_token(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_TOKEN", "token")
    preflight.check_hub_token("destination", "hf://org/name")
    with pytest.raises(BadInput, match="parameter destination: .*hf://ORG/NAME"):
        preflight.check_hub_token("destination", "hf://name")
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(BadInput, match="parameter destination: .*HF_TOKEN in the Secret hugging-face"):
        preflight.check_hub_token("destination", "hf://org/name")


def test_prompts_that_are_not_there_name_the_parameter(bucket: str):
    open_store(f"s3://{bucket}").write("prompts.jsonl", b"{}")
    preflight.check_datasets(f"s3://{bucket}/prompts.jsonl", "", "train", pattern=False)
    with pytest.raises(BadInput, match="parameter dataset-name: .*none.jsonl: no such object"):
        preflight.check_datasets(f"s3://{bucket}/none.jsonl", "", "train", pattern=False)


def test_a_pattern_must_match_and_is_one_only_where_that_is_said(bucket: str):
    for key in ("logs/a/host_0.log", "logs/b/host_0.log.2026-11-29_21", "logs/odd[1].log"):
        open_store(f"s3://{bucket}").write(key, b"{}")
    logs = f"s3://{bucket}/logs"
    preflight.check_datasets(f"{logs}/*/*.log*", "", "train", pattern=True)
    preflight.check_datasets(f"{logs}/odd[1].log", "", "train", pattern=False)
    with pytest.raises(BadInput, match="parameter dataset-name: .*: no object matches"):
        preflight.check_datasets(f"{logs}/*.log.*", "", "train", pattern=True)
    with pytest.raises(BadInput, match="parameter dataset-name: .*: no such object"):
        preflight.check_datasets(f"{logs}/*/*.log", "", "train", pattern=False)
    with pytest.raises(BadInput, match="parameter dataset-name: .*: the bucket must be named"):
        preflight.check_datasets("s3://*/x.log", "", "train", pattern=True)


def test_every_dataset_of_a_mix_must_be_there_and_have_a_weight(bucket: str):
    open_store(f"s3://{bucket}").write("a.jsonl", b"{}")
    both = f"s3://{bucket}/a.jsonl s3://{bucket}/b.jsonl"
    with pytest.raises(BadInput, match="parameter dataset-name: .*b.jsonl: no such object"):
        preflight.check_datasets(both, "2 1", "train", pattern=False)
    open_store(f"s3://{bucket}").write("b.jsonl", b"{}")
    preflight.check_datasets(both, "2 1", "train", pattern=False)
    for weights, split in (("2 1 1", "train"), ("2 0", "train"), ("2 1", "a b c")):
        with pytest.raises(BadInput, match="parameters? weights and dataset-name: "):
            preflight.check_datasets(both, weights, split, pattern=False)


FILTER = runpy.run_path(str(ROOT / "tools" / "filter_data.py"))["main"]


def test_what_the_answers_are_asked_with_is_checked():
    words = """--samples 4 --fraction 0.1 --keep-sampling --leave-out s3://b/suite.jsonl --glob --keep-truncated
        --chat-template-kwargs {"enable_thinking":false} --chat-template-kwargs {"enable_thinking":true} --column a"""
    asked = preflight.check_filter(FILTER, words, turns="last", temperature=0.8)
    assert (asked["samples"], asked["fraction"], asked["glob"], asked["turns"]) == (4, 0.1, True, "last")
    assert list(asked["leave_out"]) == ["s3://b/suite.jsonl"] and asked["weights"] == ""
    assert preflight.check_filter(FILTER, "", turns="all", temperature=0)["glob"] is False


@pytest.mark.parametrize(
    ("words", "turns", "told"),
    [
        ("", "none", "parameter turns: --turns none: all, last, or a number"),
        ("", "0", "parameter turns: "),
        ("--turns -1", "all", "parameter filter-options: --turns -1"),
        ("--samples 2", "all", "parameter filter-options: --samples 2 at temperature 0"),
        ("--samples many", "all", "parameter filter-options: .*'--samples'.*integer"),
        ("--fraction 2", "all", "parameter filter-options: --fraction 2.0: above 0"),
        ("--fractoin 0.1", "all", "parameter filter-options: .*--fractoin"),
        ("1000", "all", "parameter filter-options: .*1000"),
        ("--chat-template-kwargs {x:1}", "all", "parameter filter-options: --chat-template-kwargs .*not JSON"),
        ("--chat-template-kwargs '{}'", "all", "parameter filter-options: --chat-template-kwargs .*not JSON"),
    ],
)
def test_what_filter_would_refuse_is_refused_by_the_parameters_name(words: str, turns: str, told: str):
    with pytest.raises(BadInput, match=told):
        preflight.check_filter(FILTER, words, turns=turns, temperature=0)


def test_suites_to_leave_out_must_be_there(bucket: str):
    open_store(f"s3://{bucket}").write("suite.jsonl", b"{}")
    preflight.check_suites("filter-options", [f"s3://{bucket}/suite.jsonl"])
    with pytest.raises(BadInput, match="parameter filter-options: .*none.jsonl: no such object"):
        preflight.check_suites("filter-options", [f"s3://{bucket}/none.jsonl"])


@pytest.mark.parametrize("where", ["staged", "s3", "hub"])
def test_the_target_s_config_is_read_where_it_is(where: str, tmp_path: Path, bucket: str, hub: Hub):
    written, staged, model = b'{"model_type": "llama4"}', tmp_path / "staged", "ORG/NAME"
    if where == "staged":
        staged.mkdir()
        (staged / "config.json").write_bytes(written)
    elif where == "s3":
        model = f"s3://{bucket}/target"
        open_store(model).write("config.json", written)
    else:
        hub.create("models/ORG/NAME")
        hub.commit("models/ORG/NAME", {"config.json": written})
    assert preflight.config_of_target(model, "main", staged).model_type == "llama4"


def test_a_target_of_no_family_is_refused_by_where_it_is(tmp_path: Path, bucket: str):
    written, model = '{"model_type": "mamba"}', f"s3://{bucket}/target"
    open_store(model).write("config.json", written.encode())
    with pytest.raises(BadInput, match=f"parameter model: {model}/config.json: .*'mamba' is not known here"):
        preflight.config_of_target(model, "main", tmp_path)
    (tmp_path / "config.json").write_text(written)
    with pytest.raises(BadInput, match="parameter model: ORG/NAME/config.json: .*'mamba' is not known here"):
        preflight.config_of_target("ORG/NAME", "main", tmp_path)


def test_nothing_of_it_needs_torch():
    code = "import sys; sys.modules['torch'] = None; import spec.cluster.preflight, spec.cluster.preflight_training"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_nothing_that_is_done_is_done_again():
    remaining = {"answers": "done", "training": "missing", "report": "missing"}
    preflight.check_nothing_to_redo("train-options", "epochs=2 overwrite=true", "training", remaining)
    preflight.check_nothing_to_redo("filter-options", "--limit 3", "answers", remaining)
    with pytest.raises(BadInput, match="parameter filter-options: --overwrite: this run has its answers already"):
        preflight.check_nothing_to_redo("filter-options", "--limit 3 --overwrite", "answers", remaining)


def test_a_report_that_compares_with_another_draft_than_the_published_one_is_still_to_be_made(tmp_path: Path):
    run, place, server = make_run(tmp_path / "run"), str(tmp_path / "published"), "http://name-published:30000"
    nothing = {"published": "none", "published-server": "none"}
    assert preflight.to_compare(run, place, server) == nothing | {"report": "missing"}
    add_report(run, published={"version": None})
    assert preflight.to_compare(run, place, server) == nothing
    first = publish(make_run(tmp_path / "other"), place, say=lambda line: None).version
    add_draft(run, seed=1)
    add_report(run, published={"version": None})
    asked = {"published": first, "published-server": server, "report": "missing"}
    assert preflight.to_compare(run, place, server) == asked
    add_report(run, published={"version": first})
    assert preflight.to_compare(run, place, server) == {"published": first, "published-server": "none"}
