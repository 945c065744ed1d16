"""The serving example: by itself it passes the rules on pods, and it fits what the pipeline's roll-out asks for."""

import pytest

from tests.manifests import commands, conduct, references, schemas
from tests.manifests.judge import secrets, world_of
from tests.manifests.objects import ROOT, World, build

EXAMPLES = ROOT / "workflows/examples"
RULES = [
    *(conduct.RULES[name] for name in ("no-latest", "resources", "security-context", "credentials")),
    *(references.RULES[name] for name in ("role", "config-map", "secret-key", "claim")),
    commands.command,
]


@pytest.mark.parametrize(("name", "strategy"), [("serving", "Recreate"), ("serving-surge", "RollingUpdate")])
def test_it_passes_with_its_strategy(name: str, strategy: str) -> None:
    world = World(build(EXAMPLES / name), secrets=secrets())
    assert [found for item in world.objects for found in schemas.findings(item)] == []
    assert [found for rule in RULES for found in rule(world)] == []
    server = world.named("Deployment", "sglang")
    assert server and server["spec"]["strategy"]["type"] == strategy
    assert server["spec"]["template"]["spec"]["automountServiceAccountToken"] is False
    assert {item["metadata"].get("namespace") for item in world.objects if item["kind"] != "Namespace"} == {"serving"}


def test_what_the_pipeline_may_do_there_is_a_role_of_that_namespace() -> None:
    base = world_of(ROOT / "manifests/overlays/local")
    (step,) = (template for owner, template in base.templates() if owner["metadata"].get("name") == "roll-out")
    account = step["serviceAccountName"]
    bound = [item for item in base.of("RoleBinding") if account in [its["name"] for its in item["subjects"]]]
    assert [item["metadata"]["name"] for item in bound] == ["report-results"]  # as every pod of Argo's
    world = World(build(EXAMPLES / "serving"))
    rights = {}
    for binding in world.of("RoleBinding"):
        (subject,), role = binding["subjects"], world.named("Role", binding["roleRef"]["name"])
        assert role and (subject["kind"], subject["namespace"]) == ("ServiceAccount", "sgl-spec")
        rights[subject["name"]] = [(rule["verbs"], rule.get("resourceNames")) for rule in role["rules"]]
    roller = [(["get", "patch"], ["sglang"]), (["list"], None), (["get"], None)]
    assert rights == {account: roller, "preflight": [(["get"], None)]}
