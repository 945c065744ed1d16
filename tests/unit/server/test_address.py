"""Keys, passwords and proxies: one rule for all clients of a server, and nothing secret in what is said or kept."""

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from spec.conversations.server import Sampling, Server
from spec.errors import BadInput
from spec.server.address import address_of
from spec.server.sglang import SglangServer
from spec.storage import open_store
from tests.s3 import bucket, s3_endpoint  # noqa: F401
from tests.stub_server import StubServer

TOOL = Path(__file__).parents[3] / "tools" / "filter_data.py"


def test_space_around_a_key_is_no_part_of_it(monkeypatch):
    monkeypatch.setenv("SGL_SPEC_API_KEY", "key-1\n")
    assert address_of("http://host:1/v1/") == ("http://host:1", {"Authorization": "Bearer key-1"})
    with StubServer() as stub:
        server = Server(stub.url, Sampling(max_tokens=8))
        asyncio.run(ask(server))
        assert stub.asked[-1].authorization == "Bearer key-1"


async def ask(server):
    async with server:
        await server.connect()
        await server.chat([{"role": "user", "content": "hi"}])


@pytest.mark.parametrize("key", ["se\ncret", "se cret", "s\u00e9cret", "se\x00cret"])
def test_a_key_that_no_header_holds_is_refused_unseen(key):
    for client in (lambda: Server("http://h", Sampling(), api_key=key), lambda: address_of("http://h", key)):
        with pytest.raises(BadInput, match="SGL_SPEC_API_KEY: holds a character") as caught:
            client()
        assert "cret" not in str(caught.value)


def test_a_name_and_password_in_the_url_are_sent_and_never_shown(monkeypatch):
    monkeypatch.delenv("SGL_SPEC_API_KEY", raising=False)
    url, headers = address_of("http://bob:secret%21@host:1")
    assert url == "http://host:1" and headers == {"Authorization": "Basic Ym9iOnNlY3JldCE="}
    for wrong in ("ftp://bob:secret@host", "http://bob:secret@", "http://bob:secret@host:port", "bob:secret@host"):
        with pytest.raises(BadInput) as caught:
            address_of(wrong)
        assert "secret" not in str(caught.value)
    with pytest.raises(BadInput, match="leave one out") as caught:
        address_of("http://bob:secret@host", "key")
    assert "secret" not in str(caught.value)


def test_a_server_is_asked_directly_whatever_proxy_the_environment_names(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with StubServer() as stub:
        asyncio.run(ask(Server(stub.url, Sampling(max_tokens=8))))
        assert SglangServer(stub.url).context_length == 8192


def test_a_store_on_this_machine_is_asked_directly_and_its_keys_are_stripped(bucket, monkeypatch):  # noqa: F811
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test\n")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", " test\n")
    open_store(f"s3://{bucket}").write("a", b"1")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "se\ncret")
    with pytest.raises(BadInput, match="AWS_SECRET_ACCESS_KEY") as caught:
        open_store(f"s3://{bucket}").read("a")
    assert "cret" not in str(caught.value).removeprefix("AWS_SECRET_ACCESS_KEY")


@pytest.mark.parametrize(
    ("url", "key"),
    [("http://bob:hush-hush@{}", ""), ("http://bob:hush-hush@{}", "hush-hush"), ("http://{}", "hush-\nhush"),
     ("http://{}", "hush-hush\n"), ("http://bob:hush-hush@127.0.0.1:1", "")],
)  # fmt: skip
def test_no_file_and_no_word_of_a_failing_run_holds_the_secret(tmp_path, url, key):
    (tmp_path / "rows.jsonl").write_text('{"prompt": "hi"}\n')
    with StubServer() as stub:
        stub.model = "other"
        command = [sys.executable, str(TOOL), "--dataset-name", "rows.jsonl", "--output", "run", "--model", "wanted"]
        command += ["--base-url", url.format(stub.url.removeprefix("http://")), "--patience", "1"]
        environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "SGL_SPEC_API_KEY": key}
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode in (2, 75) and "Traceback" not in done.stderr
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    for secret in ("hush", "aHVzaC1odXNo", "Ym9i"):  # also as base64
        assert secret not in done.stdout + done.stderr and secret.encode() not in written
