"""Rules on names: whatever one object or template names must exist where it looks for it."""

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

from tests.manifests.objects import TAG, Json, World, steps_of, workflow_spec
from tests.manifests.pods import containers, pods

Found = Iterator[tuple[str, str]]  # (where, message)
# In an expression, a name with a dash stands in brackets.
_PARAMETER = re.compile(r"(inputs|workflow)\.parameters(?:\.([\w-]+)|\['([\w-]+)'\])")
_OUTPUT = re.compile(r"(?:tasks|steps)\.([\w-]+)\.outputs\.(parameters|artifacts)\.([\w-]+)")


def template(world: World) -> Found:
    """Entry points, exit hooks, steps and `workflowTemplateRef` lead to a template that exists."""
    for owner in world.objects:
        spec, where = workflow_spec(owner), _name(owner)
        if reference := spec.get("workflowTemplateRef"):
            if not world.named("WorkflowTemplate", reference["name"]):
                yield where, f"there is no WorkflowTemplate {reference['name']}"
            continue
        entries = [{"template": spec["entrypoint"]}] if "entrypoint" in spec else []
        entries += (spec.get("hooks") or {}).values()
        entries += [{"template": spec["onExit"]}] if "onExit" in spec else []
        for step in entries:
            if not world.template(owner, step):
                yield where, f"there is no template {_called(step)}"
    for owner, calling in world.templates():
        for step in steps_of(calling):
            if not world.template(owner, step):
                yield _where(owner, calling, step), f"there is no template {_called(step)}"


def service_account(world: World) -> Found:
    """Pods and role bindings name service accounts of the build; `default` is always there."""
    known = {item["metadata"]["name"] for item in world.of("ServiceAccount")} | {"default"}
    named = [(where, spec.get("serviceAccountName")) for where, spec, _ in pods(world)]
    named += [
        (item["metadata"]["name"], subject["name"]) for item in world.of("RoleBinding") for subject in item["subjects"]
    ]
    for where, name in named:
        if name and name not in known:
            yield where, f"there is no service account {name}"


def role(world: World) -> Found:
    """Role bindings name Roles of the build."""
    for item in world.of("RoleBinding"):
        if not world.named(item["roleRef"]["kind"], item["roleRef"]["name"]):
            yield item["metadata"]["name"], f"there is no {item['roleRef']['kind']} {item['roleRef']['name']}"


def config_map(world: World) -> Found:
    """Every ConfigMap, and every key of one, that a pod or a parameter reads."""
    for where, container in _containers(world):
        for source in container.get("envFrom") or []:
            name = (source.get("configMapRef") or {}).get("name")
            if name and not world.named("ConfigMap", name):
                yield where, f"there is no ConfigMap {name}"
        for variable in container.get("env") or []:
            yield from _key_exists(world, where, (variable.get("valueFrom") or {}).get("configMapKeyRef"))
    for owner in world.objects:
        if repository := workflow_spec(owner).get("artifactRepositoryRef"):
            yield from _key_exists(world, _name(owner), {"name": repository["configMap"], "key": repository["key"]})
        for semaphore in (workflow_spec(owner).get("synchronization") or {}).get("semaphores") or []:
            yield from _key_exists(world, _name(owner), semaphore.get("configMapKeyRef"))
        for parameter in _declared(workflow_spec(owner).get("arguments")):
            reference = (parameter.get("valueFrom") or {}).get("configMapKeyRef")
            yield from _key_exists(world, _name(owner), reference, for_argo=True)
    for owner, inside in world.templates():
        for parameter in _declared(inside.get("inputs")):
            reference = (parameter.get("valueFrom") or {}).get("configMapKeyRef")
            yield from _key_exists(world, _where(owner, inside), reference, for_argo=True)


def secret_key(world: World) -> Found:
    """Every Secret and key that is read is one that components/external-secrets makes."""
    for where, container in _containers(world):
        for source in container.get("envFrom") or []:
            name = (source.get("secretRef") or {}).get("name")
            if name and name not in world.secrets:
                yield where, f"there is no Secret {name}"
        for variable in container.get("env") or []:
            reference = (variable.get("valueFrom") or {}).get("secretKeyRef")
            if reference and reference["key"] not in world.secrets.get(reference["name"], ()):
                yield where, f"there is no key {reference['key']} in a Secret {reference['name']}"


def claim(world: World) -> Found:
    """Volume claims exist, and volume mounts name a volume of their pod."""
    for where, spec, _ in pods(world):
        volumes = {volume["name"]: volume for volume in spec.get("volumes") or []}
        for volume in volumes.values():
            name = (volume.get("persistentVolumeClaim") or {}).get("claimName")
            if name and not world.named("PersistentVolumeClaim", name):
                yield where, f"there is no PersistentVolumeClaim {name}"
        for container in containers(spec):
            for mount in container.get("volumeMounts") or []:
                if mount["name"] not in volumes:
                    yield where, f"{container['name']} mounts {mount['name']}, which is no volume of its pod"


def parameter(world: World) -> Found:
    """`{{...}}` names declared inputs, outputs and workflow parameters; calls pass what is asked for and no more."""
    for owner, inside in world.templates():
        where = _where(owner, inside)
        inputs = {item["name"] for item in _declared(inside.get("inputs"))}
        arguments = {item["name"] for item in _declared(workflow_spec(owner).get("arguments"))}
        text = json.dumps(inside)
        for tag in TAG.findall(text):
            for holder, plain, bracketed in _PARAMETER.findall(tag):
                asked = plain or bracketed
                if asked not in (inputs if holder == "inputs" else arguments):
                    yield where, f"{{{{{tag}}}}}: no {holder.removesuffix('s')} parameter {asked}"
        yield from _outputs(world, owner, inside, where, text, "parameters")
        for step in steps_of(inside):
            yield from _passed(world, owner, step, _where(owner, inside, step))
    for owner in world.objects:  # what `argo submit` of an example would say
        if reference := workflow_spec(owner).get("workflowTemplateRef"):
            called = workflow_spec(world.named("WorkflowTemplate", reference["name"]) or {})
            known = {item["name"] for item in _declared(called.get("arguments"))}
            for given in _declared(workflow_spec(owner).get("arguments")):
                if given["name"] not in known:
                    yield _name(owner), f"{reference['name']} has no parameter {given['name']}"


def artifact(world: World) -> Found:
    """Artifacts that a step takes from another one are among that one's outputs."""
    for owner, inside in world.templates():
        yield from _outputs(world, owner, inside, _where(owner, inside), json.dumps(inside), "artifacts")


def depends(world: World) -> Found:
    """A task waits for tasks that exist, and reads outputs only of those that end before it begins."""
    for owner, inside in world.templates():
        tasks = {task["name"]: task for task in (inside.get("dag") or {}).get("tasks") or []}
        for name, task in tasks.items():
            where = _where(owner, inside, task)
            for other in sorted(_waits_for(task) - tasks.keys()):
                yield where, f"waits for {other}, which is no task of this template"
            before = _before(tasks, name)
            for other in sorted({other for other, _, _ in _OUTPUT.findall(json.dumps(task))} - before):
                yield where, f"reads an output of {other}, which need not have ended"


def _waits_for(task: Json) -> set[str]:
    """`a && (b.Succeeded || c)`: a, b, c."""
    words: list[str] = re.findall(r"[\w.-]+", task.get("depends") or "")
    return {word.partition(".")[0] for word in words}


def _before(tasks: dict[str, Json], name: str) -> set[str]:
    before: set[str] = set()
    waiting = [name]
    while waiting:
        new = (_waits_for(tasks.get(waiting.pop(), {})) & tasks.keys()) - before
        before |= new
        waiting += new
    return before


def _outputs(world: World, owner: Json, inside: Json, where: str, text: str, sort: str) -> Found:
    steps = {step["name"]: step for step in steps_of(inside)}
    for step, kind, name in _OUTPUT.findall(text):
        if kind == sort:
            called = world.template(owner, steps[step]) if step in steps else None
            outputs = ((called[1].get("outputs") or {}).get(kind) or []) if called else []
            if name not in [output["name"] for output in outputs]:
                yield where, f"{step} has no output {kind[:-1]} {name}"


def _passed(world: World, owner: Json, step: Json, where: str) -> Found:
    if not (called := world.template(owner, step)):
        return
    inputs = {item["name"]: item for item in _declared(called[1].get("inputs"))}
    given = {item["name"] for item in _declared(step.get("arguments"))}
    for name in sorted(given - inputs.keys()):
        yield where, f"{called[1]['name']} has no input parameter {name}"
    for name, item in inputs.items():
        if name not in given and item.get("value") is None and "valueFrom" not in item and "default" not in item:
            yield where, f"{called[1]['name']} needs the parameter {name}"


def _key_exists(world: World, where: str, reference: Json | None, *, for_argo: bool = False) -> Found:
    if not reference:
        return
    if world.data(reference["name"], reference["key"]) is None:
        yield where, f"there is no key {reference['key']} in a ConfigMap {reference['name']}"
        return
    labels = (world.named("ConfigMap", reference["name"]) or {})["metadata"].get("labels") or {}
    if for_argo and labels.get("workflows.argoproj.io/configmap-type") != "Parameter":
        yield where, f"Argo reads no parameter from ConfigMap {reference['name']}: it lacks the label"


def _containers(world: World) -> Iterator[tuple[str, Json]]:
    for where, spec, _ in pods(world):
        for container in containers(spec):
            yield f"{where}/{container['name']}", container


def _declared(holder: Json | None) -> list[Json]:
    return (holder or {}).get("parameters") or []


def _called(step: Json) -> str:
    reference = step.get("templateRef")
    return f"{reference['name']}/{reference['template']}" if reference else str(step.get("template"))


def _name(owner: Json) -> str:
    return owner["metadata"].get("name") or owner["metadata"].get("generateName", "")


def _where(owner: Json, inside: Json, step: Json | None = None) -> str:
    return "/".join([_name(owner), inside["name"], *([step["name"]] if step else [])])


RULES: dict[str, Callable[[World], Any]] = {
    "template": template,
    "service-account": service_account,
    "role": role,
    "config-map": config_map,
    "secret-key": secret_key,
    "claim": claim,
    "parameter": parameter,
    "artifact": artifact,
    "depends": depends,
}
