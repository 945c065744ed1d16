"""Going back to an earlier version, and deleting old ones, runs and checkpoints: never what is in use."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from spec.cluster.in_flight import naming
from spec.errors import BadInput, PassingFault
from spec.publishing import retention
from spec.publishing.manifest import MANIFEST
from spec.publishing.versions import StorePlace, fetch, publish
from spec.storage import Store, open_store
from spec.storage.markers import Marker, write_marker
from tests.unit.cluster.fake import FakeCluster

ROOT = Path(__file__).parents[3]


def quiet(line: str) -> None:
    pass


def nobody(text: str) -> str:
    return ""


@pytest.fixture(params=["directory", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "directory":
        return open_store(tmp_path / "published")
    return open_store(f"s3://{request.getfixturevalue('bucket')}/drafts")


def versions(store: Store, tmp_path: Path, *contents: str) -> list[str]:
    """Names of versions that were published in this order."""
    names = []
    for content in contents:
        path = tmp_path / "file"
        path.write_text(content)
        names.append(publish(store.url, "draft", {"config.json": path}, quiet).version)
    return names


def tool(*words: object) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "KUBECONFIG": "/dev/null"}
    command = [sys.executable, *map(str, words)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment, check=False)


# -- back to an earlier one --------------------------------------------------------------------------------------------


def test_back_goes_to_what_was_the_latest_before_and_once_more_one_further(store: Store, tmp_path: Path):
    one, two, three = versions(store, tmp_path, "one", "two", "three")
    place = StorePlace(store)
    assert place.roll_back(None) == (three, two)
    fetch(store.url, "draft", tmp_path / "here", say=quiet)
    assert (tmp_path / "here/config.json").read_text() == "two"
    assert place.roll_back(None) == (two, one) and place.order() == [one]
    with pytest.raises(BadInput, match=f"names no version before {one}; say which with --to"):
        place.roll_back(None)
    assert place.roll_back(three) == (one, three)  # forward again, by its name


def test_a_version_published_again_is_the_latest_once(store: Store, tmp_path: Path):
    one, two, _ = versions(store, tmp_path, "one", "two", "one")
    assert StorePlace(store).order() == [one, two]


def test_back_to_a_version_that_is_not_whole_is_refused(store: Store, tmp_path: Path):
    one, two = versions(store, tmp_path, "one", "two")
    with pytest.raises(BadInput, match="no version ffff; it has"):
        StorePlace(store).roll_back("ffff")
    with pytest.raises(BadInput, match=f"--to {two}: it is the latest already"):
        StorePlace(store).roll_back(two)
    store.delete(f"versions/{one}/config.json")
    with pytest.raises(BadInput, match=f"version {one} has lost files"):
        StorePlace(store).roll_back(one)
    assert StorePlace(store).latest() == two


def test_back_skips_what_is_gone_or_not_whole(store: Store, tmp_path: Path):
    one, two, three, four, five = versions(store, tmp_path, "one", "two", "three", "four", "five")
    store.delete(f"versions/{four}/manifest.json")
    store.delete(f"versions/{three}/config.json")
    store.write(f"versions/{two}/manifest.json", b"{")
    said: list[str] = []
    place = StorePlace(store)
    assert place.roll_back(None, said.append) == (five, one) and place.order() == [one]
    faults = {four: "is gone", three: "has lost files", two: "is damaged"}
    assert said == [f"skipped: version {name} {fault}" for name, fault in faults.items()]


def test_back_where_none_before_is_left_names_the_option(store: Store, tmp_path: Path):
    one, two = versions(store, tmp_path, "one", "two")
    retention.delete(store, retention.of_versions(store, 1, nobody))
    said: list[str] = []
    with pytest.raises(BadInput, match=f"no version before {two} that is there and whole; say which with --to"):
        StorePlace(store).roll_back(None, said.append)
    assert said == [f"skipped: version {one} is gone"] and StorePlace(store).latest() == two


def test_back_while_somebody_publishes_is_tried_again_by_who_asked(store: Store, tmp_path: Path, monkeypatch):
    versions(store, tmp_path, "one", "two")
    monkeypatch.setattr(type(store), "replace", lambda *args: False)
    with pytest.raises(PassingFault, match="was changed meanwhile"):
        StorePlace(store).roll_back(None)


def test_a_pointer_of_before_knows_no_order(store: Store, tmp_path: Path):
    one, two = versions(store, tmp_path, "one", "two")
    store.write("latest", json.dumps({"version": two}).encode())
    assert StorePlace(store).latest() == two
    with pytest.raises(BadInput, match="say which with --to"):
        StorePlace(store).roll_back(None)
    assert StorePlace(store).roll_back(one) == (two, one)


def test_the_command_goes_back(tmp_path: Path):
    store = open_store(tmp_path / "published")
    one, two = versions(store, tmp_path, "one", "two")
    done = tool("tools/roll_back.py", store.url)
    assert (done.returncode, done.stdout) == (0, f"{store.url}: latest is {one} again, no longer {two}\n")
    assert tool("tools/roll_back.py", "hf://ORG/NAME").returncode == 2


# -- versions ----------------------------------------------------------------------------------------------------------


def reasons(items: list[retention.Item]) -> dict[str, str]:
    return {item.folder.rpartition("/")[2]: item.kept for item in items}


def test_the_newest_versions_stay_and_the_rest_goes_manifest_first(store: Store, tmp_path: Path, monkeypatch):
    one, two, three = versions(store, tmp_path, "one", "two", "three")
    items = retention.of_versions(store, 2, nobody)
    assert reasons(items) == {three: "latest", two: "one of the newest 2", one: ""}
    order = []
    remove = type(store).delete
    monkeypatch.setattr(type(store), "delete", lambda self, key: (order.append(key), remove(self, key)))
    store.write(f"versions/{one}/weights", b"...")
    retention.delete(store, items)
    assert order[-1] == "weights" and {item.key.split("/")[1] for item in store.list("versions")} == {two, three}


def test_a_version_that_is_gone_takes_no_place_of_those_that_stay(store: Store, tmp_path: Path):
    one, two, three = versions(store, tmp_path, "one", "two", "three")
    store.delete(f"versions/{two}/{MANIFEST}")  # a deletion that was killed leaves the rest
    kept = {name for name, why in reasons(retention.of_versions(store, 2, nobody)).items() if why}
    assert kept >= {one, three}


def test_after_going_back_the_latest_stays_however_old(store: Store, tmp_path: Path):
    one, two, three = versions(store, tmp_path, "one", "two", "three")
    StorePlace(store).roll_back(one)
    found = reasons(retention.of_versions(store, 1, nobody))
    assert found[one] == "latest" and not found[two].startswith("one of")


def test_a_version_that_a_workflow_in_flight_names_stays(store: Store, tmp_path: Path):
    one, two, _ = versions(store, tmp_path, "one", "two", "three")
    found = reasons(retention.of_versions(store, 1, lambda text: "weekly-1" if text == one else ""))
    assert found[one] == "workflow weekly-1 is in flight and names it" and found[two] == ""


@pytest.mark.parametrize(("finished_at", "stays"), [("2020-01-01T00:00:00Z", False), (None, True), ("2099", True)])
def test_a_version_that_may_be_about_to_be_published_stays(store: Store, tmp_path: Path, finished_at, stays):
    versions(store, tmp_path, "one")
    store.write("versions/beef/model.safetensors", b"half")
    if finished_at:
        marker = Marker(step="extract", digest="", settings={}, inputs={}, finished_at=finished_at)
        store.write("versions/beef/draft.json", marker.model_dump_json().encode())
    found = reasons(retention.of_versions(store, 1, nobody))
    assert found["beef"] == ("perhaps about to be published" if stays else "")


def test_a_place_without_versions_is_refused(store: Store):
    with pytest.raises(BadInput, match="nothing is published here"):
        retention.of_versions(store, 1, nobody)


# -- runs and checkpoints ----------------------------------------------------------------------------------------------


def add_run(store: Store, name: str, finished: bool = True) -> None:
    store.write(f"{name}/run.json", b"{}")
    if finished:
        write_marker(store.at(f"{name}/samples"), "samples.json", Marker.of("prepare", {}, {}))


def test_the_newest_runs_those_in_flight_and_those_unfinished_stay(store: Store, monkeypatch):
    for at, name in enumerate("abcd"):
        monkeypatch.setattr("time.gmtime", lambda at=at: (2026, 1, 1 + at, 0, 0, 0, 0, 0, 0))
        add_run(store, name)
    add_run(store, "begun", finished=False)
    store.write("no-run/file", b"")
    items = retention.of_runs(store, 1, lambda text: "w" if text == f"{store.url}/b" else "")
    found = reasons(items)
    assert (found["d"], found["c"], found["a"]) == ("one of the newest 1", "", "")
    assert found["b"] == "workflow w is in flight and names it" and "by hand" in found["begun"]
    retention.delete(store, items)
    assert {entry.key.split("/")[0] for entry in store.list()} == {"b", "d", "begun", "no-run"}


def test_a_place_that_holds_no_runs_is_refused(store: Store, tmp_path: Path):
    add_run(store, "one")
    with pytest.raises(BadInput, match="is a run itself"):
        retention.of_runs(store.at("one"), 1, nobody)
    versions(store, tmp_path, "one")
    with pytest.raises(BadInput, match="versions are published here"):
        retention.of_runs(store, 1, nobody)


def test_a_directory_that_is_not_there_is_refused(tmp_path: Path):
    done = tool("tools/retain.py", "runs", tmp_path / "none", "--keep", 1, "--no-cluster")
    assert (done.returncode, done.stdout) == (2, "") and f"{tmp_path}/none: no such directory" in done.stderr
    (tmp_path / "none").mkdir()
    assert retention.of_runs(open_store(tmp_path / "none"), 1, nobody) == []


def test_the_newest_whole_checkpoints_the_best_and_the_drafts_stay(store: Store):
    estimates = {50: 1.2, 100: 1.1, 200: 1.6, 300: 1.5}
    for step in (*estimates, 400):
        store.write(f"checkpoints/step-{step:06d}/part", b"..")
        if step < 400:
            marker = Marker.of("train", {}, {}, facts={"estimated_accept_length": estimates[step]})
            write_marker(store.at(f"checkpoints/step-{step:06d}"), "checkpoint.json", marker)
    write_marker(store.at("draft"), "draft.json", Marker.of("extract", {}, {"checkpoint": "step-000100"}))
    store.write("checkpoints/metrics.jsonl", b"")
    store.write("checkpoints/step-abc/part", b"of somebody else")
    store.write("checkpoints/step-1_0/part", b"of somebody else")
    items = retention.of_checkpoints(store, 1, nobody)
    expected = {"step-000400": "", "step-000300": "one of the newest 1", "step-000200": "the best by its estimate"}
    assert reasons(items) == expected | {"step-000100": "the draft is of it", "step-000050": ""}
    with pytest.raises(BadInput, match="workflow w is in flight and names it; its training keeps"):
        retention.of_checkpoints(store, 1, lambda text: "w")


# -- what is in flight -------------------------------------------------------------------------------------------------


def workflow(name: str, phase: str, **spec: object) -> dict:
    return {"metadata": {"name": name}, "spec": spec, "status": {"phase": phase, "nodes": {"1": {"inputs": spec}}}}


def test_a_workflow_that_is_not_over_names_what_it_was_given_or_found():
    found = {"parameters": [{"name": "run", "value": "s3://b/runs/a"}]}
    cron = {"metadata": {"name": "cron"}, "spec": {"run": "{{workflow.name}}"}, "status": {"nodes": {"1": found}}}
    over = workflow("over", "Succeeded", run="s3://b/runs/c")
    find = naming(FakeCluster(workflow=[over, workflow("now", "Running", run="s3://b/runs/d/draft"), cron]))  # type: ignore[arg-type]
    assert find("s3://b/runs/a") == "cron" and find("s3://b/runs/d") == "now"
    assert find("s3://b/runs")  # what holds a run in flight is named with it
    assert find("s3://b/runs/c") == find("s3://b/run") == ""


@pytest.mark.parametrize("stored", ["storedWorkflowTemplateSpec", "storedTemplates"])
def test_a_workflow_that_waits_for_its_turn_names_what_its_template_gives_it(stored: str):
    given = {"arguments": {"parameters": [{"name": "run", "value": "s3://b/runs/a"}]}}
    status = {"phase": "Pending", stored: given if stored.endswith("Spec") else {"namespaced/pipeline/run": given}}
    waiting = {"spec": {"workflowTemplateRef": {"name": "pipeline"}}, "status": status}
    over = {"metadata": {"name": "over"}, **waiting, "status": status | {"phase": "Failed"}}
    find = naming(FakeCluster(workflow=[over, {"metadata": {"name": "waiting"}, **waiting}]))  # type: ignore[arg-type]
    assert find("s3://b/runs/a") == "waiting" and find("s3://b/runs/b") == ""
    assert not naming(FakeCluster(workflow=[over]))("s3://b/runs/a")  # type: ignore[arg-type]


# -- the command -------------------------------------------------------------------------------------------------------


def test_the_command_says_first_and_deletes_when_told(tmp_path: Path):
    store = open_store(tmp_path / "published")
    one, two = versions(store, tmp_path, "one", "two")
    words = ("tools/retain.py", "versions", store.url, "--keep", 1, "--no-cluster")
    done = tool(*words)
    assert done.returncode == 0 and f"versions/{one}  0.00 GiB  goes" in done.stdout and "1 of 2" in done.stdout
    assert StorePlace(store).resolve(one)
    assert "deleted" in tool(*words, "--delete").stdout
    assert {path.name for path in (tmp_path / "published/versions").iterdir()} == {two}
    assert StorePlace(store).resolve(two)


@pytest.mark.parametrize(
    ("words", "said"),
    [(("--keep", 0, "--no-cluster"), "--keep"), (("--keep", 1), "no cluster to talk to")],
)
def test_what_cannot_be_meant_deletes_nothing(tmp_path: Path, words: tuple, said: str):
    store = open_store(tmp_path / "published")
    versions(store, tmp_path, "one", "two")
    done = tool("tools/retain.py", "versions", store.url, *words, "--delete")
    assert done.returncode == 2 and said in done.stderr and len(store.list("versions")) == 4
