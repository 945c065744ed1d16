"""Markers: found for the same work, refused for other work, and never over damaged files."""

from pathlib import Path

import pytest

from spec.errors import BadInput
from spec.storage import Store, open_store
from spec.storage.markers import (
    File,
    Marker,
    check_files,
    describe_files,
    digest_of,
    fetch,
    find_marker,
    read_marker,
    write_marker,
)

SETTINGS = {"seed": 1, "layers": (1, 2), "sampling": {"temperature": 0.0, "max_tokens": 64}}
INPUTS = {"answers": "abc"}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path)


def written(store: Store, **changes) -> Marker:
    digest = digest_of("train", SETTINGS, INPUTS)
    marker = Marker(step="train", digest=digest, settings=SETTINGS, inputs=INPUTS)
    return write_marker(store, "marker.json", marker.model_copy(update=changes))


def find(store: Store, **asked) -> Marker | None:
    given = {"step": "train", "settings": SETTINGS, "inputs": INPUTS} | asked
    return find_marker(store, "marker.json", **given)


def test_no_marker_is_work_to_do(store: Store):
    assert find(store) is None


def test_the_same_work_is_found_again(store: Store):
    written(store, counts={"rows": 3})
    assert find(store).counts == {"rows": 3}
    assert find(store).finished_at.endswith("Z")
    assert find(store, overwrite=True) is not None  # so that a retried step goes on and does not start over


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        ({"settings": SETTINGS | {"seed": 2}}, "settings.seed: 1 there, 2 asked"),
        ({"settings": SETTINGS | {"extra": True}}, "settings.extra: None there, True asked"),
        (
            {"settings": SETTINGS | {"sampling": {"temperature": 1.0, "max_tokens": 64}}},
            "settings.sampling.temperature: 0.0 there, 1.0 asked",
        ),
        ({"inputs": {"answers": "def"}}, "inputs.answers: 'abc' there, 'def' asked"),
        ({"step": "extract"}, "another step's"),
    ],
)
def test_other_work_is_refused_and_the_difference_named(store: Store, asked: dict, named: str):
    written(store)
    with pytest.raises(BadInput, match="made otherwise") as refused:
        find(store, **asked)
    assert named in str(refused.value)
    assert "layers" not in str(refused.value)  # a tuple asked for is the list in the file: no difference
    assert store.exists("marker.json")


def test_overwrite_takes_the_old_marker_away_first(store: Store):
    written(store)
    assert find(store, settings={"seed": 2}, overwrite=True) is None
    assert not store.exists("marker.json")


@pytest.mark.parametrize("damage", [b"", b'{"step": "tra', b"[]", b"\xff\xfe", b'{"step": "train", "surprise": 1}'])
def test_a_damaged_marker_is_named_and_not_taken_for_none(store: Store, damage: bytes):
    store.write("marker.json", damage)
    with pytest.raises(BadInput, match=r"marker\.json: not a marker .* delete it"):
        read_marker(store, "marker.json")


@pytest.mark.parametrize("name", ["../up", "/etc/passwd", "a/../../up", "a//b", ".", "", "a\\..\\b"])
def test_a_marker_cannot_name_files_outside_its_folder(name: str):
    with pytest.raises(ValueError, match="not the path of a file inside"):
        Marker(step="s", digest="d", settings={}, inputs={}, files={name: File(sha256="0", bytes=0)})


def test_identity_follows_content_where_the_digest_does_not(store: Store):
    first = written(store, files={"model": File(sha256="aa", bytes=1)})
    assert read_marker(store, "marker.json").identity == first.identity
    redone = written(store, files={"model": File(sha256="bb", bytes=1)})
    assert first.digest == redone.digest
    assert first.identity != redone.identity


@pytest.fixture
def files(tmp_path: Path) -> Path:
    folder = tmp_path / "made"
    (folder / "below").mkdir(parents=True)
    (folder / "a").write_bytes(b"aaaa")
    (folder / "below" / "b").write_bytes(b"bb")
    return folder


def marker_of(folder: Path) -> Marker:
    return Marker(step="prepare", digest="d", settings={}, inputs={}, files=describe_files(folder, ["a", "below/b"]))


def test_whole_files_pass(files: Path):
    check_files(files, marker_of(files))


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda folder: (folder / "a").write_bytes(b"aaax"), "a: damaged"),
        (lambda folder: (folder / "a").write_bytes(b"aaa"), "a: damaged"),
        (lambda folder: (folder / "below" / "b").unlink(), "b: missing"),
    ],
)
def test_damage_is_named(files: Path, damage, named: str):
    marker = marker_of(files)
    damage(files)
    with pytest.raises(BadInput, match=named):
        check_files(files, marker)


def test_fetch_uses_a_directory_in_place(files: Path, tmp_path: Path):
    assert fetch(open_store(files), marker_of(files), tmp_path / "scratch") == files
    assert not (tmp_path / "scratch").exists()


def test_fetch_downloads_what_is_missing_or_damaged_and_nothing_else(files: Path, bucket: str, tmp_path: Path):
    remote, marker, scratch = open_store(f"s3://{bucket}/run"), marker_of(files), tmp_path / "scratch"
    for name in marker.files:
        remote.upload(name, files / name)
    assert fetch(remote, marker, scratch) == scratch
    assert (scratch / "below" / "b").read_bytes() == b"bb"

    (scratch / "a").write_bytes(b"half")
    asked: list[str] = []
    remote._client.meta.events.register(
        "before-call.s3.GetObject", lambda params, **_: asked.append(params["url_path"])
    )
    fetch(remote, marker, scratch)
    assert (scratch / "a").read_bytes() == b"aaaa"
    assert {url.rsplit("/", 1)[1] for url in asked} == {"a"}


def test_fetch_refuses_what_the_store_has_changed(files: Path, bucket: str, tmp_path: Path):
    remote, marker = open_store(f"s3://{bucket}/run"), marker_of(files)
    for name in marker.files:
        remote.write(name, b"else")
    with pytest.raises(BadInput, match="damaged"):
        fetch(remote, marker, tmp_path / "scratch")


def test_fetch_names_what_the_store_has_lost(files: Path, bucket: str, tmp_path: Path):
    with pytest.raises(BadInput, match="missing, though the .* marker lists it"):
        fetch(open_store(f"s3://{bucket}/run"), marker_of(files), tmp_path / "scratch")
