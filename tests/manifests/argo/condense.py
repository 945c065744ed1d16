"""Condense Argo's full CRDs, megabytes of YAML, to one small JSON schema a version, as `make argo-schemas` does.

Kept are the kinds that this project writes, without their descriptions, and what occurs again only once. An object is
closed, so that a field which an API server would drop without a word is an error. CEL rules are not kept.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

KINDS = {"Workflow": "workflows", "WorkflowTemplate": "workflowtemplates", "CronWorkflow": "cronworkflows"}
KEPT = {"type", "enum", "pattern", "required", "nullable", "anyOf", "items", "properties", "additionalProperties"}
KEPT |= {"minimum", "maximum", "minItems", "maxItems", "minLength", "maxLength"}
SHORTEST = 80  # characters of a schema that is worth a name of its own
Json = dict[str, Any]


def condense(folder: Path) -> Json:
    """The `$defs` of a JSON schema, one for each kind, from the folder manifests/base/crds/full of an Argo release."""
    kinds = {kind: of_kind(folder / f"argoproj.io_{plural}.yaml") for kind, plural in KINDS.items()}
    seen: dict[str, int] = {}
    for schema in kinds.values():
        count(schema, seen)
    shared: dict[str, tuple[str, Json]] = {}
    found = {kind: below(schema, lambda part: name(part, seen, shared)) for kind, schema in kinds.items()}
    return found | dict(shared.values())


def of_kind(path: Path) -> Json:
    crd = yaml.load(path.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    (version,) = crd["spec"]["versions"]
    spec = strict(version["schema"]["openAPIV3Schema"]["properties"]["spec"])
    text = {"type": "string"}
    properties = {"apiVersion": text, "kind": text, "metadata": {"type": "object"}, "spec": spec}
    return {"type": "object", "required": ["spec"], "properties": properties, "additionalProperties": False}


def strict(schema: Json) -> Json:
    """An OpenAPI schema of a CRD as JSON schema that knows only the fields it names."""
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    kept: Json = below({key: value for key, value in schema.items() if key in KEPT}, strict)
    if "properties" in kept and not schema.get("x-kubernetes-preserve-unknown-fields"):
        kept["additionalProperties"] = False
    if kept.pop("nullable", False):
        kept["type"] = [kept["type"], "null"]
    return kept


def below(schema: Json, change: Callable[[Json], Any]) -> Json:
    """The schema with each schema right below it changed."""
    changed = dict(schema)
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            changed[key] = change(schema[key])
    if "properties" in schema:
        changed["properties"] = {field: change(value) for field, value in schema["properties"].items()}
    return changed


def count(schema: Json, seen: dict[str, int]) -> None:
    """How often each schema occurs; what is inside of one that was seen before is not counted again."""
    text = json.dumps(schema, sort_keys=True)
    seen[text] = seen.get(text, 0) + 1
    if seen[text] == 1:
        below(schema, lambda part: count(part, seen))


def name(schema: Json, seen: dict[str, int], shared: dict[str, tuple[str, Json]]) -> Json:
    """The schema, or where it occurs more than once a reference to it in `shared`: text → name, schema."""
    text = json.dumps(schema, sort_keys=True)
    if seen[text] == 1 or len(text) < SHORTEST:
        return below(schema, lambda part: name(part, seen, shared))
    if text not in shared:
        shared[text] = (str(len(shared)), {})
        shared[text][1].update(below(schema, lambda part: name(part, seen, shared)))
    return {"$ref": f"#/$defs/{shared[text][0]}"}


if __name__ == "__main__":
    for release in map(Path, sys.argv[1:]):  # …/argo-workflows/v4@v4.0.5
        schemas = condense(release / "manifests/base/crds/full")
        lines = ",\n".join(
            f'"{key}":{json.dumps(value, separators=(",", ":"), sort_keys=True)}' for key, value in schemas.items()
        )
        path = Path(__file__).parent / f"{release.name.partition('@')[2]}.json"
        path.write_text(f'{{"$defs":{{\n{lines}\n}}}}\n')
