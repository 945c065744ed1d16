"""Publishing: whole or not at all, the same everywhere; fetching: one version, every byte checked."""

import json
from pathlib import Path

import boto3
import pytest

from spec.errors import BadInput, PassingFault
from spec.publishing.manifest import MANIFEST, Manifest
from spec.publishing.versions import fetch, publish
from spec.storage import open_store
from spec.storage.markers import File
from spec.storage.s3 import S3Store
from tests.hub import Hub


@pytest.fixture
def said() -> list[str]:
    return []


def files_of(folder: Path, **contents: str) -> dict[str, Path]:
    folder.mkdir(parents=True, exist_ok=True)
    files = {name.replace("__", "/").replace("_", "."): folder / name for name in contents}
    for (_, path), content in zip(files.items(), contents.values(), strict=True):
        path.write_text(content)
    return files


@pytest.fixture
def one(tmp_path: Path) -> dict[str, Path]:
    return files_of(tmp_path / "one", config_json="1", model_safetensors="one" * 1000, report__page_html="<p>")


@pytest.fixture
def two(tmp_path: Path) -> dict[str, Path]:
    return files_of(tmp_path / "two", config_json="2", model_safetensors="two" * 1000)


def content(folder: Path) -> dict[str, str]:
    return {entry.key: (folder / entry.key).read_text() for entry in open_store(folder).list() if entry.key != MANIFEST}


def test_what_is_published_is_fetched(place: str, one: dict[str, Path], tmp_path: Path, said: list[str]):
    published = publish(place, "draft", one, said.append)
    assert fetch(place, "draft", tmp_path / "here", say=said.append) == published
    assert content(tmp_path / "here") == {name: path.read_text() for name, path in one.items()}
    assert json.loads((tmp_path / "here" / MANIFEST).read_text())["version"] == published.version


def test_publishing_again_changes_nothing_and_says_so(place: str, one: dict[str, Path], said: list[str]):
    first = publish(place, "draft", one, said.append)
    said.clear()
    assert publish(place, "draft", one, said.append) == first
    assert said == [f"draft {first.version} is already published at {place}"]


def test_latest_follows_and_old_versions_stay(
    place: str, one: dict[str, Path], two: dict[str, Path], tmp_path: Path, said: list[str]
):
    first, second = publish(place, "draft", one, said.append), publish(place, "draft", two, said.append)
    assert fetch(place, "draft", tmp_path / "latest", say=said.append) == second
    assert content(tmp_path / "latest") == {name: path.read_text() for name, path in two.items()}
    assert fetch(place, "draft", tmp_path / "old", version=first.version, say=said.append) == first
    assert content(tmp_path / "old") == {name: path.read_text() for name, path in one.items()}
    publish(place, "draft", one, said.append)  # back to the first
    assert fetch(place, "draft", tmp_path / "again", say=said.append) == first


def test_a_reader_that_has_resolved_keeps_its_version(
    place: str, one: dict[str, Path], two: dict[str, Path], tmp_path: Path, said: list[str]
):
    publish(place, "draft", one, said.append)

    def publish_meanwhile(line: str):
        if line.startswith("config.json"):
            publish(place, "draft", two, said.append)

    fetch(place, "draft", tmp_path / "here", say=publish_meanwhile)
    assert content(tmp_path / "here") == {name: path.read_text() for name, path in one.items()}


def test_nothing_published_is_said(place: str, tmp_path: Path, request: pytest.FixtureRequest):
    with pytest.raises(BadInput, match="nothing is published here|the hub answers 404"):
        fetch(place, "draft", tmp_path / "here")


def test_an_unknown_version_is_named(place: str, one: dict[str, Path], tmp_path: Path, said: list[str]):
    publish(place, "draft", one, said.append)
    with pytest.raises(BadInput, match="no version 0123|no such version"):
        fetch(place, "draft", tmp_path / "here", version="0123")


def test_answers_are_no_draft(tmp_path: Path, one: dict[str, Path], said: list[str]):
    publish(str(tmp_path / "place"), "answers", one, said.append)
    with pytest.raises(BadInput, match="holds answers, where draft is asked for"):
        fetch(str(tmp_path / "place"), "draft", tmp_path / "here")


# -- fetching ----------------------------------------------------------------------------------------------------------


def test_a_new_version_needs_no_right_to_delete(
    bucket: str, one: dict[str, Path], two: dict[str, Path], monkeypatch: pytest.MonkeyPatch, said: list[str]
):
    monkeypatch.setattr(S3Store, "delete", lambda self, key: pytest.fail(f"{key} was to be deleted"))
    publish(f"s3://{bucket}/drafts", "draft", one, said.append)
    publish(f"s3://{bucket}/drafts", "draft", two, said.append)


def test_what_a_killed_fetch_left_half_written_goes(place: str, one: dict[str, Path], tmp_path: Path, said: list[str]):
    publish(place, "draft", one, said.append)
    here = tmp_path / "here"
    for left in (here / ".partial-abc", here / "report/.partial-abc.1", here / ".partial-of-a-hub/model.safetensors"):
        left.parent.mkdir(parents=True, exist_ok=True)
        left.write_text("half")
    fetch(place, "draft", here, say=said.append)
    assert {path.name for path in here.rglob("*") if path.is_file()} == {Path(name).name for name in one} | {MANIFEST}


def test_a_broken_fetch_goes_on_where_it_stopped(place: str, one: dict[str, Path], tmp_path: Path, said: list[str]):
    publish(place, "draft", one, said.append)
    fetch(place, "draft", tmp_path / "here", say=said.append)
    (tmp_path / "here" / MANIFEST).unlink()
    (tmp_path / "here" / "model.safetensors").write_text("half")
    said.clear()
    fetch(place, "draft", tmp_path / "here", say=said.append)
    assert [line.split()[0] for line in said] == ["model.safetensors"]
    assert content(tmp_path / "here")["model.safetensors"] == "one" * 1000


def test_a_folder_never_becomes_a_mix(tmp_path: Path, one: dict[str, Path], two: dict[str, Path], said: list[str]):
    place, here = str(tmp_path / "place"), tmp_path / "here"
    publish(place, "draft", one, said.append)
    fetch(place, "draft", here, say=said.append)
    before = content(here)
    publish(place, "draft", two, said.append)
    with pytest.raises(BadInput, match="holds version .* take another folder"):
        fetch(place, "draft", here, say=said.append)
    assert content(here) == before


def test_a_folder_with_other_files_is_refused(tmp_path: Path, one: dict[str, Path], said: list[str]):
    publish(str(tmp_path / "place"), "draft", one, said.append)
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "thesis.txt").write_text("!")
    with pytest.raises(BadInput, match=r"other files \(thesis.txt\)"):
        fetch(str(tmp_path / "place"), "draft", tmp_path / "here", say=said.append)


def test_damage_at_the_source_is_refused_and_not_kept(tmp_path: Path, one: dict[str, Path], said: list[str]):
    version = publish(str(tmp_path / "place"), "draft", one, said.append).version
    stored = tmp_path / "place" / "versions" / version / "model.safetensors"
    stored.write_text(stored.read_text().replace("one", "eno"))
    with pytest.raises(BadInput, match=r"model\.safetensors of version .* is damaged there"):
        fetch(str(tmp_path / "place"), "draft", tmp_path / "here", say=said.append)
    assert "model.safetensors" not in content(tmp_path / "here")
    assert not (tmp_path / "here" / MANIFEST).exists()


def test_a_manifest_cannot_write_outside_the_folder(tmp_path: Path, one: dict[str, Path], said: list[str]):
    version = publish(str(tmp_path / "place"), "draft", one, said.append).version
    path = tmp_path / "place" / "versions" / version / MANIFEST
    path.write_text(path.read_text().replace("config.json", "../../escaped"))
    with pytest.raises(BadInput, match="not a manifest"):
        fetch(str(tmp_path / "place"), "draft", tmp_path / "here", say=said.append)


def test_a_manifest_put_together_by_hand_is_refused(tmp_path: Path, one: dict[str, Path], said: list[str]):
    manifest = publish(str(tmp_path / "place"), "draft", one, said.append)
    changed = manifest.model_copy(update={"files": {"config.json": File(sha256="0" * 64, bytes=1)}})
    (tmp_path / "place" / "versions" / manifest.version / MANIFEST).write_bytes(changed.to_bytes())
    with pytest.raises(BadInput, match="not that of its files"):
        fetch(str(tmp_path / "place"), "draft", tmp_path / "here", say=said.append)


@pytest.mark.parametrize("pointer", ["", "{}", "[]", '{"version'])
def test_a_damaged_pointer_is_named(tmp_path: Path, one: dict[str, Path], said: list[str], pointer: str):
    publish(str(tmp_path / "place"), "draft", one, said.append)
    (tmp_path / "place" / "latest").write_text(pointer)
    with pytest.raises(BadInput, match="latest: damaged"):
        fetch(str(tmp_path / "place"), "draft", tmp_path / "here", say=said.append)


def test_the_version_is_that_of_the_content(one: dict[str, Path], tmp_path: Path, said: list[str]):
    first = publish(str(tmp_path / "a"), "draft", one, said.append)
    assert publish(str(tmp_path / "b"), "draft", dict(reversed(one.items())), said.append) == first
    assert publish(str(tmp_path / "b"), "answers", one, said.append).version != first.version
    renamed = {"other.json" if name == "config.json" else name: path for name, path in one.items()}
    assert publish(str(tmp_path / "b"), "draft", renamed, said.append).version != first.version


# -- S3: order, and what a failure leaves ------------------------------------------------------------------------------


def keys(bucket: str) -> list[str]:
    found = boto3.client("s3").list_objects_v2(Bucket=bucket).get("Contents", [])
    return [item["Key"] for item in sorted(found, key=lambda item: item["LastModified"])]


def test_the_manifest_is_last_of_a_version_and_latest_after_it(
    bucket: str, one: dict[str, Path], said: list[str], monkeypatch: pytest.MonkeyPatch
):
    order: list[str] = []
    from spec.storage.s3 import S3Store

    for name in ("write", "upload"):
        real = getattr(S3Store, name)

        def seen(self, key, *rest, real=real):
            order.append(f"{self.url}/{key}".rsplit("/", 1)[1])
            return real(self, key, *rest)

        monkeypatch.setattr(S3Store, name, seen)
    publish(f"s3://{bucket}/drafts", "draft", one, said.append)
    assert sorted(order[:3]) == ["config.json", "model.safetensors", "page.html"]
    assert order[3:] == [MANIFEST, "latest"]


@pytest.mark.parametrize("fails_at", range(1, 6))
def test_a_publish_that_fails_anywhere_leaves_the_old_draft(
    bucket: str, one: dict[str, Path], two: dict[str, Path], tmp_path: Path, said: list[str], fails_at: int
):
    """`two` goes up in four writes: two files, the manifest, `latest`. Whichever fails, readers get `one`."""
    from botocore.exceptions import ClientError

    from spec.publishing import versions

    place = f"s3://{bucket}/drafts"
    old = publish(place, "draft", one, said.append)
    store = open_store(place)
    writes = 0

    def fail(**_):
        nonlocal writes
        writes += 1
        if writes == fails_at:
            raise ClientError({"Error": {"Code": "SlowDown"}, "ResponseMetadata": {"HTTPStatusCode": 503}}, "PutObject")

    store._client.meta.events.register("before-call.s3.PutObject", fail)
    described = {n: File(sha256=versions.file_sha256(p), bytes=p.stat().st_size) for n, p in two.items()}
    manifest = Manifest.of("draft", described)
    if fails_at == 5:
        assert versions.StorePlace(store).publish(manifest, two, said.append)
        assert fetch(place, "draft", tmp_path / "new", say=said.append) == manifest
        return
    with pytest.raises(PassingFault):
        versions.StorePlace(store).publish(manifest, two, said.append)
    assert fetch(place, "draft", tmp_path / "meanwhile", say=said.append) == old
    assert content(tmp_path / "meanwhile") == {name: path.read_text() for name, path in one.items()}
    assert publish(place, "draft", two, said.append) == manifest  # and again, without the fault
    assert fetch(place, "draft", tmp_path / "after", say=said.append) == manifest


def test_a_version_that_lost_a_file_is_published_again(
    bucket: str, one: dict[str, Path], tmp_path: Path, said: list[str]
):
    place = f"s3://{bucket}/drafts"
    version = publish(place, "draft", one, said.append).version
    open_store(place).delete(f"versions/{version}/model.safetensors")
    said.clear()
    publish(place, "draft", one, said.append)
    assert said[-1].startswith("published")
    fetch(place, "draft", tmp_path / "here", say=said.append)


# -- hub ---------------------------------------------------------------------------------------------------------------


def test_the_hub_gets_one_commit_with_the_files_at_the_root(hub: Hub, one: dict[str, Path], two: dict[str, Path]):
    said: list[str] = []
    first = publish("hf://ORG/NAME", "draft", one, said.append)
    assert len(hub.repos["models/ORG/NAME"]) == 2  # the hub's own first one, and ours
    publish("hf://ORG/NAME", "draft", two, said.append)
    assert set(hub.head("models/ORG/NAME")) == {".gitattributes", "config.json", "model.safetensors", MANIFEST}
    assert hub.tags["models/ORG/NAME"][first.version] == hub.repos["models/ORG/NAME"][1][0]


def test_answers_are_a_dataset_on_the_hub(hub: Hub, one: dict[str, Path]):
    publish("hf://ORG/NAME", "answers", one, lambda line: None)
    assert list(hub.repos) == ["datasets/ORG/NAME"]


def test_a_commit_that_came_in_between_is_not_overwritten(hub: Hub, one: dict[str, Path]):
    publish("hf://ORG/NAME", "draft", {"config.json": one["config.json"]}, lambda line: None)

    def somebody_else():
        hub.before_commit = lambda: None
        hub.commit("models/ORG/NAME", {"theirs": b""})

    hub.before_commit = somebody_else
    with pytest.raises(PassingFault, match="412"):
        publish("hf://ORG/NAME", "draft", one, lambda line: None)
    assert set(hub.head("models/ORG/NAME")) == {"theirs"}


@pytest.mark.parametrize("refused", ["/commit/", "lfs/"])
@pytest.mark.parametrize(("status", "seen_as"), [(403, BadInput), (507, PassingFault)])
def test_the_hubs_answers_are_told_apart(hub: Hub, one: dict[str, Path], refused: str, status: int, seen_as: type):
    hub.refuse = lambda method, path: status if refused in path else None
    with pytest.raises(seen_as, match=str(status)):
        publish("hf://ORG/NAME", "draft", one, lambda line: None)
    assert set(hub.head("models/ORG/NAME")) == {".gitattributes"}


def test_a_wrong_token_is_bad_input(hub: Hub, one: dict[str, Path], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_TOKEN", "hf_nobody")
    with pytest.raises(BadInput, match="HF_TOKEN"):
        publish("hf://ORG/NAME", "draft", one, lambda line: None)


def test_a_hub_that_is_down_is_a_passing_fault(hub: Hub, one: dict[str, Path], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(PassingFault, match="cannot be reached"):
        publish("hf://ORG/NAME", "draft", one, lambda line: None)


def test_offline_mode_is_named(hub: Hub, one: dict[str, Path], monkeypatch: pytest.MonkeyPatch):
    from huggingface_hub import constants, set_client_factory
    from huggingface_hub.utils._http import default_client_factory

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(BadInput, match="HF_HUB_OFFLINE is set; unset it"):
        publish("hf://ORG/NAME", "draft", one, lambda line: None)
    set_client_factory(default_client_factory)  # closes the session that refuses


def test_a_repository_of_someone_else_is_named(hub: Hub, tmp_path: Path):
    hub.create("models/ORG/OTHER")
    with pytest.raises(BadInput, match="not published by this project"):
        fetch("hf://ORG/OTHER", "draft", tmp_path / "here")


@pytest.mark.parametrize("url", ["hf://NAME", "hf://A/B/C", "hf://"])
def test_a_place_on_the_hub_is_org_and_name(hub: Hub, url: str, one: dict[str, Path]):
    with pytest.raises(BadInput, match="hf://ORG/NAME"):
        publish(url, "draft", one, lambda line: None)
