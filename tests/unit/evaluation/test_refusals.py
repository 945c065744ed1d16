"""The steps after the export refuse a damaged draft with the same words: evaluate, before anything is measured, and
publish, before anything is written; with a report of the whole draft, or with none."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch

from spec.errors import BadInput
from spec.evaluation import step
from spec.evaluation.settings import Settings
from spec.export.export import export
from spec.export.verify import target_facts
from spec.methods import METHODS
from spec.publishing.drafts import publish
from spec.storage import open_store
from spec.storage.markers import Marker, describe_files, write_marker
from spec.target.frozen import FrozenTarget
from tests.damaged_drafts import DAMAGES
from tests.runs import add_report
from tests.tiny_drafts import random_draft
from tests.tiny_models import save_tiny_target


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    return save_tiny_target("llama", tmp_path_factory.mktemp("target"))


@pytest.fixture(scope="module")
def whole(target, tmp_path_factory):
    """A run with one held-out prompt, a draft, and a report that it passed."""
    folder = tmp_path_factory.mktemp("run")
    store = open_store(folder)
    row = {"input_ids": [65, 66, 67], "messages": [{"role": "user", "content": "ABC"}]}
    store.write("samples/prompts.jsonl", json.dumps(row).encode() + b"\n")
    files = describe_files(folder / "samples", ["prompts.jsonl"])
    write_marker(
        store.at("samples"), "samples.json", Marker(step="prepare", digest="", settings={}, inputs={}, files=files)
    )
    draft = random_draft(FrozenTarget.load(target, dtype=torch.float32))
    method = METHODS["eagle3"]
    export(
        method,
        draft,
        store.at("draft"),
        target=target_facts(method, target),
        dtype="float32",
        context_length=512,
        inputs={},
        lineage={"run": {"target": {"model": str(target)}}},
    )
    return folder


@pytest.fixture(params=DAMAGES)
def damaged(request, whole, tmp_path):
    """A run whose draft was damaged since; gives the run and the words that name the damage."""
    run = shutil.copytree(whole, tmp_path / "run")
    add_report(open_store(run))
    DAMAGES[request.param].damage(run / "draft")
    return run, DAMAGES[request.param].named


@pytest.mark.parametrize("without_report", [False, True])
def test_publish_refuses(damaged, tmp_path, without_report):
    run, named = damaged
    with pytest.raises(BadInput, match=named):
        publish(open_store(run), str(tmp_path / "published"), without_report=without_report)
    assert not (tmp_path / "published").exists()


@pytest.mark.parametrize("how", ["offline", "on the server"])
def test_evaluate_refuses(damaged, target, monkeypatch, how):
    run, named = damaged
    (run / "report/report.json").unlink()
    monkeypatch.setattr(step, "SglangServer", lambda url: SimpleNamespace(context_length=512))
    evaluation = step.Evaluation(open_store(run), target, Settings(prompts=1, max_new_tokens=4))
    with pytest.raises(BadInput, match=named):
        evaluation.measure_offline("cpu") if how == "offline" else evaluation.measure_speculative("http://stub")
    assert not list((run / "report").iterdir())


def test_the_whole_draft_is_published_and_measured(whole, target, tmp_path):
    run = shutil.copytree(whole, tmp_path / "run")
    evaluation = step.Evaluation(open_store(run), target, Settings(prompts=1, max_new_tokens=4))
    evaluation.measure_offline("cpu")
    assert evaluation.parts["offline"]["tokens_equal"]
    publish(open_store(run), str(tmp_path / "published"), without_report=True)


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer.json", "model.safetensors"])
@pytest.mark.parametrize("kept", [0, 0.6])
def test_a_target_that_was_cut_short_is_named(whole, target, tmp_path, name, kept):
    cut = shutil.copytree(target, tmp_path / "target")
    data = (cut / name).read_bytes()
    (cut / name).write_bytes(data[: int(kept * len(data))])
    with pytest.raises(BadInput, match=str(cut)):
        step.Evaluation(open_store(whole), cut, Settings(prompts=1, max_new_tokens=4)).measure_offline("cpu")
