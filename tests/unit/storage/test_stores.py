"""What every backend promises: the same calls on a directory and on S3."""

import errno
import hashlib
import io
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import boto3
import pytest
from botocore.exceptions import ClientError

from spec.errors import BadInput, PassingFault, SpecError
from spec.storage import Store, file_sha256, open_store
from spec.storage import s3 as s3_module


@pytest.fixture(params=["directory", "s3", "whole bucket"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "directory":
        return open_store(tmp_path / "run")
    bucket = request.getfixturevalue("bucket")
    return open_store(f"s3://{bucket}" + ("/some/run/" if request.param == "s3" else ""))


def test_what_is_written_is_read(store: Store):
    store.write("a/b.json", b"{}")
    store.write("a/b.json", b"[1]")
    assert store.read("a/b.json") == b"[1]"
    assert store.exists("a/b.json")
    assert not store.exists("a")


def test_a_missing_key_is_file_not_found_everywhere(store: Store, tmp_path: Path):
    with pytest.raises(FileNotFoundError):
        store.read("no")
    with pytest.raises(FileNotFoundError):
        store.download("no", tmp_path / "no")
    assert not (tmp_path / "no").exists()
    assert not store.exists("no")
    store.delete("no")
    assert store.list() == []
    assert store.list("no") == []


def test_list_is_by_folder_sorted_and_with_sizes(store: Store):
    for key, data in {"x/2": b"22", "x/1": b"1", "xy/3": b"", "x/deep/er": b"4444"}.items():
        store.write(key, data)
    assert store.list("x") == [("x/1", 1), ("x/2", 2), ("x/deep/er", 4)]
    assert store.list("x/") == store.list("x")
    assert [entry.key for entry in store.list()] == ["x/1", "x/2", "x/deep/er", "xy/3"]


def test_at_is_the_same_store_from_a_folder(store: Store):
    store.write("a/b/c", b"1")
    assert store.at("a").at("b").read("c") == b"1"
    assert store.at("a").list() == [("b/c", 1)]
    store.at("a/b").write("d", b"2")
    assert store.read("a/b/d") == b"2"
    assert store.at("a/b").url == store.url + "/a/b"


def test_files_go_up_and_come_down_unchanged(store: Store, tmp_path: Path):
    source = tmp_path / "source"
    source.write_bytes(os.urandom(300_000))
    store.upload("deep/file.bin", source)
    store.download("deep/file.bin", tmp_path / "new folder" / "copy")
    assert file_sha256(tmp_path / "new folder" / "copy") == hashlib.sha256(source.read_bytes()).hexdigest()
    assert [path.name for path in (tmp_path / "new folder").iterdir()] == ["copy"]


def test_deleted_is_gone(store: Store):
    store.write("a", b"1")
    store.delete("a")
    assert not store.exists("a") and store.list() == []


def test_only_directories_and_s3_hold_a_run():
    with pytest.raises(BadInput, match="only directories and s3://"):
        open_store("gs://bucket/run")
    with pytest.raises(BadInput, match="no bucket named"):
        open_store("s3:///run")


# -- directory ---------------------------------------------------------------------------------------------------------


def test_a_failed_copy_leaves_the_old_file_and_no_debris(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    store = open_store(tmp_path / "run")
    store.write("a", b"old")
    (tmp_path / "new").write_bytes(b"new")

    def full(source, target):
        Path(target).write_bytes(b"ne")
        raise OSError(errno.ENOSPC, "no space", str(source))  # as shutil does

    monkeypatch.setattr("shutil.copyfile", full)
    with pytest.raises(OSError) as error:
        store.upload("a", tmp_path / "new")
    assert error.value.filename == str(tmp_path / "run/a")  # where there is no room
    assert store.read("a") == b"old"
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["a"]


def test_what_is_still_being_written_is_not_listed(tmp_path: Path):
    store = open_store(tmp_path)
    (tmp_path / ".partial-abc").write_bytes(b"half")
    assert store.list() == []


def test_a_reader_never_sees_half_a_file(tmp_path: Path):
    store = open_store(tmp_path)
    bodies = [bytes([i]) * 400_000 for i in range(2)]
    store.write("a", bodies[0])
    stop = threading.Event()

    def rewrite():
        while not stop.is_set():
            for body in bodies:
                store.write("a", body)

    writer = threading.Thread(target=rewrite)
    writer.start()
    try:
        assert all(store.read("a") in bodies for _ in range(200))
    finally:
        stop.set()
        writer.join()


def test_a_place_where_no_directory_can_be_made_is_named():
    with pytest.raises(BadInput, match="/proc/run: no directory can be made there"):
        open_store("/proc/run").write("a", b"")


def test_a_file_in_a_folders_place_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(BadInput, match="file: a file, where"):
        open_store(tmp_path / "file")
    with pytest.raises(BadInput, match="file: a file stands where a directory is needed"):
        open_store(tmp_path).write("file/below", b"1")


# -- S3 ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch):
    parts = s3_module.TransferConfig(multipart_threshold=5 << 20, multipart_chunksize=5 << 20, max_concurrency=2)
    monkeypatch.setattr(s3_module, "_PARTS", parts)


@pytest.fixture
def large_file(tmp_path: Path) -> Path:
    path = tmp_path / "large"
    path.write_bytes(os.urandom(11 << 20))  # three parts of 5 MiB
    return path


def test_a_large_file_goes_up_in_parts(bucket: str, small_parts: None, large_file: Path, tmp_path: Path):
    store = open_store(f"s3://{bucket}/run")
    store.upload("large", large_file)
    assert boto3.client("s3").head_object(Bucket=bucket, Key="run/large")["ETag"].endswith('-3"')
    store.download("large", tmp_path / "copy")
    assert file_sha256(tmp_path / "copy") == file_sha256(large_file)


def _at_second_part(store: Store, happens: Callable[[], None]) -> list[str]:
    """Let `happens` be called when the second part is about to go up; returns the operations seen from now on."""
    seen: list[str] = []

    def before(params, model, **_):
        seen.append(model.name)
        if model.name == "UploadPart" and "partNumber=2" in params["url"]:
            happens()

    store._client.meta.events.register("before-call.s3", before)
    return seen


def _raise(error: Exception) -> None:
    raise error


@pytest.mark.parametrize(
    ("raised", "seen_as"),
    [
        (ClientError({"Error": {"Code": "SlowDown"}, "ResponseMetadata": {"HTTPStatusCode": 503}}, "x"), PassingFault),
        (ClientError({"Error": {"Code": "AccessDenied"}, "ResponseMetadata": {"HTTPStatusCode": 403}}, "x"), BadInput),
        (s3_module.boto.EndpointConnectionError(endpoint_url="http://x"), PassingFault),
    ],
)
def test_a_failing_upload_leaves_nothing_behind(
    bucket: str, small_parts: None, large_file: Path, raised: Exception, seen_as: type
):
    store = open_store(f"s3://{bucket}/run")
    seen = _at_second_part(store, lambda: _raise(raised))
    with pytest.raises(seen_as):
        store.upload("large", large_file)
    assert "CreateMultipartUpload" in seen and "AbortMultipartUpload" in seen
    assert boto3.client("s3").list_multipart_uploads(Bucket=bucket).get("Uploads", []) == []
    assert store.list() == []


def test_a_stopped_upload_leaves_nothing_behind(bucket: str, small_parts: None, large_file: Path):
    store = open_store(f"s3://{bucket}/run")
    seen = _at_second_part(store, lambda: signal.pthread_kill(threading.main_thread().ident, signal.SIGTERM))
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        with pytest.raises(SystemExit):
            store.upload("large", large_file)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert "AbortMultipartUpload" in seen
    assert boto3.client("s3").list_multipart_uploads(Bucket=bucket).get("Uploads", []) == []
    assert store.list() == []


def test_no_such_bucket_is_bad_input(bucket: str):
    for call in (lambda s: s.write("a", b""), lambda s: s.read("a"), lambda s: s.list()):
        with pytest.raises(BadInput, match="NoSuchBucket"):
            call(open_store("s3://nobody-has-this-bucket/run"))


def test_an_impossible_bucket_name_is_bad_input(bucket: str):
    with pytest.raises(BadInput, match="Invalid bucket name"):
        open_store("s3://not_a bucket!/run").read("a")


def test_no_credentials_is_bad_input(bucket: str, monkeypatch: pytest.MonkeyPatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
    with pytest.raises(BadInput, match="no S3 credentials"):
        open_store(f"s3://{bucket}/run").read("a")


def test_a_store_that_is_down_is_a_passing_fault(bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    (tmp_path / "file").write_bytes(b"1")
    store = open_store(f"s3://{bucket}/run")
    for call in (
        lambda: store.read("a"),
        lambda: store.upload("a", tmp_path / "file"),
        lambda: store.download("a", tmp_path / "copy"),
    ):
        with pytest.raises(PassingFault, match="cannot be reached"):
            call()
    assert not (tmp_path / "copy").exists()


@pytest.mark.parametrize("setting", [("AWS_ENDPOINT_URL", "not a url"), ("AWS_PROFILE", "nobody")])
def test_wrong_settings_of_the_chain_are_bad_input(
    bucket: str, monkeypatch: pytest.MonkeyPatch, setting: tuple[str, str]
):
    monkeypatch.setenv(*setting)
    with pytest.raises(BadInput):
        open_store(f"s3://{bucket}/run").read("a")


@pytest.mark.parametrize(
    ("code", "status", "seen_as"),
    [
        ("InternalError", 500, PassingFault),
        ("ServiceUnavailable", 503, PassingFault),
        ("RequestTimeout", 400, PassingFault),
        ("TooManyRequests", 429, PassingFault),
        ("OperationAborted", 409, PassingFault),
        ("NotImplemented", 501, BadInput),
        ("AccessDenied", 403, BadInput),
        ("ExpiredToken", 400, BadInput),
        ("QuotaExceeded", 403, BadInput),
        ("XMinioStorageFull", 507, PassingFault),
        ("NoSuchKey", 404, FileNotFoundError),
    ],
)
def test_a_stores_answers_are_told_apart(bucket: str, code: str, status: int, seen_as: type):
    store = open_store(f"s3://{bucket}/run")

    def refuse(**_):
        raise ClientError({"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}, "PutObject")

    store._client.meta.events.register("before-call.s3", refuse)
    with pytest.raises(seen_as):
        store.write("a", b"1")


@pytest.mark.parametrize(
    ("code", "status", "advice"),
    [
        ("AccessDenied", 403, "use credentials that may, or another bucket"),
        ("NoSuchBucket", 404, "create it, or correct its name"),
        ("ExpiredToken", 400, "check the credentials"),
        ("QuotaExceeded", 403, "make room in it"),
        ("XMinioStorageFull", 507, "make room in it"),
    ],
)
def test_an_answer_that_somebody_can_mend_comes_with_what_to_do(bucket: str, code: str, status: int, advice: str):
    store = open_store(f"s3://{bucket}/run")

    def refuse(**_):
        raise ClientError({"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}, "PutObject")

    store._client.meta.events.register("before-call.s3", refuse)
    with pytest.raises(SpecError, match=f"{code}.*; {advice}"):
        store.write("a", b"1")


def test_checksums_follow_the_standard_knob(bucket: str, monkeypatch: pytest.MonkeyPatch):
    def headers_of_a_write() -> list[str]:
        store = open_store(f"s3://{bucket}/run")
        seen: list[str] = []
        store._client.meta.events.register("before-send.s3", lambda request, **_: seen.extend(request.headers))
        store.write("a", b"1")
        return [name.lower() for name in seen]

    assert any(name.startswith("x-amz-checksum") for name in headers_of_a_write())
    monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")
    assert not any(name.startswith("x-amz-checksum") for name in headers_of_a_write())


def test_a_store_without_checksums_gets_the_hint(bucket: str):
    store = open_store(f"s3://{bucket}/run")

    def refuse(**_):
        raise ClientError({"Error": {"Code": "NotImplemented"}, "ResponseMetadata": {"HTTPStatusCode": 501}}, "Put")

    store._client.meta.events.register("before-call.s3", refuse)
    with pytest.raises(BadInput, match="AWS_REQUEST_CHECKSUM_CALCULATION=when_required"):
        store.write("a", b"1")


def test_the_empty_objects_of_consoles_are_not_entries(bucket: str):
    boto3.client("s3").put_object(Bucket=bucket, Key="run/folder/", Body=b"")
    store = open_store(f"s3://{bucket}/run")
    store.write("folder/a", b"1")
    assert store.list() == [("folder/a", 1)]


# -- conditional writes ------------------------------------------------------------------------------------------------


def test_a_key_is_replaced_only_while_it_holds_what_was_seen(store: Store):
    assert not store.replace("latest", b"1", b"0") and not store.exists("latest")
    assert store.replace("latest", b"1", None)
    assert not store.replace("latest", b"2", None) and not store.replace("latest", b"2", b"0")
    assert store.read("latest") == b"1"
    assert store.replace("latest", b"2", b"1") and store.read("latest") == b"2"
    assert [entry.key for entry in store.list()] == ["latest"]


@pytest.mark.parametrize("was", [None, b"old"])
def test_of_many_that_replace_at_once_one_does(store: Store, was: bytes | None):
    if was is not None:
        store.write("latest", was)
    won: list[bytes] = []

    def attempt(data: bytes) -> None:
        if store.replace("latest", data, was):
            won.append(data)

    threads = [threading.Thread(target=attempt, args=(str(n).encode(),)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1 and store.read("latest") == won[0]


def test_a_replacement_whose_answer_was_lost_is_one(bucket: str):
    """The store has written; the client, not told so, tries again and is refused."""
    store = open_store(f"s3://{bucket}")
    store.write("latest", b"new")
    store._client.meta.events.register("before-send.s3.GetObject", _answer_old_once())
    assert store.replace("latest", b"new", b"old")


def _answer_old_once() -> Callable:
    from botocore.awsrequest import AWSResponse
    from urllib3 import HTTPResponse

    answers = iter([b"old"])

    def answer(request, **_):
        body = next(answers, None)
        if body is None:
            return None
        headers = {"ETag": '"of-old"', "Content-Length": str(len(body))}
        return AWSResponse(request.url, 200, headers, HTTPResponse(io.BytesIO(body), preload_content=False))

    return answer
