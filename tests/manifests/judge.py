"""All rules over one world of objects."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.manifests import commands, conduct, references, schemas
from tests.manifests.objects import ROOT, Json, World, build, load

RULES = references.RULES | conduct.RULES | commands.RULES
EXAMPLES = ROOT / "workflows" / "examples"


class Finding(NamedTuple):
    rule: str
    where: str
    message: str


def judge(world: World) -> Iterator[Finding]:
    """Everything that is wrong. The other rules read only what its schema has passed."""
    wrong = list(_schemas(world))
    yield from wrong
    if not wrong:
        for name, rule in RULES.items():
            for where, message in rule(world):
                yield Finding(name, where, message)


def _schemas(world: World) -> Iterator[Finding]:
    for item in world.objects:
        for rule, message in schemas.findings(item):
            yield Finding(rule, f"{item.get('kind')}/{(item.get('metadata') or {}).get('name')}", message)
    for where, item in world.embedded:
        for rule, message in schemas.findings(item):
            yield Finding(rule, f"{where}: {item.get('kind')}", message)


def world_of(overlay: Path, extra: list[Json] | None = None) -> World:
    """An overlay with the examples beside it; objects of `extra` replace those of their kind and name."""
    examples = [item for path in sorted(EXAMPLES.glob("*.yaml")) for item in load(path.read_text())]
    replaced = {(item["kind"], item["metadata"].get("name")) for item in extra or []}
    kept = [item for item in build(overlay) if (item["kind"], item["metadata"].get("name")) not in replaced]
    return World(kept + examples + (extra or []), secrets=secrets())


def secrets() -> dict[str, set[str]]:
    """The Secrets, and their keys, that the project may read: those of the External Secrets example."""
    found = load((ROOT / "manifests/components/external-secrets/external-secrets.yaml").read_text())
    return {item["spec"]["target"]["name"]: {data["secretKey"] for data in item["spec"]["data"]} for item in found}
