"""A run that begins from a draft that is there: which one is settled once, and a stop or a retry meets no other."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from spec.export.extract import extract, find_checkpoint, read_draft
from spec.methods import METHODS
from spec.publishing import versions
from tests.existing_drafts import BLOCK, as_others_publish, exported, in_several_files
from tests.prepared import prepared_run
from tests.tiny_models import save_tiny_target
from tests.training_runs import Interruption, losses, train

OTHERS = {"without": ("draft_vocab_size", "steps")}
METHOD = {
    "eagle3": {"method": "eagle3"},
    "dflash": {"method": "dflash", **BLOCK, **OTHERS},
    "dspark": {"method": "dspark", **BLOCK, **OTHERS, "markov_rank": 8, "confidence": 0.5},
}


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    return save_tiny_target("llama", tmp_path_factory.mktemp("target"))


@pytest.fixture(scope="module")
def drafts(target, tmp_path_factory):
    folder = tmp_path_factory.mktemp("drafts")
    return {method: exported(method, target, folder / method) for method in METHOD}


@pytest.fixture
def run(tmp_path):
    return prepared_run(tmp_path / "run", vocab_size=320 - 1, documents=8)


def published(draft, place):
    """The next version there; its name."""
    files = {name: draft / name for name in ("config.json", "model.safetensors", "draft.json")}
    return versions.publish(str(place), "draft", files, lambda _: None).version


def start_of(run):
    return json.loads((run / "start/start.json").read_text())


def refused(outcome):
    assert set(outcome.codes) == {2}, outcome.said
    lines = [line for line in "".join(outcome.said).splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "Traceback" not in "".join(outcome.said), outcome.said
    return lines[0]


def tensors(run):
    checkpoint = sorted((run / "checkpoints").glob("step-*/checkpoint.json"))[-1].parent
    method = METHODS[json.loads((checkpoint / "checkpoint.json").read_text())["settings"].get("method", "eagle3")]
    return read_draft(method, checkpoint).state_dict()


@pytest.fixture(params=METHOD)
def samples(request, tmp_path):
    """EAGLE-3's samples map is for the target's vocabulary; a block draft's have no mask token."""
    return request.param, prepared_run(tmp_path / "run", vocab_size=320 if request.param == "eagle3" else 319)


def test_it_begins_there_learns_and_goes_on_bit_for_bit_without_its_source(samples, drafts, target, tmp_path):
    method, run = samples
    source = shutil.copytree(drafts[method], tmp_path / "source")
    how = METHOD[method] | {"initialise": str(source), "optimizer": {"lr": 3e-4}}
    whole = shutil.copytree(run, tmp_path / "whole")
    outcome = train(whole, target, logs=tmp_path, **how)
    assert outcome.codes == [0], outcome.said
    assert f"begins from {source}, {METHODS[method].title}" in outcome.said[0]
    assert losses(whole)[-1][0] < losses(whole)[0][0]

    assert train(run, target, logs=tmp_path, interruption=Interruption(3), **how).codes == [143]
    shutil.rmtree(source)
    assert train(run, target, logs=tmp_path, **how).codes == [0]
    assert losses(run) == losses(whole)

    cold = prepared_run(tmp_path / "cold", vocab_size=320 if method == "eagle3" else 319)
    assert train(cold, target, logs=tmp_path, **METHOD[method], max_steps=2).codes == [0]
    assert losses(cold)[0] != losses(whole)[0]


@pytest.mark.parametrize("method", METHOD)
def test_it_begins_with_the_weights_that_are_there(method, drafts, target, tmp_path):
    """No step may move them here: a learning rate of all but nothing."""
    run = prepared_run(tmp_path / "run", vocab_size=320 if method == "eagle3" else 319)
    how = METHOD[method] | {"initialise": str(drafts[method]), "optimizer": {"lr": 1e-30}, "max_steps": 2}
    assert train(run, target, logs=tmp_path, **how).codes == [0]
    ours, theirs = tensors(run), load_file(drafts[method] / "model.safetensors")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name].to(its.dtype), its) for name, its in theirs.items())


def test_an_eagle3_drafts_own_map_wins_and_its_coverage_is_told(drafts, target, tmp_path):
    run = prepared_run(tmp_path / "run")
    outcome = train(run, target, logs=tmp_path, initialise=str(drafts["eagle3"]), max_steps=2)
    assert outcome.codes == [0], outcome.said
    kept = load_file(drafts["eagle3"] / "model.safetensors")
    assert torch.equal(tensors(run)["d2t"], kept["d2t"]) and torch.equal(tensors(run)["t2d"], kept["t2d"])
    assert not torch.equal(kept["d2t"], load_file(run / "samples/vocab_map.safetensors")["d2t"])
    assert "keeps its own 128 tokens: they cover" in outcome.said[0] and "the 128 chosen for" in outcome.said[0]


def test_what_latest_was_is_settled_once(drafts, target, tmp_path, run):
    """Moved after the run has begun and before its first checkpoint, it changes nothing; nor does its absence."""
    place = tmp_path / "published"
    first = published(drafts["dflash"], place)
    how = METHOD["dflash"] | {"initialise": str(place), "max_steps": 2}
    place_of_its_own = place / "dflash"
    assert not place_of_its_own.exists()  # a place of one method alone is as good
    outcome = train(run, target, logs=tmp_path, interruption=Interruption(1, number=9), **how)
    assert outcome.codes == [-9]
    second = published(exported("dflash", target, tmp_path / "next", seed=8), place)
    assert first != second
    outcome = train(run, target, logs=tmp_path, **how)
    assert outcome.codes == [0] and f"at {first}" in outcome.said[0], outcome.said
    shutil.rmtree(place)
    assert "already done" in train(run, target, logs=tmp_path, **how).said[0]
    began = start_of(run)
    assert began["inputs"]["version"] == first and len(began["inputs"]["sha256"]) == 64


def test_where_it_began_stands_in_the_drafts_lineage(drafts, target, tmp_path, run):
    place = tmp_path / "published"
    version = published(drafts["dspark"], place / "dspark")  # as publish_draft.py places it
    how = METHOD["dspark"] | {"initialise": str(place), "max_steps": 2}
    assert train(run, target, logs=tmp_path, **how).codes == [0]
    store, name, checkpoint = find_checkpoint(f"{run}/checkpoints")
    marker, _ = extract(store, name, checkpoint, store.at("draft"), target=target)
    began = marker.facts["training"]["start"]
    assert (began["version"], began["method"], began["initialise"]) == (version, "dspark", str(place))


def test_a_place_without_a_draft_yet_is_told_and_begun_otherwise(drafts, target, tmp_path, run):
    place = tmp_path / "published"
    how = METHOD["dspark"] | {"initialise": str(place), "max_steps": 2}
    assert "no draft is there; set initialise_else" in refused(train(run, target, logs=tmp_path, **how))
    how |= {"initialise_else": "target"}
    published(drafts["eagle3"], place)  # another method's is none
    outcome = train(run, target, logs=tmp_path, interruption=Interruption(1), **how)
    assert outcome.codes == [143] and "has no DSpark draft to begin from yet: it begins as target" in outcome.said[0]
    published(drafts["dspark"], place / "dspark")  # too late for this run
    outcome = train(run, target, logs=tmp_path, **how)
    assert outcome.codes == [0] and "begins as target" in outcome.said[0]
    plain = prepared_run(tmp_path / "plain", vocab_size=319, documents=8)
    assert train(plain, target, logs=tmp_path, **how | {"initialise": "target", "initialise_else": None}).codes == [0]
    assert losses(run) == losses(plain)


def test_only_one_rank_of_several_asks_the_source(drafts, target, tmp_path, run, monkeypatch):
    """Each reads it in another process; what they asked for is what they wrote down."""
    from spec import warm_start

    asked, resolve = tmp_path / "asked", warm_start.resolve

    def noted(*given):
        with open(asked, "a") as file:
            file.write("asked\n")
        return resolve(*given)

    monkeypatch.setattr(warm_start, "resolve", noted)
    one = prepared_run(tmp_path / "one", vocab_size=319, documents=8)
    how = METHOD["dspark"] | {"initialise": str(drafts["dflash"]), "max_steps": 2}
    outcome = train(run, target, logs=tmp_path, ranks=2, **how)
    assert outcome.codes == [0, 0], outcome.said
    assert asked.read_text() == "asked\n"
    assert "begins anew" in outcome.said[0] and not outcome.said[1].strip()
    assert train(one, target, logs=tmp_path, **how, batch_size=2).codes == [0]
    for here, there in zip(losses(one), losses(run), strict=True):
        assert here == pytest.approx(there, rel=1e-4)


def test_a_run_in_s3_from_a_place_in_s3(drafts, target, tmp_path, bucket, run):
    from spec.storage import open_store

    version = published(drafts["dflash"], f"s3://{bucket}/drafts")
    url = f"s3://{bucket}/run"
    store = open_store(url)
    for path in (run / "samples").rglob("*"):
        if path.is_file():
            store.upload(path.relative_to(run).as_posix(), path)
    how = METHOD["dflash"] | {
        "initialise": f"s3://{bucket}/drafts",
        "max_steps": 2,
        "scratch": str(tmp_path / "scratch"),
    }
    outcome = train(url, target, logs=tmp_path, **how)
    assert outcome.codes == [0] and f"at {version}" in outcome.said[0], outcome.said
    assert store.exists("start/model.safetensors")


def test_a_draft_of_others_on_a_hub(drafts, target, tmp_path, hub, run):
    folder = in_several_files(as_others_publish(shutil.copytree(drafts["dflash"], tmp_path / "theirs")))
    hub.create("models/ORG/NAME")
    commit = hub.commit("models/ORG/NAME", {path.name: path.read_bytes() for path in folder.iterdir()})
    how = METHOD["dflash"] | {"initialise": "hf://ORG/NAME", "max_steps": 2}
    outcome = train(run, target, logs=tmp_path, **how)
    assert outcome.codes == [0] and f"at {commit}" in outcome.said[0], outcome.said
    how |= {"initialise": "hf://ORG/NONE", "overwrite": True}
    assert "no draft is there" in refused(train(run, target, logs=tmp_path, **how))


@pytest.mark.parametrize(
    ("method", "source", "more", "told"),
    [
        ("eagle3", "dflash", {}, "a draft of DFlash is there; EAGLE-3 begins from one of EAGLE-3"),
        ("dflash", "dspark", {}, "a draft of DSpark is there; DFlash begins from one of DFlash"),
        ("dspark", "eagle3", {}, "a draft of EAGLE-3 is there; DSpark begins from one of DSpark or DFlash"),
        ("dflash", "dflash", {"layers": 2}, "num_hidden_layers 1, the one to be trained 2; set layers=1"),
        ("eagle3", "eagle3", {"draft_vocab_size": 64}, "set draft_vocab_size=128"),
        ("eagle3", None, {"initialise": "./nowhere"}, "initialise=./nowhere: no draft is there"),
        ("eagle3", None, {"initialise": "traget"}, "initialise='traget'; it is random, target, or where a draft is"),
        ("eagle3", None, {"initialise_else": "random"}, "initialise_else=random without a place"),
        ("eagle3", None, {"initialise": "target", "draft": {"fc_norm": True}}, "take draft.fc_norm=false"),
        ("dflash", None, {"initialise": "target", "layers": 9}, "has others or fewer; take initialise=random"),
    ],
)
def test_what_cannot_begin_is_one_line_before_the_target_is_loaded(
    drafts, target, tmp_path, method, source, more, told
):
    """The target there is only a config: whatever asked for its weights would say so."""
    run = prepared_run(tmp_path / "run", vocab_size=319)
    (tmp_path / "target").mkdir()
    shutil.copy(target / "config.json", tmp_path / "target")
    how = METHOD[method] | ({"initialise": str(drafts[source])} if source else {}) | more
    assert told in refused(train(run, tmp_path / "target", logs=tmp_path, ranks=2 if source == "dspark" else 1, **how))
    assert not (run / "start/model.safetensors").exists()


def test_a_damaged_draft_is_named(drafts, target, tmp_path, run):
    there = shutil.copytree(drafts["dflash"], tmp_path / "there")
    data = bytearray((there / "model.safetensors").read_bytes())
    data[-4:] = b"\1\2\3\4"
    (there / "model.safetensors").write_bytes(bytes(data))
    line = refused(train(run, target, logs=tmp_path, **METHOD["dflash"] | {"initialise": str(there)}))
    assert f"initialise={there}: model.safetensors:" in line and "not the values that were exported" in line


def test_another_targets_draft_is_refused_by_name(target, tmp_path, run):
    named = {"run": {"target": {"model": "ORG/OTHER"}, "dataset": {}, "sampling": {}}}
    there = exported("dflash", target, tmp_path / "there", lineage=named)
    (run / "run.json").write_text(json.dumps({"target": {"model": "ORG/NAME"}, "dataset": {}, "sampling": {}}))
    line = refused(train(run, target, logs=tmp_path, **METHOD["dflash"] | {"initialise": str(there)}))
    assert "was trained for ORG/OTHER, and the answers of this run are ORG/NAME's" in line


def test_a_trained_run_does_not_begin_from_elsewhere_unasked(drafts, target, tmp_path, run):
    how = METHOD["dflash"] | {"max_steps": 2}
    assert train(run, target, logs=tmp_path, **how).codes == [0]
    how |= {"initialise": str(drafts["dflash"])}
    assert "is of another training: it began otherwise" in refused(train(run, target, logs=tmp_path, **how))
    assert train(run, target, logs=tmp_path, **how, overwrite=True).codes == [0]
    other = how | {"initialise": str(exported("dflash", target, tmp_path / "other", seed=9))}
    assert f"it began from {drafts['dflash']}" in refused(train(run, target, logs=tmp_path, **other))
    assert start_of(run)["settings"]["initialise"] == str(drafts["dflash"])


def test_training_from_a_draft_beats_training_from_nothing(target, tmp_path):
    """Trained for a while, stopped, exported, begun again: the first loss goes on where the other ended."""
    run = prepared_run(tmp_path / "run", vocab_size=319)
    assert train(run, target, logs=tmp_path, **METHOD["dflash"], epochs=6).codes == [0]
    store, name, checkpoint = find_checkpoint(f"{run}/checkpoints")
    extract(store, name, checkpoint, store.at("draft"), target=target, dtype="float32")
    again = prepared_run(tmp_path / "again", vocab_size=319)
    assert train(again, target, logs=tmp_path, **METHOD["dflash"], initialise=f"{run}/draft", max_steps=2).codes == [0]
    first, last = losses(run)[0][0], losses(run)[-1][0]
    assert abs(losses(again)[0][0] - last) < 0.3 * (first - last)
