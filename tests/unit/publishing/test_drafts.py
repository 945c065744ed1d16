"""Publishing a run's draft: only a proven one, whole or not at all; and the other end, which checks what it gets."""

import json
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import boto3
import pytest

from spec.errors import BadInput, BelowBar
from spec.methods import METHODS
from spec.publishing.drafts import fetch, place_of, publish
from spec.publishing.existing import resolve
from spec.publishing.manifest import MANIFEST
from spec.storage import open_store
from spec.storage.directory import DirectoryStore
from tests.command_line import run_tool
from tests.hub import Hub
from tests.runs import add_draft, add_report, make_run

FILES = {"config.json", "model.safetensors", "draft.json", "README.md"}
EVIDENCE = {"report/report.json", "report/report.html"}


def quiet(line: str) -> None:
    pass


def names(folder: Path) -> set[str]:
    return {entry.key for entry in open_store(folder).list()}


def refusal(done: subprocess.CompletedProcess) -> tuple[int, str]:
    """Exit code and the one line of a command that refused."""
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("error: "), done.stderr
    return done.returncode, done.stderr


@pytest.fixture
def run(tmp_path: Path):
    return make_run(tmp_path / "run")


def test_a_proven_draft_is_published_with_its_evidence_and_fetched(run, place: str, tmp_path: Path):
    publish(run, place, say=quiet)
    fetch(place, tmp_path / "here", say=quiet)
    assert names(tmp_path / "here") == FILES | EVIDENCE | {MANIFEST}
    for name in ("config.json", "model.safetensors", "draft.json"):
        assert (tmp_path / "here" / name).read_bytes() == run.read(f"draft/{name}")
    assert (tmp_path / "here/report/report.json").read_bytes() == run.read("report/report.json")
    assert "accept length (SGLang)" in (tmp_path / "here/README.md").read_text()


def test_the_same_draft_again_changes_nothing(run, place: str):
    said: list[str] = []
    first = publish(run, place, say=quiet)
    assert publish(run, place, say=said.append) == first
    assert said == [f"draft {first.version} is already published at {place}"]


def test_a_run_in_s3_publishes_the_same_version(run, bucket: str, tmp_path: Path):
    there = open_store(f"s3://{bucket}/run")
    for entry in run.list():
        there.write(entry.key, run.read(entry.key))
    assert publish(there, f"s3://{bucket}/drafts", say=quiet) == publish(run, str(tmp_path / "published"), say=quiet)


def test_publishing_writes_nothing_into_the_run(run, tmp_path: Path):
    before = {entry.key: run.read(entry.key) for entry in run.list()}
    publish(run, str(tmp_path / "published"), say=quiet)
    assert {entry.key: run.read(entry.key) for entry in run.list()} == before


def test_a_card_older_than_the_report_is_not_published(run, tmp_path: Path):
    run.write("draft/README.md", b"Not measured yet.")
    publish(run, str(tmp_path / "published"), say=quiet)
    fetch(str(tmp_path / "published"), tmp_path / "here", say=quiet)
    assert "Not measured yet" not in (tmp_path / "here/README.md").read_text()


# -- what is not published ---------------------------------------------------------------------------------------------


def lose_report(run) -> None:
    run.delete("report/report.json")


def replace_draft(run) -> None:
    add_draft(run, seed=1)


def lose_gate(run) -> None:
    report = json.loads(run.read("report/report.json"))
    del report["facts"]["gate"]
    run.write("report/report.json", json.dumps(report).encode())


@pytest.mark.parametrize(
    ("change", "kind", "named"),
    [
        (lose_report, BadInput, "the draft has no report; run tools/evaluate_draft.py, or .* --without-report"),
        (replace_draft, BadInput, "is of another draft than the one that is there now"),
        (lambda run: add_report(run, passed=False), BelowBar, r"missed its bar: accept length 1\.745 .* is below 1\.9"),
        (lose_gate, BelowBar, "its report has no gate"),
        (lambda run: run.write("report/report.json", b'{"step": "eval'), BadInput, "report.json: not a marker"),
    ],
)
def test_a_draft_without_a_passing_report_is_refused(run, tmp_path: Path, change: Callable, kind: type, named: str):
    change(run)
    with pytest.raises(kind, match=named):
        publish(run, str(tmp_path / "published"), say=quiet)
    assert not (tmp_path / "published").exists()


@pytest.mark.parametrize("change", [lose_report, replace_draft, lambda run: add_report(run, passed=False)])
def test_without_report_publishes_it_all_the_same_and_claims_nothing(run, tmp_path: Path, change: Callable):
    change(run)
    publish(run, str(tmp_path / "published"), without_report=True, say=quiet)
    fetch(str(tmp_path / "published"), tmp_path / "here", say=quiet)
    assert names(tmp_path / "here") == FILES | {MANIFEST}
    card = (tmp_path / "here/README.md").read_text()
    assert ("Not measured yet" in card) or ("The gate was missed" in card)


def test_a_run_without_a_draft_is_refused(tmp_path: Path):
    with pytest.raises(BadInput, match=r"no draft here \(draft.json is missing\); run tools/extract_draft_model.py"):
        publish(open_store(tmp_path), str(tmp_path / "published"), say=quiet)


@pytest.mark.parametrize("where", ["directory", "s3"])
@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("without_report", [False, True])
def test_a_draft_that_lost_a_file_is_refused_by_its_name(
    run, request: pytest.FixtureRequest, tmp_path: Path, where: str, name: str, without_report: bool
):
    run.delete(f"draft/{name}")
    if where == "s3":
        there = open_store(f"s3://{request.getfixturevalue('bucket')}/run")
        for entry in run.list():
            there.write(entry.key, run.read(entry.key))
        run = there
    with pytest.raises(BadInput, match=f"{name}: missing"):
        publish(run, str(tmp_path / "published"), without_report=without_report, say=quiet)
    assert not (tmp_path / "published").exists()


# -- readers see the old draft or the new one --------------------------------------------------------------------------


def killed_at(operation: int, run, place: str) -> bool:
    """Publish in a process that SIGKILL ends before its n-th write at `place`; whether it came to that."""
    child = os.fork()
    if child == 0:
        done = 0

        def counted(real: Callable) -> Callable:
            def write(self, key, *rest):
                nonlocal done
                done += self.url.startswith(place)
                if done == operation:
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(self, key, *rest)

            return write

        DirectoryStore.write = counted(DirectoryStore.write)  # type: ignore[method-assign]
        DirectoryStore.upload = counted(DirectoryStore.upload)  # type: ignore[method-assign]
        publish(run, place, say=quiet)
        os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def test_killed_anywhere_readers_see_the_old_draft_and_another_try_the_new(run, tmp_path: Path):
    place = str(tmp_path / "published")
    old = publish(run, place, say=quiet).version
    add_draft(run, seed=1)
    add_report(run)
    for operation in range(1, len(FILES | EVIDENCE) + 3):  # then the manifest, then the pointer
        shutil.rmtree(tmp_path / "here", ignore_errors=True)
        assert killed_at(operation, run, place), operation
        fetch(place, tmp_path / "here", say=quiet)
        assert json.loads((tmp_path / "here" / MANIFEST).read_text())["version"] == old
    assert not killed_at(operation + 1, run, place)
    fetch(place, tmp_path / "new", say=quiet)
    assert (tmp_path / "new/model.safetensors").read_bytes() == run.read("draft/model.safetensors")


def test_readers_meanwhile_get_one_draft_or_the_other_never_a_mix(run, bucket: str, tmp_path: Path):
    """Two drafts take turns as the latest while readers fetch; `fetch` itself judges each as it would an export."""
    place = f"s3://{bucket}/drafts"
    weights = set()
    versions = []
    for seed in (0, 1):
        add_draft(run, seed=seed)
        add_report(run)
        weights.add(run.read("draft/model.safetensors"))
        versions.append(publish(run, place, say=quiet).version)
    seen: list[bytes] = []
    failed: list[Exception] = []

    def read(name: str) -> None:
        try:
            for turn in range(4):
                fetch(place, tmp_path / f"{name}-{turn}", say=quiet)
                seen.append((tmp_path / f"{name}-{turn}/model.safetensors").read_bytes())
        except Exception as error:
            failed.append(error)

    readers = [threading.Thread(target=read, args=(f"reader-{n}",)) for n in range(3)]
    for reader in readers:
        reader.start()
    turn = 0
    while any(reader.is_alive() for reader in readers):
        open_store(place).write("latest", json.dumps({"version": versions[turn % 2]}).encode())
        turn += 1
    for reader in readers:
        reader.join()
    assert not failed
    assert len(seen) == 12 and set(seen) <= weights


# -- the other end -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "README.md"])
def test_a_corrupted_object_is_refused_by_its_name(run, bucket: str, tmp_path: Path, name: str):
    version = publish(run, f"s3://{bucket}/drafts", say=quiet).version
    key = f"drafts/versions/{version}/{name}"
    body = bytearray(boto3.client("s3").get_object(Bucket=bucket, Key=key)["Body"].read())
    body[len(body) // 2] ^= 1
    boto3.client("s3").put_object(Bucket=bucket, Key=key, Body=bytes(body))
    with pytest.raises(BadInput, match=f"{name} of version {version} is damaged there; publish it again"):
        fetch(f"s3://{bucket}/drafts", tmp_path / "here", say=quiet)
    assert name not in names(tmp_path / "here") and MANIFEST not in names(tmp_path / "here")


def test_files_that_somebody_else_published_as_a_draft_are_verified_too(run, tmp_path: Path):
    """Every SHA-256 is right, and the draft is not what was exported."""
    from spec.publishing import versions

    (tmp_path / "run/draft/config.json").write_bytes(run.read("draft/config.json").replace(b"500000.0", b"10000.0"))
    files = {path.name: path for path in (tmp_path / "run/draft").iterdir()}
    versions.publish(str(tmp_path / "published"), "draft", files, quiet)
    with pytest.raises(BadInput, match=r"rope_\w+ is .*10000.0.*, was exported as .*500000.0"):
        fetch(str(tmp_path / "published"), tmp_path / "here", say=quiet)


# -- the command lines -------------------------------------------------------------------------------------------------


def test_fetch_prints_the_command_that_serves_the_draft(run, tmp_path: Path):
    assert run_tool("publish_draft", run.url, tmp_path / "published").returncode == 0
    folder = tmp_path / "the draft"
    done = run_tool("fetch_draft", tmp_path / "published", folder)
    assert (done.returncode, done.stderr) == (0, "")
    command = done.stdout[done.stdout.index("python -m sglang.launch_server") :]
    assert "--model-path ORG/Target-8B-Instruct " in command
    assert "--speculative-algorithm EAGLE3 " in command
    assert f"--speculative-draft-model-path '{folder}' " in command
    done = run_tool("fetch_draft", tmp_path / "published", folder, "--target", "/models/target")
    assert "--model-path /models/target " in done.stdout


@pytest.mark.parametrize(("passed", "code"), [(True, 0), (False, 3)])
def test_the_exit_code_tells_a_poor_draft_from_a_good_one(run, tmp_path: Path, passed: bool, code: int):
    add_report(run, passed=passed)
    done = run_tool("publish_draft", run.url, tmp_path / "published")
    assert done.returncode == code
    assert passed or "missed its bar" in refusal(done)[1]


def test_a_draft_without_a_report_is_wrong_input(run, tmp_path: Path):
    lose_report(run)
    code, line = refusal(run_tool("publish_draft", run.url, tmp_path / "published"))
    assert code == 2 and "--without-report" in line
    assert run_tool("publish_draft", run.url, tmp_path / "published", "--without-report").returncode == 0


def test_a_bucket_that_is_not_there_is_one_line(run, bucket: str, tmp_path: Path):
    for done in (
        run_tool("publish_draft", run.url, "s3://nobody-has-this-bucket/drafts"),
        run_tool("fetch_draft", "s3://nobody-has-this-bucket/drafts", tmp_path / "here"),
    ):
        code, line = refusal(done)
        assert code == 2 and "NoSuchBucket" in line


class ReadOnly(BaseHTTPRequestHandler):
    """An S3 endpoint with an empty bucket that may be read and not written."""

    def log_message(self, *_):
        pass

    def answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if "list-type=2" in self.path:
            status, text = 200, "<ListBucketResult/>"
        else:
            status, code = (404, "NoSuchKey") if self.command in ("GET", "HEAD") else (403, "AccessDenied")
            text = f"<Error><Code>{code}</Code><Message>{code}</Message></Error>"
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body if self.command != "HEAD" else b"")

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = answer  # noqa: N815


def test_a_bucket_that_may_not_be_written_is_one_line(run, bucket: str, monkeypatch: pytest.MonkeyPatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), ReadOnly)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    code, line = refusal(run_tool("publish_draft", run.url, "s3://bucket/drafts"))
    server.shutdown()
    assert code == 2 and "AccessDenied" in line and "s3://bucket/drafts/versions/" in line


def test_a_hub_that_refuses_the_token_is_one_line(run, hub: Hub, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_TOKEN", "hf_nobody")
    code, line = refusal(run_tool("publish_draft", run.url, "hf://ORG/NAME"))
    assert code == 2 and "HF_TOKEN" in line


def test_the_checksum_knob_reaches_the_store(run, bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """boto3 adds CRC32 to every upload unless told otherwise; some stores refuse that."""
    from spec.storage.s3 import S3Store

    sent: list[bool] = []
    made = S3Store.__init__

    def listening(self, url):
        made(self, url)
        self._client.meta.events.register(
            "before-send.s3.PutObject",
            lambda request, **_: sent.append(
                "x-amz-sdk-checksum-algorithm" in {name.lower() for name in request.headers}
            ),
        )

    monkeypatch.setattr(S3Store, "__init__", listening)
    for value, added in (("when_supported", True), ("when_required", False)):
        monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", value)
        sent.clear()
        publish(run, f"s3://{bucket}/{value}", say=quiet)
        assert len(sent) == len(FILES | EVIDENCE) + 2 and set(sent) == {added}
        fetch(f"s3://{bucket}/{value}", tmp_path / value, say=quiet)


@pytest.mark.parametrize(
    ("destination", "method", "place"),
    [
        ("s3://b/drafts", "eagle3", "s3://b/drafts"),
        ("s3://b/drafts/", "dspark", "s3://b/drafts/dspark"),
        ("runs/published", "dflash", "runs/published/dflash"),
        ("hf://ORG/NAME", "eagle3", "hf://ORG/NAME"),
        ("hf://ORG/NAME", "dspark", "hf://ORG/NAME-dspark"),
        ("hf://ORG/Name-DSpark", "dspark", "hf://ORG/Name-DSpark"),
        ("hf://ORG/NAME@main", "dspark", "hf://ORG/NAME@main"),
    ],
)
def test_two_methods_under_one_destination_keep_their_own_latest(destination, method, place):
    assert place_of(destination, METHODS[method]) == place


def test_on_a_hub_each_method_begins_from_the_head_of_its_own_repository(hub: Hub):
    heads = {}
    for repo in ("ORG/NAME", "ORG/NAME-dspark"):
        hub.create(f"models/{repo}")
        heads[repo] = hub.commit(f"models/{repo}", {"config.json": repo.encode()})
    for method, repo in (("eagle3", "ORG/NAME"), ("dspark", "ORG/NAME-dspark"), ("dflash", "ORG/NAME")):
        source = resolve("hf://ORG/NAME", METHODS[method])
        assert source is not None and source.commit == heads[repo]
