"""Whoever waits for a run is told how it ended, by a real HTTP server that is up, down or out of order."""

import hashlib
import hmac
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from spec.cluster import notice
from spec.errors import BadInput
from spec.publishing.drafts import publish
from tests.runs import add_draft, add_report, make_run
from tests.unit.cluster.fake import made

ROOT = Path(__file__).parents[3]
KEY = "k3y-of-the-webhook"


class Receiver(BaseHTTPRequestHandler):
    """Answers with the statuses that it is given, then 200; keeps what was posted."""

    got: list[tuple[dict[str, str], bytes]]
    statuses: list[int]

    def log_message(self, *_: Any) -> None:
        pass

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.got.append((dict(self.headers), body))
        self.send_response(self.statuses.pop(0) if self.statuses else 200)
        self.send_header("Location", "http://127.0.0.1:9/elsewhere")
        self.send_header("Content-Length", "0")
        self.end_headers()


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    Receiver.got, Receiver.statuses = [], []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def url_of(server: ThreadingHTTPServer) -> str:
    return f"http://127.0.0.1:{server.server_port}/services/s3cret"


def ended(run: str = "", destination: str = "", *, failed: str = "") -> dict[str, Any]:
    """A workflow whose pipeline succeeded, or whose evaluation failed with these words."""
    given = [{"name": "run", "value": run}, {"name": "destination", "value": destination}]
    nodes = [
        {"id": "1", "name": "run[0].pipeline", "displayName": "pipeline", "type": "DAG", "phase": "Succeeded"},
        {"id": "2", "name": "x", "displayName": "preflight", "type": "Retry", "phase": "Succeeded"}
        | ({"inputs": {"parameters": given}} if run else {}),
    ]
    if failed:
        nodes.append({"id": "3", "name": "y", "displayName": "evaluate", "type": "Pod", "phase": "Failed"})
        nodes[-1]["message"] = failed
    metadata = {"name": "run", "namespace": "sgl-spec", "uid": "u1"}
    return {"metadata": metadata, "spec": {}, "status": {"nodes": {node["id"]: node for node in nodes}}}


def told() -> dict[str, Any]:
    return json.loads(Receiver.got[-1][1])


def test_a_run_that_published_is_told_with_its_figures_and_places(server, tmp_path):
    run, place = make_run(tmp_path / "run"), str(tmp_path / "published")
    version = publish(run, place, say=lambda line: None).version
    assert notice.tell(ended(run.url, place), url_of(server)) == "notice sent"
    found = told()
    assert (found["workflow"], found["namespace"], found["id"]) == ("run", "sgl-spec", "u1")
    assert (found["outcome"], found["why"]) == ("succeeded", "every step succeeded or was already done")
    assert found["accept_length"] == pytest.approx(1.7453) and found["speed_up"] == pytest.approx(84.2 / 70.1)
    assert found["draft"] == f"{place} (version {version})" and found["report"] == f"{run.url}/report/report.html"
    for said in ("run: succeeded", "accept length 1.75", "1.20 times", found["draft"], found["report"]):
        assert said in found["text"]


def test_a_refused_draft_is_told_as_one_and_lies_in_the_run(server, tmp_path):
    run, place = make_run(tmp_path / "run"), str(tmp_path / "published")
    publish(make_run(tmp_path / "other"), place, without_report=True, say=lambda line: None)
    add_draft(run, seed=1)
    add_report(run, passed=False)
    workflow = ended(run.url, place, failed="Error (exit code 3): error: the draft is weak")
    assert notice.tell(workflow, url_of(server)) == "notice sent"
    assert (told()["outcome"], told()["why"]) == ("refused", "evaluate: the draft is weak")
    assert told()["draft"] == f"{run.url}/draft"


@pytest.mark.parametrize(
    ("code", "outcome"), [(2, "failed"), (3, "refused"), (75, "failed"), (143, "stopped"), (1, "failed")]
)
def test_every_end_has_its_outcome(server, code, outcome):
    assert notice.message(ended(failed=f"Error (exit code {code}): error: words"))["outcome"] == outcome


def test_a_run_that_never_began_or_whose_store_is_gone_is_told_too(server):
    bare = {"metadata": {"name": "run"}, "status": {"message": "no such template"}}
    assert notice.tell(bare, url_of(server)) == "notice sent" and told()["why"] == "no such template"
    assert notice.tell(ended("s3:///nothing"), url_of(server)) == "notice sent"
    assert told()["accept_length"] is None and told()["run"] == "s3:///nothing"


def test_the_body_is_signed_with_the_key_and_only_with_one(server):
    notice.tell(ended(), url_of(server), KEY + "\n")
    headers, body = Receiver.got[-1]
    assert headers[notice.SIGNATURE] == "sha256=" + hmac.new(KEY.encode(), body, hashlib.sha256).hexdigest()
    assert KEY.encode() not in body and b"s3cret" not in body
    notice.tell(ended(), url_of(server))
    assert notice.SIGNATURE not in Receiver.got[-1][0]


# -- a webhook out of order --------------------------------------------------------------------------------------------


def test_what_may_pass_is_tried_again_with_the_same_message(server):
    Receiver.statuses = [503, 429, 500]
    assert notice.tell(ended(), url_of(server), wait=0.0) == "notice sent"
    assert len(Receiver.got) == 4 and len({body for _, body in Receiver.got}) == 1


@pytest.mark.parametrize(("statuses", "tries"), [([503] * 9, 5), ([404], 1), ([302], 1)])
def test_what_does_not_mend_is_said_and_raises_nothing(server, statuses, tries):
    """A redirect is not followed: the message is for the address in the Secret."""
    Receiver.statuses = list(statuses)
    said = notice.tell(ended(), url_of(server), wait=0.0)
    assert said == f"no notice was sent: the webhook answers {statuses[0]}" and len(Receiver.got) == tries


def test_a_webhook_that_is_down_is_said_without_its_address(server):
    url = url_of(server)
    server.shutdown()
    server.server_close()
    said = notice.tell(ended(), url, KEY, wait=0.0)
    assert said == "no notice was sent: the webhook cannot be reached (ConnectError)"


def test_a_bug_of_the_notice_is_not_the_runs(server, monkeypatch):
    monkeypatch.setattr(notice, "message", lambda workflow: 1 / 0)
    assert notice.tell(ended(), url_of(server)) == "no notice was sent: ZeroDivisionError"


@pytest.mark.parametrize(
    "url",
    [
        *("hooks.example.com/s3cret", "s3://bucket/s3cret", "https:///s3cret", "http://[s3cret"),
        *("http://host:port/s3cret", "https://host:99999/s3cret", "https://host:0/s3cret", "https://.../s3cret"),
        *("https://-bad-/s3cret", "https://a..b/s3cret", "https://a_b/s3cret", "https://10.0.0.256/s3cret"),
    ],
)
def test_what_is_no_address_is_refused_without_being_shown(url):
    with pytest.raises(BadInput, match=r"^secret webhook: WEBHOOK_URL: not a URL that") as error:
        notice.check_url("secret webhook: WEBHOOK_URL", url)
    assert "s3cret" not in str(error.value)
    assert notice.tell(ended(), url).startswith("no notice was sent: the webhook's address: not a URL")
    assert "s3cret" not in notice.tell(ended(), url)


@pytest.mark.parametrize(
    "host", ["hooks.Example.com", "hooks.example.com.", "relay", "1.2.3.4:8080", "[::1]:8080", "münchen.example:"]
)
def test_an_address_passes_whatever_names_its_host(host):
    notice.check_url("WEBHOOK_URL", f"https://{host}/services/s3cret\n")


# -- the exit hook -----------------------------------------------------------------------------------------------------

HOOK = """
import json, sys
from spec.cluster import api, notice
from tests.unit.cluster.fake import FakeCluster

notice.tell.__kwdefaults__["wait"] = 0.01
objects = json.loads(sys.argv.pop())
api.Cluster = lambda namespace: FakeCluster(**objects)
sys.argv[0] = "clean_up.py"
exec(compile(open("tools/clean_up.py").read(), "clean_up.py", "exec"))
"""


def exit_hook(environment: dict[str, str], *words: str, **objects: list[Any]) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", HOOK, "--workflow=run", *words, json.dumps(objects)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "WEBHOOK_KEY": KEY} | environment
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment, check=False)


@pytest.mark.parametrize("state", ["up", "down", "none"])
@pytest.mark.parametrize(("failed", "code"), [("", 0), ("Error (exit code 3): error: weak", 3)])
def test_the_exit_hook_ends_as_the_run_did_whatever_becomes_of_the_notice(server, state, failed, code):
    environment = {"WEBHOOK_URL": url_of(server)} if state != "none" else {}
    if state == "down":
        server.shutdown()
        server.server_close()
    done = exit_hook(environment, "--verdict", workflow=[ended(failed=failed)])
    assert done.returncode == code, done.stderr
    assert ("notice sent" in done.stdout, len(Receiver.got)) == (state == "up", int(state == "up"))
    assert ("no notice was sent: the webhook cannot be reached" in done.stdout) == (state == "down")
    assert "s3cret" not in done.stdout + done.stderr and KEY not in done.stdout + done.stderr
    assert not failed or done.stderr == "error: evaluate: weak\n"


@pytest.mark.parametrize(
    ("failed", "code", "error"),
    [
        ("", 75, "deployment/run-server: still there 0 s after being deleted; look at their pods' events"),
        ("Error (exit code 3): error: weak", 3, "evaluate: weak"),
    ],
)
def test_what_does_not_end_takes_neither_the_notice_nor_the_verdict(server, failed, code, error):
    stuck = made("run-server", "run")
    stuck["metadata"]["deletionTimestamp"] = "now"
    words = ("--verdict", "--seconds=0")
    done = exit_hook({"WEBHOOK_URL": url_of(server)}, *words, workflow=[ended(failed=failed)], deployment=[stuck])
    assert (done.returncode, done.stderr) == (code, f"error: {error}\n")
    assert "not ended: deployment/run-server: still there" in done.stdout
    assert told()["outcome"] == ("refused" if failed else "succeeded") and len(Receiver.got) == 1
