"""Every pod that the objects would make, whoever makes it: the rules on pods see them all alike."""

from collections.abc import Iterator
from typing import Any

import yaml

from tests.manifests.objects import TAG, Json, World, workflow_spec

ARGO_OWN = ("init", "wait")  # Argo's containers in a workflow's pod; in a resource template, its `main` too


def pods(world: World) -> Iterator[tuple[str, Json, dict[str, str]]]:
    """(where, pod spec, labels) of Deployments, CronJobs, training jobs, steps, and what deletes artifacts."""
    for item in world.objects:
        yield from _of_object(item["metadata"].get("name", item["kind"]), item)
    for where, item in world.embedded:
        yield from _of_object(where, item)
    for owner in world.objects:
        if collector := workflow_spec(owner).get("artifactGC"):
            labels = (collector.get("podMetadata") or {}).get("labels", {})
            yield f"{owner['metadata'].get('name')}/artifactGC", _collector(collector), labels
    for owner, template in world.templates():
        if "container" in template or "resource" in template:
            where = f"{owner['metadata']['name']}/{template['name']}"
            yield (
                where,
                _workflow_pod(workflow_spec(owner), template),
                (template.get("metadata") or {}).get("labels", {}),
            )


def containers(spec: Json) -> list[Json]:
    return (spec.get("initContainers") or []) + (spec.get("containers") or [])


def _of_object(where: str, item: Json) -> Iterator[tuple[str, Json, dict[str, str]]]:
    spec: Any = item.get("spec") or {}
    if item["kind"] == "CronJob":
        spec = spec["jobTemplate"]["spec"]
    templates = [spec.get("template")] if item["kind"] in ("Deployment", "CronJob") else []
    if item["kind"] == "PyTorchJob":
        templates = [replica["template"] for replica in spec["pytorchReplicaSpecs"].values()]
    for template in templates:
        yield where, template["spec"], (template.get("metadata") or {}).get("labels", {})


def _collector(collector: Json) -> Json:
    """The pod that deletes artifacts, as Argo builds it: of its own making, and locked down, but for `podSpecPatch`."""
    context = {"readOnlyRootFilesystem": True, "allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    patch = yaml.safe_load(collector.get("podSpecPatch") or "{}")
    patched = {item["name"]: item for item in patch.pop("containers", [])}
    main = {"name": "main", "securityContext": context} | patched.pop("main", {})
    return {
        "securityContext": {"runAsNonRoot": True, "runAsUser": 8737, "seccompProfile": {"type": "RuntimeDefault"}},
        "serviceAccountName": collector.get("serviceAccountName"),
        "containers": [main, *({"name": name, "unknown": True} for name in patched)],
        "resource": False,
        **patch,
    }


def _workflow_pod(spec: Json, template: Json) -> Json:
    """The pod of a template as Argo builds it: its own containers beside ours, then `podSpecPatch`."""
    if "container" in template:
        main = {"name": "main", **template["container"]}
        own: dict[str, list[Json]] = {"initContainers": [{"name": "init"}], "containers": [{"name": "wait"}, main]}
    else:
        own = {"initContainers": [{"name": "init"}], "containers": [{"name": "main"}]}
        if (template.get("archiveLocation") or {}).get("archiveLogs", spec.get("archiveLogs")):
            own["containers"].append({"name": "wait"})
    patch = yaml.safe_load(TAG.sub("1", template.get("podSpecPatch") or "{}"))
    for group in own:
        patched = {item["name"]: item for item in patch.get(group) or []}
        unknown = patched.keys() - {item["name"] for item in own[group]}
        own[group] = [item | patched.get(item["name"], {}) for item in own[group]]
        own[group] += [{"name": name, "unknown": True} for name in unknown]  # Argo would refuse such a pod
    return {
        **own,
        "initContainers": own["initContainers"] + (template.get("initContainers") or []),
        "securityContext": template.get("securityContext") or spec.get("securityContext") or {},
        "serviceAccountName": template.get("serviceAccountName") or spec.get("serviceAccountName"),
        "volumes": template.get("volumes") or [],
        "argo": True,
        "resource": "resource" in template,
    }
