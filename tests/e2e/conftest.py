"""What the cases stand on, and the table of them at the end.

Wanted: a cluster in KUBECONFIG with Argo Workflows 3.7 or later, the training operator 1.9, an S3 server as Service s3
of namespace object-store (keys in its Secret s3), the overlay `local` applied, and its images on the nodes.
"""

from collections.abc import Iterator

import pytest

from tests.e2e import inputs
from tests.e2e.cluster import bucket, credentials, kubectl, make_bucket

SECRET = "s3-credentials"
_rows: list[tuple[str, str, float, str]] = []


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


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo) -> Iterator[None]:
    outcome = yield
    report = outcome.get_result()  # type: ignore[attr-defined]
    if report.when == "call" or report.failed:
        told = "; ".join(str(value) for _, value in item.user_properties)
        name = item.name.removeprefix("test_").replace("_", " ")
        _rows.append((name, report.outcome, call.duration, told))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    terminalreporter.section("case → outcome → time")
    for name, outcome, seconds, told in _rows:
        terminalreporter.write_line(f"{name} → {outcome} → {seconds:.0f} s" + (f" ({told})" if told else ""))
