"""The whole thread with the real SGLang server on CPU, by its commands: prompts in, a proven draft out."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from spec.server import start as serving
from spec.storage import open_store
from spec.storage.markers import read_marker
from tests.tiny_models import save_learnable_target

ROOT = Path(__file__).parents[2]
PROMPTS, HELD_OUT, TOKENS = 40, 8, 32

ANSWERS = "answers/shard-00000-of-00001/shard"

pytestmark = pytest.mark.server


def tool(name: str, *options: object) -> str:
    """Run one of tools/ as a user does; its stdout."""
    done = run([sys.executable, f"tools/{name}.py", *map(str, options)])
    assert done.returncode == 0, done.stderr
    return done.stdout


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600, check=False)


@pytest.fixture(scope="module")
def target(tmp_path_factory) -> Path:
    return save_learnable_target(tmp_path_factory.mktemp("target"))


@pytest.fixture(scope="module")
def finished(target, tmp_path_factory) -> Path:
    """A run after all of its steps."""
    folder = tmp_path_factory.mktemp("run")
    run_dir = folder / "run"
    prompts = folder / "prompts.jsonl"
    words = ["alpha", "beta", "gamma", "delta", "epsilon"]
    lines = [{"prompt": f"Tell me of {words[n % 5]} and {words[n // 5 % 5]}, number {n}."} for n in range(PROMPTS)]
    prompts.write_text("".join(json.dumps(line) + "\n" for line in lines))
    evaluate = ["evaluate_draft", run_dir, "--target", target, "--prompts", HELD_OUT, "--max-new-tokens", TOKENS]

    with serving.sglang_on_cpu(target, log=folder / "target.log") as url:
        answers = ["--dataset-name", prompts, "--output", run_dir, "--base-url", url, "--parallel", 16]
        tool("filter_data", *answers, "--max-tokens", TOKENS, "--keep-truncated")
        tool("prepare_data", run_dir, "--tokenizer", target, "--draft-vocab-size", 128, "--held-out", HELD_OUT)
        tool(*evaluate, "--baseline-url", url)

    config = folder / "config.yaml"
    config.write_text(
        "draft_vocab_size: 128\ninitialise: target\ntarget_dtype: fp32\ndtype: fp32\nmax_length: 256\nepochs: 20\n"
        "target_shard: none\noptimizer: {lr: 3.0e-3}\nlr_scheduler: {num_warmup_steps: 5}\n"
    )
    recipe = ["spec/eagle_full_finetune_distributed.py", "--config", str(config)]
    trained = run(
        [str(Path(sys.executable).with_name("tune")), "run", *recipe, f"run_dir={run_dir}", f"target={target}"]
    )
    assert trained.returncode == 0, trained.stderr
    tool("extract_draft_model", "--checkpoint_dir", run_dir / "checkpoints", "--target", target, "--dtype", "float32")
    tool(*evaluate)
    with serving.sglang_on_cpu(target, run_dir / "draft", log=folder / "draft.log") as url:
        tool(*evaluate, "--base-url", url, "--min-accept-length", 1.0)
    return run_dir


def report(finished: Path) -> dict:
    marker = read_marker(open_store(finished), "report/report.json")
    assert marker is not None
    return marker.facts


def test_the_server_gives_the_same_tokens_with_the_draft_as_without(finished):
    assert report(finished)["speculative"]["tokens_equal_baseline"]


def test_the_server_keeps_the_drafts_that_an_offline_run_keeps_and_no_others(finished):
    offline = json.loads((finished / "report/offline.json").read_text())
    served = json.loads((finished / "report/speculative.json").read_text())
    assert offline["tokens_equal"]
    assert served["outputs"] == offline["outputs"]
    assert served["histograms"] == offline["histograms"]
    assert served["accept_length"] > 1.2 > offline["untrained_accept_length"]  # else nothing was shown


def test_every_prompt_is_an_answer_or_a_reject_and_none_is_in_both_splits(finished):
    samples = read_marker(open_store(finished), "samples/samples.json")
    assert samples is not None
    counts = samples.counts
    assert counts["answers"] == PROMPTS == sum(count for name, count in counts.items() if name != "answers")
    assert counts["held_out"] == HELD_OUT


def test_every_token_is_the_servers_own(finished):
    samples, answers = (read_marker(open_store(finished), f"{name}.json") for name in ("samples/samples", ANSWERS))
    assert answers.counts["exact"] == answers.counts["answers"] == samples.facts["exact"] == PROMPTS
    assert samples.counts["train"] == PROMPTS - HELD_OUT


def test_a_damaged_draft_is_refused_before_any_server_is_asked(finished, target, tmp_path):
    damaged = tmp_path / "draft"
    damaged.mkdir()
    for file in (finished / "draft").iterdir():
        (damaged / file.name).write_bytes(file.read_bytes())
    weights = load_file(damaged / "model.safetensors")
    norms = ("midlayer.input_layernorm.weight", "midlayer.hidden_norm.weight")
    weights[norms[0]], weights[norms[1]] = weights[norms[1]].clone(), weights[norms[0]].clone()
    save_file(weights, damaged / "model.safetensors", metadata={"format": "pt"})
    done = run([sys.executable, "tools/verify_draft.py", str(damaged), "--target", str(target)])
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: ") and done.stderr.count("error: ") == 1
    assert "Traceback" not in done.stderr


def test_it_is_published_fetched_and_read_as_it_was(finished, tmp_path):
    tool("publish_draft", finished, tmp_path / "published")
    said = tool("fetch_draft", tmp_path / "published", tmp_path / "fetched")
    assert "--speculative-algorithm EAGLE3" in said
    before, after = (load_file(folder / "model.safetensors") for folder in (finished / "draft", tmp_path / "fetched"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
