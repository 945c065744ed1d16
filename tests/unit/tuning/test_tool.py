"""What cannot be meant is refused in one line, before a draft is read or a server started."""

import pytest

from tests.command_line import run_tool
from tests.runs import make_run


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--concurrency", "1,many"], "--concurrency 1,many: whole numbers of at least 1"),
        (["--drafts", "0,3"], "--drafts 0,3: whole numbers"),
        (["--drafts", "adaptive,many"], "--drafts many: whole numbers"),
        (["--server-options", "--tp-size '2"], "--server-options --tp-size '2: no closing quotation"),
        (["--only", "half"], "--only half: left, measure or join"),
        (["--base-url", "3=http://h:1"], "--base-url and --baseline-url go together"),
        (["--baseline-url", "http://h:1", "--base-url", "http://bob:secret@h:1"], "it reads like 3=http"),
        (["--baseline-url", "http://h:1", "--base-url", "3=http://h:2", "--drafts", "3,5"], "no --base-url 5=URL"),
    ],
)
def test_refused(tmp_path, options, said):
    run = make_run(tmp_path / "run")
    done = run_tool("tune_server", run.url, "--target", tmp_path, *options)
    assert done.returncode == 2 and said in done.stderr.splitlines()[-1] and done.stderr.count("error: ") == 1
    assert "secret" not in done.stderr
