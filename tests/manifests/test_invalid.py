"""Each rule refuses the broken file of its name, and no other rule does: the rules can fail, and say which one."""

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.manifests.judge import RULES, judge, world_of
from tests.manifests.objects import ROOT, Json, World, load

INVALID = sorted((Path(__file__).parent / "invalid").glob("*.yaml"))
SCHEMAS = {"kubernetes-schema", "argo-schema", "pytorchjob-schema", "custom-schema"}


def test_every_rule_has_its_broken_file() -> None:
    assert {path.stem for path in INVALID} == RULES.keys() | SCHEMAS


@pytest.mark.parametrize("path", INVALID, ids=lambda path: path.stem)
def test_is_refused_by_its_own_rule(path: Path) -> None:
    found = list(judge(broken(path)))
    assert {finding.rule for finding in found} == {path.stem}, found


def broken(path: Path) -> World:
    """The overlay `local` with one object changed as the file says: `set`, `unset` and `edit` (old text, new text)."""
    gitops = [item for file in (ROOT / "manifests/gitops").glob("*.yaml") for item in load(file.read_text())]
    world = world_of(ROOT / "manifests/overlays/local", gitops)
    change = yaml.safe_load(path.read_text())
    target = world.named(**change["target"])
    assert target, "the file targets nothing"
    changed = copy.deepcopy(target)
    for pointer, value in change.get("set", {}).items():
        holder, last = walk(changed, pointer)
        if last == "-":
            holder.append(value)
        else:
            holder[last] = value
    for pointer in change.get("unset", []):
        holder, last = walk(changed, pointer)
        del holder[last]
    for pointer, (old, new) in change.get("edit", {}).items():
        holder, last = walk(changed, pointer)
        assert old in holder[last], "the file edits nothing"
        holder[last] = holder[last].replace(old, new)
    objects = [changed if item is target else item for item in world.objects]
    return World(objects, world.secrets)


def walk(item: Json, pointer: str) -> tuple[Any, Any]:
    """The holder of what `/a/0/b` points to, and its key or index there. A key may hold `/` as `~1`."""
    *way, last = [part.replace("~1", "/") for part in pointer.strip("/").split("/")]
    holder: Any = item
    for part in way:
        holder = holder[int(part) if isinstance(holder, list) else part]
    return holder, int(last) if isinstance(holder, list) and last != "-" else last
