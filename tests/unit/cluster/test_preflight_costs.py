"""Preflight as it is called: says what a run will take, refuses a cap below that and a sweep that cannot be, leaves
prices and cap in the run.
"""

import json
import runpy
from pathlib import Path
from typing import Any

import pytest

from spec.costs.budget import read_budget
from spec.costs.records import Record, read_all, write
from spec.errors import BadInput
from spec.storage import open_store
from spec.storage.markers import Marker, write_marker
from tests.unit.cluster.fake import FakeCluster

ROOT = Path(__file__).parents[3]


@pytest.fixture
def preflight(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The tool's command, with parameters that pass but for those given."""
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    FakeCluster.quotas = lambda self: []  # type: ignore[attr-defined]
    monkeypatch.setattr("spec.cluster.api.Cluster", lambda namespace: FakeCluster())
    main = runpy.run_path(str(ROOT / "tools/preflight.py"))["main"]
    store = open_store(f"s3://{bucket}")
    store.write("model/config.json", json.dumps({"model_type": "llama", "vocab_size": 151_936}).encode())
    store.write("prompts.jsonl", b'{"prompt": "x"}\n')
    words = dict.fromkeys(
        (
            "train_options",
            "evaluate_options",
            "sweep_drafts",
            "sweep_loads",
            "sweep_options",
            "weights",
            "gpu_hour_prices",
            "currency",
            "queue",
            "serves",
        ),
        "",
    )
    words |= {"run": f"s3://{bucket}/run", "destination": f"s3://{bucket}/drafts", "workflow": "w", "revision": "main"}
    words |= {"model": f"s3://{bucket}/model", "config": "spec/configs/llama3/8B_eagle.yaml", "turns": "all"}
    words |= {"dataset_name": f"s3://{bucket}/prompts.jsonl", "dataset_split": "train", "secret": "s3-credentials"}
    words |= {"filter_options": "--limit 100000"}
    numbers: dict[str, Any] = {"parallel": 8, "temperature": 0, "max_tokens": 512, "min_accept_length": 2, "shards": 2}
    numbers |= {"min_speed_up": 0, "at_concurrency": 0, "max_regression": 1, "max_running_requests": 48, "nodes": 1}
    numbers |= {"gpus_per_node": 8, "server_gpus": 1, "max_gpu_hours": 0, "drafts": 3}
    paths = {"models": tmp_path, "output": tmp_path / "found"}

    def run(**given: Any) -> None:
        main(**(words | numbers | paths | given), namespace=None)

    return run


def test_it_says_what_the_run_will_take_and_leaves_prices_and_cap_in_the_run(preflight, bucket: str, capsys):
    preflight(gpu_hour_prices='{"*": 2.5}', currency="EUR", max_gpu_hours=30)
    assert "0 GPU-hours are used, and what is left takes from 0.0" in capsys.readouterr().out
    budget = read_budget(open_store(f"s3://{bucket}/run"))
    assert (budget.per_gpu_hour, budget.currency, budget.max_gpu_hours) == ({"*": 2.5}, "EUR", 30)
    assert budget.training.epochs == 1 and budget.training.tokens_per_gpu_second > 1000


def test_a_server_of_a_deleted_workflow_is_over_when_its_run_is_submitted_again(preflight, bucket: str, capsys):
    run = open_store(f"s3://{bucket}/run")
    write(run, Record(step="serve", pod="a-server", gpus=8, began=0, seen=60, lives_on=True))
    write(run, Record(step="filter", pod="a-filter", began=60, seen=3600))
    preflight()
    assert "8 GPU-hours are used" in capsys.readouterr().out
    assert [its.over for its in read_all(run) if its.lives_on] == [True]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"max_gpu_hours": 0.001}, "parameter max-gpu-hours: .*more than 0.001"),
        ({"max_gpu_hours": -1}, "parameter max-gpu-hours: -1"),
        ({"max_gpu_hours": float("nan")}, "parameter max-gpu-hours: nan"),
        ({"gpu_hour_prices": '{"H100": "two"}'}, 'parameter gpu-hour-prices: H100: "two" is no price'),
        ({"gpu_hour_prices": "two"}, "parameter gpu-hour-prices: two: no JSON"),
    ],
)
def test_what_is_no_price_and_a_cap_that_cannot_do_are_refused_before_anything(
    preflight, bucket, tmp_path, given, told
):
    with pytest.raises(BadInput, match=told):
        preflight(**given)
    assert not (tmp_path / "found").exists() and open_store(f"s3://{bucket}/run").list() == []


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (
            {"sweep_drafts": "1,7", "train_options": "block_size=5"},
            "parameter sweep-drafts: 7: the draft is trained for blocks of 5 drafts a round",
        ),
        (
            {"sweep_drafts": "16", "config": "spec/configs/qwen3/8B_dflash.yaml"},
            "parameter sweep-drafts: 16: .* blocks of 15 drafts",
        ),
        (
            {"drafts": 7, "train_options": "block_size=5"},
            "parameter drafts: 7: the draft is trained for blocks of 5 drafts",
        ),
        ({"drafts": 0}, "parameter drafts: 0: whole numbers"),
        ({"sweep_drafts": "1,adaptive"}, "parameter sweep-drafts: adaptive drafts a round: SGLang adapts"),
        ({"sweep_drafts": "1,x"}, "parameter sweep-drafts: 1,x: whole numbers"),
        ({"sweep_loads": "0"}, "parameter sweep-loads: 0: whole numbers"),
        ({"sweep_loads": "1,49"}, "parameter sweep-loads: 49, where 1 to 48"),
        ({"sweep_options": "--promts 8"}, "parameter sweep-options: .*--promts"),
        ({"sweep_options": "--prompts 8", "sweep_loads": "1,16"}, "parameter sweep-options: --prompts 8: fewer than"),
        ({"evaluate_options": "--suit mt-bench"}, "parameter evaluate-options: .*--suit"),
        ({"evaluate_options": "--suite mtbench"}, "parameter evaluate-options: --suite mtbench: pods share no files"),
        ({"evaluate_options": "--suite own,s3://b-none/x.jsonl"}, "parameter evaluate-options: .*b-none"),
    ],
)
def test_drafts_that_the_draft_or_loads_that_the_servers_cannot_do_are_refused(preflight, tmp_path, given, told):
    words = {"sweep_drafts": "1", "sweep_loads": "1", "config": "spec/configs/llama3/8B_dspark.yaml"}
    with pytest.raises(BadInput, match=told):
        preflight(**words | given)
    assert not (tmp_path / "found").exists()


def test_a_trained_draft_is_swept_as_far_as_it_has_learnt(preflight, bucket: str):
    store, sweep = (
        open_store(f"s3://{bucket}/run"),
        {"sweep_loads": "1", "config": "spec/configs/llama3/8B_dspark.yaml"},
    )
    preflight(sweep_drafts="7", **sweep)  # as the config will train it
    facts = {"config": {"block_size": 3}, "training": {"settings": {"method": "dspark"}}}
    write_marker(store, "draft/draft.json", Marker.of("extract", {}, {}, facts=facts))
    with pytest.raises(BadInput, match="parameter sweep-drafts: 7: the draft is trained for blocks of 3 drafts"):
        preflight(sweep_drafts="7", **sweep)
    preflight(sweep_drafts="3", **sweep)
