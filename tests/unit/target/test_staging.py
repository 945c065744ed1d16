"""Staging a model: the pinned commit's files and no others, verified, whole or not there, and offline afterwards."""

import json
import sys
from inspect import unwrap
from subprocess import run

import pytest
from huggingface_hub.utils._http import http_backoff, http_stream_backoff

from spec.errors import BadInput, PassingFault
from spec.storage import open_store
from spec.storage.markers import read_marker
from spec.target.checkpoint_files import check_staged_files
from spec.target.staging import INDEX, STAGED, stage

MODEL = "ORG/NAME"
SHARDS = {f"model-0000{i}-of-00002.safetensors": bytes([i]) * 5000 for i in (1, 2)}
FILES = {
    "config.json": b'{"model_type": "llama"}',
    "tokenizer.json": b"{}",
    INDEX: json.dumps({"weight_map": {"a": [*SHARDS][0], "b": [*SHARDS][1]}}).encode(),
    **SHARDS,
}
OTHER_FORMS = {"original/consolidated.00.pth": b"1", "pytorch_model.bin": b"2", ".gitattributes": b"3"}


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    """The hub's library asks six times, and waits 23 s between them."""
    for ask in (http_backoff, http_stream_backoff):
        monkeypatch.setitem(unwrap(ask).__kwdefaults__, "base_wait_time", 0)


@pytest.fixture
def commit(hub):
    hub.create(f"models/{MODEL}")
    return hub.commit(f"models/{MODEL}", FILES | OTHER_FORMS)


@pytest.fixture(params=["directory", "s3"])
def to(request, tmp_path):
    if request.param == "directory":
        return str(tmp_path / "models/target")
    return f"s3://{request.getfixturevalue('bucket')}/models/target"


def held(to):
    store = open_store(to)
    return {entry.key: store.read(entry.key) for entry in store.list() if entry.key != STAGED}


def watch(hub):
    """The requests that the hub gets from here on."""
    asked = []
    hub.refuse = lambda method, path: asked.append((method, path))
    return asked


@pytest.mark.parametrize("named", ["main", "commit", None])
def test_the_files_of_one_commit_and_no_other_forms_of_the_weights(hub, commit, to, named):
    marker = stage(MODEL, to, commit if named == "commit" else named)
    assert held(to) == FILES
    assert marker.inputs["commit"] == commit and marker.files.keys() == FILES.keys()
    assert read_marker(open_store(to), STAGED) == marker


def test_a_branch_stays_the_commit_that_it_was(hub, commit, to):
    stage(MODEL, to, "main")
    hub.commit(f"models/{MODEL}", FILES | {"config.json": b"{}"})
    asked = watch(hub)
    for revision in ("main", commit):
        assert stage(MODEL, to, revision).inputs["commit"] == commit
    assert held(to) == FILES and not asked  # offline, too


def test_overwrite_follows_the_branch(hub, commit, to):
    stage(MODEL, to, "main")
    new = hub.commit(f"models/{MODEL}", FILES | {"config.json": b'{"model_type": "qwen3"}'})
    assert stage(MODEL, to, "main", overwrite=True).inputs["commit"] == new
    assert held(to)["config.json"] == b'{"model_type": "qwen3"}'


def test_another_model_or_revision_there_is_refused(hub, commit, to):
    stage(MODEL, to, commit)
    for model, revision in ((MODEL, "main"), ("ORG/OTHER", commit)):
        with pytest.raises(BadInput, match=f"holds {MODEL} at {commit}; stage {model}"):
            stage(model, to, revision)


def test_broken_off_it_goes_on_with_the_next_file(hub, commit, to):
    last = [*SHARDS][1]
    hub.refuse = lambda method, path: 503 if path.endswith(last) else None
    with pytest.raises(PassingFault):
        stage(MODEL, to, "main")
    assert read_marker(open_store(to), STAGED) is None
    asked = watch(hub)
    stage(MODEL, to, "main")
    assert held(to) == FILES
    assert {path.rpartition("/")[2] for method, path in asked if "/resolve/" in path} == {last}


def test_broken_off_and_the_branch_gone_on_it_is_no_mix(hub, commit, to):
    hub.refuse = lambda method, path: 503 if path.endswith([*SHARDS][1]) else None
    with pytest.raises(PassingFault):
        stage(MODEL, to, "main")
    hub.refuse = lambda method, path: None
    newer = FILES | {[*SHARDS][0]: b"9" * 5000}
    head = hub.commit(f"models/{MODEL}", newer)
    assert stage(MODEL, to, "main").inputs["commit"] == head
    assert held(to) == newer


def test_a_file_that_came_damaged_is_thrown_away(hub, commit, to, monkeypatch):
    send = hub.server.RequestHandlerClass.send

    def damage(handler, status, body, **headers):
        if handler.command == "GET" and isinstance(body, bytes) and body == SHARDS[[*SHARDS][0]]:
            body = b"x" + body[1:]
        send(handler, status, body, **headers)

    monkeypatch.setattr(hub.server.RequestHandlerClass, "send", damage)
    with pytest.raises(PassingFault, match=f"{[*SHARDS][0]}: damaged on its way"):
        stage(MODEL, to, "main")
    assert [*SHARDS][0] not in held(to)
    monkeypatch.undo()


def test_a_directory_or_s3_is_a_source_as_well(tmp_path, hub, commit, to):
    first = stage(MODEL, str(tmp_path / "first"), "main")
    assert stage(str(tmp_path / "first"), to).inputs == first.inputs
    back = stage(to, str(tmp_path / "back"))
    assert back.files == first.files and held(tmp_path / "back") == FILES
    (tmp_path / "first" / [*SHARDS][0]).write_bytes(b"x" * 5000)
    with pytest.raises(PassingFault, match="damaged"):
        stage(str(tmp_path / "first"), str(tmp_path / "third"))
    (tmp_path / "first" / [*SHARDS][0]).unlink()
    with pytest.raises(BadInput, match=f"{[*SHARDS][0]}: missing at the source"):
        stage(str(tmp_path / "first"), str(tmp_path / "third"))


def test_a_directory_may_be_staged_in_place(tmp_path):
    for name, data in FILES.items():
        (tmp_path / name).write_bytes(data)
    stage(str(tmp_path), str(tmp_path))
    assert held(tmp_path) == FILES
    check_staged_files(tmp_path, part=0, parts=1)
    (tmp_path / [*SHARDS][0]).write_bytes(b"x" * 5000)
    with pytest.raises(BadInput, match="damaged"):
        check_staged_files(tmp_path, part=0, parts=1)


@pytest.mark.parametrize(
    ("lost", "said"), [("config.json", "no config.json"), ([*SHARDS][1], f"names {[*SHARDS][1]}, which the source")]
)
def test_what_is_no_whole_model_is_refused(hub, to, lost, said):
    hub.create(f"models/{MODEL}")
    hub.commit(f"models/{MODEL}", {name: data for name, data in FILES.items() if name != lost})
    with pytest.raises(BadInput, match=said):
        stage(MODEL, to, "main")
    assert read_marker(open_store(to), STAGED) is None


@pytest.mark.parametrize(
    ("model", "revision", "said"),
    [
        (MODEL, "v9", "no revision v9"),
        ("ORG/NOWHERE", "main", "the hub answers 404"),
        ("./nowhere", None, "no such directory"),
        ("a b", None, "Repo id must"),
    ],
)
def test_what_is_not_there_is_named(hub, commit, to, model, revision, said):
    with pytest.raises(BadInput, match=said):
        stage(model, to, revision)


def test_offline_is_said(hub, commit, to, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(BadInput, match="HF_HUB_OFFLINE is set"):
        stage(MODEL, to, "main")


def test_the_tool_tells_a_mistake_in_one_line(tmp_path):
    tool = [sys.executable, "tools/stage_model.py"]
    done = run([*tool, "./nowhere", str(tmp_path / "t")], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
