"""What a run will take, before it takes it; a cap below the least of that is refused."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from huggingface_hub import DatasetCardData

from spec.cluster import preflight
from spec.cluster.preflight_training import settings_of
from spec.costs.budget import Budget, Training
from spec.costs.estimate import (
    SPEEDS,
    GpuHours,
    check_cap,
    of_serving,
    of_training,
    tokens_of,
    tokens_trained,
    training_of,
)
from spec.costs.records import Record, write
from spec.errors import BadInput
from spec.storage import open_store
from spec.storage.markers import Marker, write_marker
from tests.runs import make_run

ROOT = Path(__file__).parents[3]
CONFIG = ROOT / "spec/configs/llama3/8B_eagle.yaml"


def trained(words: str = "", *, config: Path = CONFIG, world: int = 8) -> Training:
    return training_of(config, settings_of("train-options", config, words), world)


def test_every_config_has_its_speed_and_the_planner_says_the_same():
    from spec.planning.plan import Machines, measure, plan, read_plan_config

    speeds = yaml.safe_load(SPEEDS.read_text())
    configs = {f"{path.parent.name}/{path.stem}": path for path in (ROOT / "spec/configs").glob("*/*.yaml")}
    assert speeds.keys() == configs.keys()
    for name in ("smollm2/135M_eagle", "llama4/scout_17B_16E_eagle", "qwen3/8B_dspark"):
        cfg, target = read_plan_config(configs[name], [])
        sizes = measure(cfg, target)
        planned = plan(cfg, sizes, Machines()).tokens_per_second / Machines().world
        assert speeds[name]["tokens_per_gpu_second"] == pytest.approx(planned, rel=0.01), name
        assert speeds[name]["active"] == pytest.approx(sum(sizes.active) + sizes.outside, rel=0.01), name


def test_training_takes_its_tokens_at_the_planner_s_speed_halved_to_threefold():
    training = trained("epochs=2")
    assert (training.epochs, training.most_tokens) == (2, 0)
    hour = training.tokens_per_gpu_second * 3600
    assert of_training(training, (hour, 10 * hour)) == GpuHours(1, 60)
    assert of_training(training, (hour, None), trained=int(hour)) == GpuHours(0.5, None)
    assert of_training(training, (0, None)) == GpuHours(0, None)


def test_no_more_than_the_steps_that_are_set_and_nothing_on_cpus():
    training = trained("max_steps=100 batch_size=2")
    assert training.most_tokens == 100 * 2048 * 2 * 8
    assert of_training(training, (1e12, 1e12)) == of_training(training, (1e12, None))
    assert of_training(trained(world=0), (1e12, None)) == GpuHours()
    assert of_serving(CONFIG, (1e9, None), gpus=0, max_tokens=64) == GpuHours()


def test_of_a_config_of_one_s_own_the_end_is_not_known(tmp_path: Path):
    own = tmp_path / "8B_mine.yaml"
    own.write_text(CONFIG.read_text())
    assert of_training(trained(config=own), (1e9, 1e9)) == GpuHours(0, None)
    assert of_serving(own, (1e9, 1e9), gpus=1, max_tokens=64) == GpuHours(0, None)
    assert of_training(trained(config=own, world=0), (1e9, 1e9)) == GpuHours()


def test_rows_are_those_of_the_limit_or_a_range_where_they_are_not_known():
    asked = {"limit": 1000, "samples": 2, "fraction": 1.0}
    assert preflight.rows_of("s3://b/prompts.jsonl", "", "train", asked) == (1000, 2000)
    assert preflight.rows_of("s3://b/prompts.jsonl", "", "train", asked | {"limit": None}) == (0, None)


def test_rows_of_a_mix_are_those_that_fit_its_shares(monkeypatch: pytest.MonkeyPatch):
    rows = {"A": {"train": 1000, "x": 50}, "B": {"train": 1_000_000, "y": 900}}
    monkeypatch.setattr(preflight, "_rows_on_hub", lambda name, split: rows[name][split])
    asked: dict[str, Any] = {"limit": None, "samples": 1, "fraction": 1.0}
    assert preflight.rows_of("A B", "1 1", "train", asked) == (1000, 2000)
    assert preflight.rows_of("A B", "1 3", "train", asked) == (2000, 4000)
    assert preflight.rows_of("A B", "1 1", "x y", asked) == (50, 100)
    assert preflight.rows_of("A B", "1 1", "train", asked | {"limit": 500}) == (250, 500)
    assert preflight.rows_of("A", "", "train", asked | {"limit": 1_000_000}) == (500, 1000)


def test_tokens_are_counted_once_the_samples_are_made(tmp_path: Path):
    assert tokens_of(open_store(tmp_path), (10, None)) == (320, None)
    run = make_run(tmp_path / "run")
    assert tokens_of(run, (10, 20)) == (2900, 2900)
    assert tokens_trained(run) == 0
    for step, seen in ((5, 100), (10, 200)):
        marker = Marker.of("train", {}, {}, counts={"tokens_seen": seen})
        write_marker(run.at(f"checkpoints/step-{step:06d}"), "checkpoint.json", marker)
    assert tokens_trained(run) == 200


def test_a_cap_below_the_least_of_what_is_used_and_left_is_refused_by_name(tmp_path: Path):
    run = open_store(tmp_path)
    write(run, Record(step="train", pod="w", gpus=1, began=0, seen=7200))
    told = "2 GPU-hours are used, and what is left takes from 3 to 9"
    assert told in check_cap(run, Budget(), GpuHours(3, 9))
    assert told in check_cap(run, Budget(max_gpu_hours=5), GpuHours(3, 9))
    with pytest.raises(BadInput, match=f"parameter max-gpu-hours: {told}, by estimate: more than 4"):
        check_cap(run, Budget(max_gpu_hours=4), GpuHours(3, 9))
    check_cap(run, Budget(max_gpu_hours=1), GpuHours())  # nothing is left that takes a GPU
    assert "its end is not known" in check_cap(run, Budget(), GpuHours(3, None))


def test_prepare_checks_again_with_the_tokens_that_it_counted(tmp_path: Path):
    run = make_run(tmp_path / "run")
    training = Training(tokens_per_gpu_second=1 / 3600, epochs=1)  # 2,900 tokens: 1,450 GPU-hours at least
    with pytest.raises(BadInput, match="from 1.45e.03 to 8.7e.03"):
        left = of_training(training, tokens_of(run, (0, None)), tokens_trained(run))
        check_cap(run, Budget(max_gpu_hours=1000, training=training), left)


def test_it_needs_no_torch():
    code = "import sys; import spec.costs.estimate, spec.costs.pods; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("card", "rows"),
    [
        ({"dataset_info": {"splits": [{"name": "train", "num_examples": 500}]}}, (250, 500)),
        ({"dataset_info": [{"splits": [{"name": "train", "num_examples": 500}]}] * 2}, (0, None)),  # which of them?
        ({"dataset_info": {"splits": [{"name": "test", "num_examples": 500}]}}, (0, None)),
        (None, (0, None)),
    ],
)
def test_a_hub_says_its_rows_in_the_dataset_s_card(monkeypatch: pytest.MonkeyPatch, card, rows):
    info = SimpleNamespace(card_data=DatasetCardData(**card) if card else None)
    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", lambda self, name: info)
    asked = {"limit": None, "samples": 1, "fraction": 1.0}
    assert preflight.rows_of("ORG/prompts", "", "train", asked) == rows
