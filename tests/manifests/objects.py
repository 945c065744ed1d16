"""The objects that `make validate` judges: what kustomize builds, with what is hidden in text brought to light.

An Argo `resource` template carries its object as text with parameters in it. `World.embedded` fills these in as Argo
would, following arguments from template to template and into ConfigMaps, so that the real object can be judged.
"""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
Json = dict[str, Any]
TAG = re.compile(r"\{\{(.+?)\}\}")
_QUOTED = re.compile(r"=toJson\((.+)\)")


@cache
def build(folder: Path) -> list[Json]:
    """The objects of a kustomization, by kustomize or the one inside kubectl. Treat them as read-only."""
    command = ["kustomize", "build"] if shutil.which("kustomize") else ["kubectl", "kustomize"]
    done = subprocess.run([*command, str(folder)], capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"{folder.relative_to(ROOT)} does not build: {done.stderr.strip()}")
    return load(done.stdout)


def load(text: str) -> list[Json]:
    return [item for item in yaml.load_all(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)) if item]


@dataclass
class World:
    """Objects that are applied together, with look-ups."""

    objects: list[Json]
    secrets: dict[str, set[str]] = field(default_factory=dict)  # name -> keys, of Secrets made outside

    @cached_property
    def embedded(self) -> list[tuple[str, Json]]:
        """(where, object) of every object that a `resource` template would apply."""
        return list(_embedded(self))

    def of(self, kind: str) -> Iterator[Json]:
        return (item for item in self.objects if item.get("kind") == kind)

    def named(self, kind: str, name: str) -> Json | None:
        return next((item for item in self.of(kind) if item["metadata"].get("name") == name), None)

    def data(self, name: str, key: str) -> str | None:
        return ((self.named("ConfigMap", name) or {}).get("data") or {}).get(key)

    def templates(self) -> Iterator[tuple[Json, Json]]:
        """(WorkflowTemplate or Workflow, template) for every template, with `templateDefaults` merged in."""
        for owner in self.objects:
            spec = workflow_spec(owner)
            for template in spec.get("templates") or []:
                yield owner, with_defaults(spec.get("templateDefaults") or {}, template)

    def template(self, owner: Json, step: Json) -> tuple[Json, Json] | None:
        """The (owner, template) that a step or task calls."""
        if reference := step.get("templateRef"):
            owner, name = self.named("WorkflowTemplate", reference["name"]) or {}, reference["template"]
        else:
            name = step.get("template")
        found = next((item for item in workflow_spec(owner).get("templates") or [] if item["name"] == name), None)
        return (owner, found) if found else None


def workflow_spec(item: Json) -> Json:
    """Where a Workflow's spec is in each of Argo's kinds; {} for any other kind."""
    if item.get("kind") in ("Workflow", "WorkflowTemplate"):
        return item.get("spec") or {}
    if item.get("kind") == "CronWorkflow":
        return (item.get("spec") or {}).get("workflowSpec") or {}
    return {}


def steps_of(template: Json) -> list[Json]:
    """The steps or tasks that a template is made of."""
    steps = [step for group in template.get("steps") or [] for step in group]
    return steps + ((template.get("dag") or {}).get("tasks") or [])


def with_defaults(defaults: Json, template: Json) -> Json:
    """`template` over `templateDefaults`, as Argo merges them: lists of named things by name, the rest replaced."""
    kinds = {"container", "resource", "dag", "steps", "script"}
    kept = {key: value for key, value in defaults.items() if key not in kinds or key in template}
    return _merged(kept, template)


_KEYS = ("name", "mountPath")


def _merged(below: Any, above: Any) -> Any:
    if isinstance(below, dict) and isinstance(above, dict):
        return {key: _merged(below.get(key), above.get(key)) for key in below | above}
    if isinstance(below, list) and isinstance(above, list) and below and isinstance(below[0], dict):
        key = next((key for key in reversed(_KEYS) if key in below[0]), None)
        if key:
            byname = {item[key]: item for item in below}
            return list((byname | {item[key]: _merged(byname.get(item[key]), item) for item in above}).values())
    return below if above is None else above


def _embedded(world: World) -> Iterator[tuple[str, Json]]:
    for owner, template in world.templates():
        if text := (template.get("resource") or {}).get("manifest"):
            where = f"{owner['metadata']['name']}/{template['name']}"
            filled = TAG.sub(partial(_filled, world, owner, template), text)
            for item in load(filled):
                yield where, item


def _filled(world: World, owner: Json, template: Json, tag: re.Match[str], *, depth: int = 0) -> str:
    return _value(world, owner, template, tag[1].strip(), depth)


def _value(world: World, owner: Json, template: Json, tag: str, depth: int = 0) -> str:
    """What Argo would put for `tag` in `template`; "1" where only a run can tell, which fits text and numbers."""
    if quoted := _QUOTED.fullmatch(tag):
        return json.dumps(_value(world, owner, template, quoted[1], depth))
    if tag == "workflow.name":
        return "a-workflow"
    if tag.startswith("workflow.parameters."):
        return _of_parameter(world, _parameter(workflow_spec(owner).get("arguments"), tag))
    declared = _parameter(template.get("inputs"), tag) if tag.startswith("inputs.parameters.") else {}
    if declared.get("value") is not None or declared.get("valueFrom"):
        return _of_parameter(world, declared)
    for caller, calling, step in _calls(world, owner, template) if depth < 5 else []:
        given = _parameter(step.get("arguments"), tag).get("value")
        if given is not None:
            return TAG.sub(partial(_filled, world, caller, calling, depth=depth + 1), given)
    return "1"


def _parameter(holder: Json | None, tag: str) -> Json:
    name = tag.rpartition(".")[2]
    return next((item for item in (holder or {}).get("parameters") or [] if item["name"] == name), {})


def _of_parameter(world: World, parameter: Json) -> str:
    if reference := (parameter.get("valueFrom") or {}).get("configMapKeyRef"):
        found = world.data(reference["name"], reference["key"])
        return "1" if found is None else found
    return str(parameter.get("value", "1"))


def _calls(world: World, owner: Json, template: Json) -> Iterator[tuple[Json, Json, Json]]:
    for caller, calling in world.templates():
        for step in steps_of(calling):
            found = world.template(caller, step)
            if found and found[0] is owner and found[1]["name"] == template["name"]:
                yield caller, calling, step
