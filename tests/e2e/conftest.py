"""What the cases stand on, and the table of them at the end.

Wanted: a cluster in KUBECONFIG with Argo Workflows 3.7 or later, the training operator 1.9, an S3 server as Service s3
of namespace object-store (keys in its Secret s3), the overlay `local` applied, and its images on the nodes.
"""

from collections.abc import Iterator

import pytest

from tests.e2e import inputs
from tests.e2e.cluster import Workflow, bucket, credentials, kubectl, make_bucket, submit

SECRET = "s3-credentials"
GOOD = "good"
_rows: dict[str, tuple[str, float, str]] = {}  # case -> outcome, seconds with what was set up for it, what it told


@pytest.fixture(scope="session", autouse=True)
def deployed(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The Secret of the namespace, the bucket, and what the runs begin with."""
    make_secret()
    with bucket("e2e") as store:
        make_bucket()
        inputs.upload(store, tmp_path_factory.mktemp("inputs"))


def make_secret() -> None:
    words = [f"--from-literal={name}={value}" for name, value in credentials().items()]
    manifest = kubectl("create", "secret", "generic", SECRET, "--dry-run=client", "--output=yaml", *words)
    kubectl("apply", "--filename=-", given=manifest)


@pytest.fixture(scope="session")
def good(deployed: None) -> Workflow:
    """The whole pipeline, undisturbed and alone on the cluster."""
    return submit(GOOD)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo) -> Iterator[None]:
    outcome = yield
    report = outcome.get_result()  # type: ignore[attr-defined]
    before, seconds, told = _rows.get(item.nodeid, ("", 0.0, ""))
    if report.when == "call" or not report.passed:
        told = "; ".join(str(value) for _, value in item.user_properties)
        before = report.outcome
    _rows[item.nodeid] = (before, seconds + call.duration, told)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Whatever the outcome, also of a session that was interrupted."""
    terminalreporter.section("case → outcome → time")
    for case, (outcome, seconds, told) in _rows.items():
        name = case.rpartition("::test_")[2].replace("_", " ")
        terminalreporter.write_line(
            f"{name} → {outcome or 'interrupted'} → {seconds:.0f} s" + (f" ({told})" if told else "")
        )
    terminalreporter.write_line(f"all → {sum(seconds for _, seconds, _ in _rows.values()):.0f} s")
