"""Drafts that others published, of every method: verified and evaluated without having been trained here."""

import json
import shutil

import numpy as np
import pytest
from typer.testing import CliRunner

from spec.errors import BadInput
from spec.evaluation.settings import Settings
from spec.evaluation.step import Evaluation
from spec.export.verify import target_facts
from spec.methods import METHODS
from spec.methods.tensors import read_tensors
from spec.publishing.adopt import bring, served_config, verify_published
from spec.report import card
from spec.storage import open_store
from spec.storage.markers import Marker, describe_files, read_marker, write_marker
from tests.damaged_drafts import change_config
from tests.existing_drafts import METHOD, as_others_publish, exported, in_several_files
from tests.prepared import prepared_run
from tests.tiny_models import save_tiny_target
from tools import evaluate_draft, verify_draft

BLOCK = ("feature ids", "mask token", "block_size", "q/k norms")
UNCHECKED = {"eagle3": ("which norm is which",), "dflash": BLOCK, "dspark": (*BLOCK, "Markov tables W1 and W2")}


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    return save_tiny_target("llama", tmp_path_factory.mktemp("target"))


@pytest.fixture(scope="module")
def ours(target, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ours")
    return {method: exported(method, target, folder / method, dtype="float32") for method in METHOD}


@pytest.fixture(params=METHOD)
def published(request, ours, tmp_path):
    """A draft of each method, and the same one as others publish it."""
    method = request.param
    return method, ours[method], as_others_publish(shutil.copytree(ours[method], tmp_path / "published"))


@pytest.fixture
def run(tmp_path):
    """With two held-out prompts and no draft."""
    store = open_store(tmp_path / "run")
    rows = [{"input_ids": [65, 66, at], "messages": [{"role": "user", "content": "ABC"}]} for at in (67, 68)]
    store.write("samples/prompts.jsonl", "\n".join(map(json.dumps, rows)).encode())
    files = describe_files(tmp_path / "run/samples", ["prompts.jsonl"])
    marker = Marker(step="prepare", digest="", settings={}, inputs={}, files=files)
    write_marker(store.at("samples"), "samples.json", marker)
    return store


def tool(main, *words):
    """Its exit as a user sees it: (output, error)."""
    import typer

    app = typer.Typer()
    app.command()(main)
    done = CliRunner().invoke(app, [str(word) for word in words])
    return done.output, done.exception


def test_the_tool_verifies_what_others_published(published, target):
    method, _, folder = published
    said, error = tool(verify_draft.main, folder, "--target", target)
    assert error is None and f"a whole {METHODS[method].title} draft that fits the target" in said, (said, error)
    [unchecked] = [line for line in said.splitlines() if "not checked, only its training knew" in line]
    assert all(word in unchecked for word in UNCHECKED[method]), unchecked


def test_of_an_export_of_ours_nothing_is_left_unchecked(ours, target):
    said, error = tool(verify_draft.main, ours["dspark"], "--target", target)
    assert error is None and "equal to the trained draft" in said and "not checked" not in said


def test_without_its_target_it_cannot_be_verified(published):
    _, error = tool(verify_draft.main, published[2])
    assert isinstance(error, BadInput) and "name the target with --target" in str(error)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"hidden_size": 32}, "hidden_size"),
        ({"num_attention_heads": 8}, r"by config.json it is"),
        ({"architectures": ["Other"]}, "architectures is"),
    ],
)
def test_what_does_not_fit_is_named(published, target, changes, named):
    folder = published[2]
    change_config(folder, **changes)
    _, error = tool(verify_draft.main, folder, "--target", target)
    assert isinstance(error, BadInput)
    assert str(folder) in str(error) or named == "architectures is"
    with pytest.raises(BadInput, match=named):
        raise error


def stretched(kind, **more):
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 1e4, **more}}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"GROUP": [1]}, r"GROUP is \[1\]; it must be an object"),
        ({"GROUP": "x"}, "GROUP is 'x'; it must be an object"),
        ({"rope_scaling": "x"}, "rope_scaling is 'x'; it must be an object"),
        ({"rope_parameters": [1]}, r"rope_parameters is \[1\]; it must be an object"),
        ({"rope_theta": "x"}, "rope_theta is 'x'; it must be written out, as a number above 0"),
        (stretched("nonsense"), "rope_parameters.rope_type is 'nonsense'; it is one of default, linear"),
        (stretched(["yarn"]), r"rope_parameters.rope_type is \['yarn'\]; it is one of"),
        (stretched("yarn"), "rope_parameters.factor is None; it must be written out, as a number above 0"),
        (stretched("longrope", short_factor=[1.0] * 7), "rope_parameters.short_factor is no list of 8 numbers"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000; it must be a whole number from 1 to 8"),
        ({"num_hidden_layers": "2"}, "num_hidden_layers is '2'; it must be a whole number from 1 to 8"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0; it must be a whole number from 1 to 8"),
        ({"hidden_size": None, "vocab_size": None}, "hidden_size is None; it must be written out"),
    ],
)
def test_a_config_of_another_form_is_one_line_that_names_the_field(published, target, changes, named):
    """For a run that begins from such a draft too: it reads the config alone, with `served_config`, before all else."""
    method, _, folder = published
    group = "eagle_config" if method == "eagle3" else "dflash_config"
    changes = {name.replace("GROUP", group): value for name, value in changes.items()}
    change_config(folder, **changes)
    with pytest.raises(BadInput, match=named.replace("GROUP", group)) as refused:
        verify_published(folder, target)
    assert "\n" not in str(refused.value)
    with pytest.raises(BadInput, match=named.replace("GROUP", group)):
        served_config(folder, METHODS[method], target_facts(METHODS[method], target))


@pytest.mark.parametrize("method", ["dflash", "dspark"])
def test_a_block_longer_than_the_targets_context_is_refused_before_it_is_computed(method, ours, target, tmp_path):
    folder = as_others_publish(shutil.copytree(ours[method], tmp_path / "theirs"), block_size=10**9)
    with pytest.raises(BadInput, match="block_size is 1000000000; a block fits the target's context, which has 512"):
        verify_published(folder, target)


def test_a_dflash_block_that_drafts_nothing_is_refused(ours, target, tmp_path):
    folder = as_others_publish(shutil.copytree(ours["dflash"], tmp_path / "theirs"), block_size=1)
    with pytest.raises(BadInput, match="block_size is 1, and a DFlash draft's row 0 drafts nothing: the smallest is 2"):
        verify_published(folder, target)


def test_rope_theta_in_neither_spelling_is_refused_where_the_methods_drafts_have_one(published, target):
    """A block draft's is its target's and always named; EAGLE-3's may be left out, and the server takes 10000."""
    method, _, folder = published
    change_config(folder, rope_theta=None)
    if method == "eagle3":
        assert verify_published(folder, target)["rope_theta"] == 10000
        return
    with pytest.raises(BadInput, match="rope_theta is missing, and rope_parameters.rope_theta too"):
        verify_published(folder, target)
    change_config(folder, rope_parameters={"rope_type": "default", "rope_theta": 10000.0})
    assert verify_published(folder, target)["rope_theta"] == 10000


def test_layer_ids_that_are_no_list_are_named(published, target):
    method, _, folder = published
    three = {"use_aux_hidden_state": True, "eagle_aux_hidden_state_layer_ids": 3}
    block = {"mask_token_id": 319, "target_layer_ids": 3}
    change_config(folder, **({"eagle_config": three} if method == "eagle3" else {"dflash_config": block}))
    with pytest.raises(BadInput, match="layer_ids is 3; "):
        verify_published(folder, target)


def test_a_target_of_another_depth_is_named(published, tmp_path):
    deeper = save_tiny_target("llama", tmp_path / "deeper", num_hidden_layers=12)
    _, error = tool(verify_draft.main, published[2], "--target", deeper)
    assert isinstance(error, BadInput) and ("12 layers" in str(error) or "the target has 12" in str(error))


def test_cut_short_it_is_named(published, target):
    weights = published[2] / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    _, error = tool(verify_draft.main, published[2], "--target", target)
    assert isinstance(error, BadInput) and "truncated" in str(error)


def test_weights_in_several_files_are_those_of_one(published, target, run):
    _, ours, folder = published
    in_several_files(folder)
    said, error = tool(verify_draft.main, folder, "--target", target)
    assert error is None and "a whole" in said, (said, error)
    assert len(bring(run, str(folder), target).inputs["sha256"]) == 64
    tensors, wanted = (read_tensors(path / "model.safetensors") for path in (run.root / "draft", ours))
    assert {name: its.sha256() for name, its in tensors.items()} == {name: its.sha256() for name, its in wanted.items()}


def _without_a_file(folder, index):
    (folder / "model-00002-of-00002.safetensors").unlink()


def _with_a_tensor_twice(folder, index):
    shutil.copy(folder / "model-00001-of-00002.safetensors", folder / "model-00002-of-00002.safetensors")


def _with_a_file_outside(folder, index):
    index["weight_map"]["norm.weight"] = "../elsewhere.safetensors"


def _without_a_map(folder, index):
    del index["weight_map"]


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (_without_a_file, "model-00002-of-00002.safetensors: missing"),
        (_with_a_tensor_twice, "is in another of the draft's files too"),
        (_with_a_file_outside, "names ../elsewhere.safetensors"),
        (_without_a_map, "not an index of weights"),
    ],
)
def test_what_is_wrong_with_several_files_is_named(damage, named, ours, target, tmp_path):
    folder = in_several_files(as_others_publish(shutil.copytree(ours["dspark"], tmp_path / "theirs")))
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    damage(folder, index)
    path.write_text(json.dumps(index))
    _, error = tool(verify_draft.main, folder, "--target", target)
    assert isinstance(error, BadInput) and named in str(error), error


def test_it_is_evaluated_as_the_one_that_was_exported(published, target, run):
    """The same drafts are kept of it, and its card says where it is from; brought again it is the one that is there."""
    method, ours, folder = published
    said, error = tool(
        evaluate_draft.main,
        *(run.url, "--target", target, "--draft", folder, "--device", "cpu"),
        *("--max-new-tokens", 8, "--without", "baseline", "--without", "speculative"),
    )
    assert error is None, (said, error)
    served = frozenset(("baseline", "speculative"))
    evaluation = Evaluation(run, target, Settings(max_new_tokens=8, without=served))
    there = evaluation.parts["offline"]
    tensors, wanted = (read_tensors(path / "model.safetensors") for path in (run.root / "draft", ours))
    assert {name: its.sha256() for name, its in tensors.items()} == {name: its.sha256() for name, its in wanted.items()}
    other = open_store(run.root.parent / "other")
    shutil.copytree(run.root / "samples", other.root / "samples")
    shutil.copytree(ours, other.root / "draft")
    alone = Evaluation(other, target, Settings(max_new_tokens=8))
    alone.measure_offline("cpu")
    assert there["outputs"] == alone.parts["offline"]["outputs"]
    assert there["histograms"] == alone.parts["offline"]["histograms"]
    card.write(run)
    assert str(folder) in run.read("draft/README.md").decode()

    shutil.rmtree(folder)
    assert bring(run, str(folder), target).identity == evaluation.draft.identity
    with pytest.raises(BadInput, match="holds another draft than ./elsewhere"):
        bring(run, "./elsewhere", target)
    with pytest.raises(BadInput, match="no draft is there"):
        bring(run, "./elsewhere", target, overwrite=True)


@pytest.mark.parametrize("method", ["dflash", "dspark"])
@pytest.mark.parametrize("where", ["train/input_ids.npy", "held_out/input_ids.npy", "held_out/prompts.jsonl"])
def test_a_mask_token_that_the_runs_samples_have_is_refused_in_trainings_words(method, where, ours, target, tmp_path):
    run = prepared_run(tmp_path / "run", vocab_size=319)
    path, mask = run / "samples" / where, 319
    if where.endswith(".npy"):
        ids = np.load(path)
        ids[0] = mask  # a prompt's: it bears no loss
        np.save(path, ids)
    else:
        path.write_text(json.dumps({"input_ids": [65, mask], "messages": []}) + "\n")
    marker = read_marker(open_store(run / "samples"), "samples.json")
    files = describe_files(run / "samples", [*marker.files, where])
    write_marker(open_store(run / "samples"), "samples.json", marker.model_copy(update={"files": files}))
    folder = as_others_publish(shutil.copytree(ours[method], tmp_path / "theirs"))
    with pytest.raises(BadInput, match=f"samples/{where} has token 319, which is mask_token_id: a row of the target's"):
        bring(open_store(run), str(folder), target)
    assert not (run / "draft").exists()


def test_one_on_a_hub_is_verified_and_brought_at_a_commit(ours, target, run, hub, tmp_path):
    folder = as_others_publish(shutil.copytree(ours["dspark"], tmp_path / "theirs"))
    hub.create("models/ORG/NAME")
    commit = hub.commit("models/ORG/NAME", {path.name: path.read_bytes() for path in folder.iterdir()})
    said, error = tool(verify_draft.main, "hf://ORG/NAME", "--target", target)
    assert error is None and "DSpark" in said
    assert bring(run, "hf://ORG/NAME", target).inputs["version"] == commit
