import pytest

from spec.conversations.parts import open_parts
from spec.errors import PassingFault
from spec.storage import file_sha256, open_store


@pytest.fixture(params=["directory", "s3"])
def store(request, tmp_path):
    if request.param == "directory":
        return open_store(tmp_path / "shard")
    return open_store(f"s3://{request.getfixturevalue('bucket')}/shard")


def written(store, digest, *lines):
    with open_parts(store, digest) as parts:
        list(parts.lines())
        for line in lines:
            parts.append(line)


def left(store, digest):
    with open_parts(store, digest) as parts:
        return list(parts.lines())


def test_what_one_process_wrote_the_next_one_reads(store):
    written(store, "d1", b"1\n", b"2\n")
    written(store, "d1", b"3\n")
    assert sorted(left(store, "d1")) == [b"1\n", b"2\n", b"3\n"]


def test_what_was_made_with_other_settings_goes(store):
    written(store, "old", b"1\n")
    assert left(store, "new") == []
    assert store.list() == []


def test_an_error_in_the_block_loses_nothing(store):
    with pytest.raises(RuntimeError), open_parts(store, "d1") as parts:
        parts.append(b"1\n")
        raise RuntimeError
    assert left(store, "d1") == [b"1\n"]


def test_the_marker_gets_every_part_with_its_hash(store, tmp_path):
    written(store, "d1", b"1\n")
    with open_parts(store, "d1") as parts:
        list(parts.lines())
        parts.append(b"2\n")
        files = parts.files()
    assert sorted(files) == [entry.key for entry in store.list()]
    assert len(files) == 2
    for name, file in files.items():
        store.download(name, tmp_path / "copy")
        assert (file.sha256, file.bytes) == (file_sha256(tmp_path / "copy"), 2)


def test_in_a_directory_a_row_is_there_as_soon_as_it_is_appended(tmp_path):
    with open_parts(open_store(tmp_path), "d1") as parts:
        parts.append(b"1\n")
        assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"1\n"]


def test_a_line_that_a_kill_cut_short_is_cut_off(tmp_path):
    (tmp_path / "part-d1-abc-00000.jsonl").write_bytes(b"1\n2\n3 is cut sh")
    assert left(open_store(tmp_path), "d1") == [b"1\n", b"2\n"]
    assert (tmp_path / "part-d1-abc-00000.jsonl").read_bytes() == b"1\n2\n"


def test_a_part_ends_at_a_size(tmp_path, monkeypatch):
    monkeypatch.setattr("spec.conversations.parts._PART_BYTES", 10)
    written(open_store(tmp_path), "d1", *[b"12345\n"] * 5)
    assert sorted(path.stat().st_size for path in tmp_path.iterdir()) == [6, 12, 12]


def test_two_processes_do_not_share_a_directory(tmp_path):
    store = open_store(tmp_path)
    with open_parts(store, "d1"), pytest.raises(PassingFault, match="another process"), open_parts(store, "d1"):
        pass
    left(store, "d1")  # and it is free again


def test_an_object_store_gets_a_part_with_each_flush(bucket):
    store = open_store(f"s3://{bucket}/shard")
    with open_parts(store, "d1") as parts:
        parts.append(b"1\n")
        parts.append(b"2\n")
        assert store.list() == []
        parts.flush()
        parts.flush()
        assert [entry.size for entry in store.list()] == [4]


def test_a_flush_that_fails_keeps_what_it_could_not_write(bucket, monkeypatch):
    store = open_store(f"s3://{bucket}/shard")
    with open_parts(store, "d1") as parts:
        parts.append(b"1\n")
        with monkeypatch.context() as patch, pytest.raises(PassingFault):
            patch.setattr(store, "write", fail)
            parts.flush()
        parts.append(b"2\n")
    assert left(store, "d1") == [b"1\n", b"2\n"]


def fail(key, data):
    raise PassingFault("the store cannot be reached")
