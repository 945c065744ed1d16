"""What the cases stand on, and the table of them at the end.

Wanted: a cluster in KUBECONFIG with Argo Workflows 3.7 or later, the training operator 1.9, an S3 server as Service s3
of namespace object-store (keys in its Secret s3), the overlay `local` applied, and its images on the nodes.
"""

import json
from collections.abc import Iterator

import pytest

from tests.e2e import inputs
from tests.e2e.cluster import NAMESPACE, Workflow, bucket, credentials, get, kubectl, make_bucket, submit

SECRET = "s3-credentials"
GOOD, OTHER = "good", "other"  # two runs, which the others begin with copies of
OTHER_OPTIONS = (
    "draft_vocab_size=128 epochs=20 optimizer.lr=3.0e-3 lr_scheduler.num_warmup_steps=5 save_every=20 seed=7"
)
UNTRAINED = ("checkpoints", "start", "draft", "report", "published", "costs")  # what a run has since its samples
_rows: dict[str, tuple[str, float, str]] = {}  # case -> outcome, seconds with what was set up for it, what it told


@pytest.fixture(scope="session", autouse=True)
def deployed(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The volume of the namespace, its Secret, the bucket, and what the runs begin with."""
    open_host_path()
    make_secret()
    with bucket("e2e") as store:
        make_bucket()
        inputs.upload(store, tmp_path_factory.mktemp("inputs"))


def open_host_path(namespace: str = NAMESPACE) -> None:
    """Let pods that are not root into the volume of claim `models`, where it is a host path of Kubernetes' own making.

    That one is root's, mode 0750, and fsGroup does not reach it; so its cluster's administrator must open it.
    """
    claim = get("persistentvolumeclaim", "models", namespace=namespace)
    volume = get("persistentvolume", claim["spec"]["volumeName"]) if "volumeName" in claim["spec"] else {"spec": {}}
    if "hostPath" not in volume["spec"]:
        return
    container = {
        "name": "chmod",
        "image": get("workflowtemplate", "preflight")["spec"]["templates"][0]["container"]["image"],
        "command": ["chmod", "0777", "/models"],
        "securityContext": {"runAsUser": 0},
        "volumeMounts": [{"name": "models", "mountPath": "/models"}],
    }
    volumes = [{"name": "models", "hostPath": {"path": volume["spec"]["hostPath"]["path"]}}]
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "open-models"},
        "spec": {"restartPolicy": "Never", "containers": [container], "volumes": volumes},
    }
    kubectl("apply", "--filename=-", namespace="default", given=json.dumps(pod))
    ended = "--for=jsonpath={.status.phase}=Succeeded"
    kubectl("wait", "pod/open-models", ended, "--timeout=120s", namespace="default")
    kubectl("delete", "pod/open-models", namespace="default")


def make_secret(namespace: str = NAMESPACE) -> None:
    words = [f"--from-literal={name}={value}" for name, value in credentials().items()]
    dry = ("--dry-run=client", "--output=yaml")
    manifest = kubectl("create", "secret", "generic", SECRET, *dry, *words, namespace=namespace)
    kubectl("apply", "--filename=-", given=manifest, namespace=namespace)


@pytest.fixture(scope="session")
def good(deployed: None) -> Workflow:
    """The whole pipeline, undisturbed and alone on the cluster."""
    return submit(GOOD, team="e2e")


@pytest.fixture(scope="session")
def other(good: Workflow) -> Workflow:
    """Another one, whose draft is another."""
    good.wait(1800)
    return submit(OTHER, train_options=OTHER_OPTIONS)


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
