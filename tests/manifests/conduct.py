"""Rules on conduct: what a pod may ask for and do, and what a workflow must not leave to chance."""

import re
from collections.abc import Callable, Iterator
from typing import Any

from tests.manifests.objects import Json, World, workflow_spec
from tests.manifests.pods import ARGO_OWN, containers, pods

Found = Iterator[tuple[str, str]]  # (where, message)

# An exit code of 2 or 3 is final. Retried besides deleted pods (Error): -1, a pod without an exit code, which its node
# refused or evicted before its container ended; 137, one that was evicted, killed on its node, or out of memory.
RETRIES = {
    "lastRetry.status == 'Error' || asInt(lastRetry.exitCode) in [-1, 75, 137, 143]",
    "lastRetry.status == 'Error' || asInt(lastRetry.exitCode) in [-1, 137, 143]",  # a watcher's 75 ends its patience
}
RETRY_OF_RESOURCES = (  # what an API server that restarts, and a webhook of one, answer; not what they deny
    "lastRetry.status == 'Error' || lastRetry.message matches 'failed calling webhook|refused|timeout|timed out|EOF'"
)
_CREDENTIAL = re.compile(r"(secret|token(?!s)|password|passwd|credential|api-?key|access-?key)", re.I)


def no_latest(world: World) -> Found:
    """Every image has a tag, and none is `latest`."""
    for where, spec, _ in pods(world):
        for container in containers(spec):
            name = container.get("image")
            if name and not _pinned(name):
                yield f"{where}/{container['name']}", f"image {name}: pin it by a tag or a digest"
    for item in world.of("ConfigMap"):
        for key, value in (item.get("data") or {}).items():
            if key.endswith("-image") and not _pinned(value):
                yield item["metadata"]["name"], f"image {value}: pin it by a tag or a digest"


def resources(world: World) -> Found:
    """Requests and limits of CPU and memory for every container, Argo's own too: a quota refuses pods without."""
    for where, spec, _ in pods(world):
        for container in containers(spec):
            asked = container.get("resources") or {}
            missing = [
                f"{part}.{what}"
                for part in ("requests", "limits")
                for what in ("cpu", "memory")
                if what not in (asked.get(part) or {})
            ]
            if missing:
                yield f"{where}/{container['name']}", f"no {', '.join(missing)}"


def security_context(world: World) -> Found:
    """What the pod security level `restricted` wants, and a read-only root for every container of ours."""
    for where, spec, _ in pods(world):
        pod = spec.get("securityContext") or {}
        if not (pod.get("runAsNonRoot") and pod.get("runAsUser", 1) != 0):
            yield where, "runs as root: runAsNonRoot is missing"
        if (pod.get("seccompProfile") or {}).get("type") != "RuntimeDefault":
            yield where, "no seccompProfile RuntimeDefault"
        for container in containers(spec):
            context = container.get("securityContext") or {}
            at = f"{where}/{container['name']}"
            if container.get("unknown"):
                yield at, "podSpecPatch names a container that the pod does not have"
                continue
            if context.get("allowPrivilegeEscalation") is not False:
                yield at, "allowPrivilegeEscalation is not false"
            if (context.get("capabilities") or {}).get("drop") != ["ALL"]:
                yield at, "does not drop ALL capabilities"
            argos = spec.get("argo") and (container["name"] in ARGO_OWN or spec["resource"])
            if not argos and context.get("readOnlyRootFilesystem") is not True:
                yield at, "its root file system is writable"


def token(world: World) -> Found:
    """Servers and trainers run other people's code on other people's data: they get no token of the cluster."""
    for where, spec, labels in pods(world):
        if (
            labels.get("sgl-spec/role") in ("server", "trainer")
            and spec.get("automountServiceAccountToken") is not False
        ):
            yield where, "automountServiceAccountToken is not false"


def network(world: World) -> Found:
    """Everything is denied by default, and every pod carries a role that the policies open something for."""
    policies = [item["spec"] for item in world.of("NetworkPolicy")]
    if not any(policy["podSelector"] == {} and len(policy["policyTypes"]) == 2 for policy in policies):
        yield "NetworkPolicy", "nothing denies by default"
    opened = {role for policy in policies for role in _roles(policy["podSelector"])}
    for where, _, labels in pods(world):
        if labels.get("sgl-spec/role") not in opened:
            yield where, f"role {labels.get('sgl-spec/role')}: no network policy opens anything for it"


def description(world: World) -> Found:
    """Every parameter says what it is, every WorkflowTemplate, Role and service account what it is for."""
    for owner, template in world.templates():
        for item in (template.get("inputs") or {}).get("parameters") or []:
            if not item.get("description"):
                yield f"{owner['metadata']['name']}/{template['name']}", f"parameter {item['name']}: no description"
    for owner in world.of("WorkflowTemplate"):
        for item in (workflow_spec(owner).get("arguments") or {}).get("parameters") or []:
            if not item.get("description"):
                yield owner["metadata"]["name"], f"parameter {item['name']}: no description"
            if item.get("value") is None and "valueFrom" not in item:
                yield owner["metadata"]["name"], f"parameter {item['name']}: no default"
    wanted = {
        "WorkflowTemplate": "workflows.argoproj.io/description",
        "Role": "description",
        "ServiceAccount": "description",
    }
    for kind, key in wanted.items():
        for item in world.of(kind):
            if not (item["metadata"].get("annotations") or {}).get(key):
                yield f"{kind} {item['metadata']['name']}", "no description"


def credentials(world: World) -> Found:
    """No credential is a parameter or stands in an object: both are there for everybody to read."""
    for owner in world.objects:
        for item in (workflow_spec(owner).get("arguments") or {}).get("parameters") or []:
            if _CREDENTIAL.search(item["name"]):
                yield (
                    owner["metadata"].get("name", ""),
                    f"parameter {item['name']}: read it from a Secret by secretKeyRef",
                )
    for owner, template in world.templates():
        for item in (template.get("inputs") or {}).get("parameters") or []:
            if _CREDENTIAL.search(item["name"]):
                yield (
                    f"{owner['metadata']['name']}/{template['name']}",
                    f"parameter {item['name']}: read it from a Secret",
                )
    for where, spec, _ in pods(world):
        for container in containers(spec):
            for variable in container.get("env") or []:
                if _CREDENTIAL.search(variable["name"].replace("_", "-")) and "valueFrom" not in variable:
                    yield f"{where}/{container['name']}", f"{variable['name']} stands there in plain"
    for item in world.of("Secret"):
        yield f"Secret {item['metadata']['name']}", "a Secret has no place among manifests"


def retry(world: World) -> Found:
    """Steps are tried again after lost pods and passing faults, and never after exit codes 2 and 3."""
    for owner, template in world.templates():
        where = f"{owner['metadata']['name']}/{template['name']}"
        strategy = template.get("retryStrategy") or {}
        if "container" in template:
            policy, expression = strategy.get("retryPolicy"), strategy.get("expression")
            if not (policy == "Always" and expression in RETRIES) and not (policy == "OnError" and not expression):
                yield where, "its retryStrategy would not try a lost pod again, or would retry exit code 2"
        if "resource" in template and strategy.get("expression") != RETRY_OF_RESOURCES:
            yield where, "its retryStrategy would retry what is denied, or not what passes"
        if int(strategy.get("limit", 1)) < 1 or "maxDuration" in (strategy.get("backoff") or {}):
            yield where, "no limit, or a maxDuration, which counts from the first attempt and ends long steps"


def owner(world: World) -> Found:
    """What a workflow makes is owned by it and labelled with it: two of the three ways that it goes away again."""
    for owner, template in world.templates():
        resource = template.get("resource")
        if resource and resource["action"] in ("create", "apply") and resource.get("setOwnerReference") is not True:
            yield f"{owner['metadata']['name']}/{template['name']}", "setOwnerReference is not true"
    for where, item in world.embedded:
        if "sgl-spec/workflow" not in (item["metadata"].get("labels") or {}):
            yield where, f"{item['kind']} without the label sgl-spec/workflow, by which the exit hook finds it"
    for item in world.of("WorkflowTemplate"):
        ttl = item["spec"].get("ttlStrategy") or {}
        if not {"secondsAfterSuccess", "secondsAfterFailure"} <= ttl.keys() and "secondsAfterCompletion" not in ttl:
            yield item["metadata"]["name"], "no ttlStrategy: its Workflows stay for ever"


def deadline(world: World) -> Found:
    """Nothing waits for ever: jobs, servers and what deletes artifacts have a longest time."""
    for where, spec, _ in pods(world):
        if where.endswith("/artifactGC") and not spec.get("activeDeadlineSeconds"):
            yield where, "no activeDeadlineSeconds: a Workflow whose store is gone could not be deleted"
    for item in world.of("WorkflowTemplate"):
        if (item["spec"].get("artifactGC") or {}).get("forceFinalizerRemoval") is not True:
            yield item["metadata"]["name"], "artifactGC without forceFinalizerRemoval: as above"
    for where, item in world.embedded:
        if item["kind"] == "PyTorchJob" and not (item["spec"].get("runPolicy") or {}).get("activeDeadlineSeconds"):
            yield where, "a training job without activeDeadlineSeconds"
        if item["kind"] == "Deployment":
            server = item["spec"]["template"]["spec"]["containers"][0]
            probes = [name for name in ("startupProbe", "readinessProbe", "livenessProbe") if name not in server]
            if probes or not item["spec"].get("progressDeadlineSeconds"):
                yield where, f"a server without {', '.join(probes) or 'progressDeadlineSeconds'}"
            if (server.get("readinessProbe") or {}).get("timeoutSeconds", 1) <= 20:
                yield where, "a readiness probe that gives up before SGLang's own 20 s"
    for item in world.of("CronJob"):
        if not item["spec"]["jobTemplate"]["spec"].get("activeDeadlineSeconds"):
            yield item["metadata"]["name"], "a CronJob without activeDeadlineSeconds"


def training_job(world: World) -> Found:
    """The settings of a PyTorchJob without which it hangs, leaks GPUs or is refused (see workflows/train.yaml)."""
    for where, item in world.embedded:
        if item["kind"] != "PyTorchJob":
            continue
        spec = item["spec"]
        worker, elastic = spec["pytorchReplicaSpecs"].get("Worker") or {}, spec.get("elasticPolicy") or {}
        wrong = {
            "a Master, whose workers get an init container that `restricted` refuses": "Master"
            in spec["pytorchReplicaSpecs"],
            "no c10d elasticPolicy": elastic.get("rdzvBackend") != "c10d",
            "minReplicas, maxReplicas and replicas that differ": not (
                elastic.get("minReplicas") == elastic.get("maxReplicas") == worker.get("replicas")
            ),
            "restarts of single ranks": worker.get("restartPolicy") != "Never" or elastic.get("maxRestarts") != 0,
            "a cleanPodPolicy that takes logs along": (spec.get("runPolicy") or {}).get("cleanPodPolicy") != "None",
            "no nprocPerNode": not spec.get("nprocPerNode"),
        }
        for what, is_wrong in wrong.items():
            if is_wrong:
                yield where, what


def _pinned(image: str) -> bool:
    name, _, digest = image.partition("@")
    tag = name.rpartition("/")[2].partition(":")[2]
    return bool(digest) or tag not in ("", "latest")


def _roles(selector: Json) -> list[str]:
    if "sgl-spec/role" in selector.get("matchLabels", {}):
        return [selector["matchLabels"]["sgl-spec/role"]]
    return [role for term in selector.get("matchExpressions", []) for role in term["values"]]


def signals(world: World) -> Found:
    """SIGTERM reaches what has time to end by it from its first second on.

    The kernel gives process 1 of a namespace no signal that it has not asked for, so a program that still imports
    would live until the grace period is over. Argo's executor, process 1 of its pods, passes signals on.
    """
    for where, spec, _ in pods(world):
        if spec.get("terminationGracePeriodSeconds", 30) > 30 and not spec.get("shareProcessNamespace"):
            yield where, "a grace period above 30 s without shareProcessNamespace: SIGTERM may not be heard"


RULES: dict[str, Callable[[World], Any]] = {
    "no-latest": no_latest,
    "resources": resources,
    "security-context": security_context,
    "token": token,
    "network": network,
    "description": description,
    "credentials": credentials,
    "retry": retry,
    "owner": owner,
    "deadline": deadline,
    "training-job": training_job,
    "signals": signals,
}
