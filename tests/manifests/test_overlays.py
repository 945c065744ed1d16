"""`make validate`: every overlay and component, example and GitOps object passes every rule, without a cluster."""

import re
from pathlib import Path

import pytest
import yaml

from spec.report.evidence import gather
from spec.report.figures import figures
from spec.storage import open_store
from tests.manifests.judge import EXAMPLES, judge, secrets, world_of
from tests.manifests.objects import ROOT, World, build, load
from tests.manifests.pods import containers, pods

OVERLAYS = sorted(path.parent for path in (ROOT / "manifests" / "overlays").glob("*/kustomization.yaml"))
GITOPS = ROOT / "manifests" / "gitops"
COMPONENTS = sorted(path.parent for path in (ROOT / "manifests" / "components").glob("*/kustomization.yaml"))
WORKFLOWS = sorted(path for path in (ROOT / "workflows").glob("*.yaml") if path.name != "kustomization.yaml")
DIGEST = "@sha256:"


def test_alerts_ask_for_metrics_that_there_are() -> None:
    """Those of the step `report`, whose values are outputs that its tool writes; and one of the controller's own."""
    (rule,) = load((ROOT / "manifests/components/alerts/prometheus-rule.yaml").read_text())
    (workflow,) = load((ROOT / "workflows/report.yaml").read_text())
    (template,) = workflow["spec"]["templates"]
    metrics = template["metrics"]["prometheus"]
    names = {f"argo_workflows_{metric['name']}" for metric in metrics} | {"argo_workflows_total_count"}
    asked = re.findall(r"argo_workflows_\w+", " ".join(its["expr"] for its in rule["spec"]["groups"][0]["rules"]))
    assert len(asked) == 3 and set(asked) <= names
    outputs = {its["name"]: its["valueFrom"]["path"] for its in template["outputs"]["parameters"]}
    assert outputs == {name: f"/tmp/figures/{name}" for name in figures(gather(open_store("/nonexistent")))}
    assert {metric["gauge"]["value"] for metric in metrics} == {
        f"{{{{outputs.parameters.{name}}}}}" for name in outputs
    }


def told(world: World) -> list[str]:
    return [": ".join(finding) for finding in judge(world)]


@pytest.mark.parametrize("overlay", [*OVERLAYS, GITOPS / "cluster"], ids=lambda path: path.name)
def test_an_overlay_passes(overlay: Path) -> None:
    assert told(world_of(overlay)) == []


@pytest.mark.parametrize("component", COMPONENTS, ids=lambda path: path.name)
def test_a_component_passes_on_the_base(component: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = ROOT / "build" / "validate" / component.name  # kustomize wants relative paths
    folder.mkdir(parents=True, exist_ok=True)
    up = "../../.."
    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": [f"{up}/manifests/base"],
        "components": [f"{up}/{component.relative_to(ROOT).as_posix()}"],
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    assert told(world_of(folder)) == []
    without = [item["metadata"]["name"] for item in build(folder) if "namespace" not in item["metadata"]]
    assert [name for name in without if name != "sgl-spec"] == [], "applied to whatever namespace is the current one"


def test_gitops_objects_pass_and_point_to_an_overlay() -> None:
    objects = [item for path in sorted(GITOPS.glob("*.yaml")) for item in load(path.read_text())]
    assert told(world_of(OVERLAYS[0], objects)) == []
    paths = [item["spec"].get("path") or item["spec"].get("source", {}).get("path") for item in objects]
    for path in filter(None, paths):
        assert (ROOT / path / "kustomization.yaml").is_file(), path


def test_names_and_images_are_rewritten_everywhere() -> None:
    """A prefix on every name, and images by tag and digest, reach Argo's templates and the text in them."""
    world = World(build(ROOT / "tests/manifests/renamed"), secrets=secrets())
    assert told(world) == []
    for item in world.objects:
        assert item["kind"] == "Namespace" or item["metadata"]["name"].startswith("team-a-")
    _by_tag_and_digest(world)
    assert {item["kind"] for _, item in world.embedded} == {"Deployment", "Service", "PyTorchJob"}


def test_gitops_names_images_by_tag_and_digest() -> None:
    _by_tag_and_digest(world_of(GITOPS / "cluster"))


def _by_tag_and_digest(world: World) -> None:
    images = {
        container["image"] for _, spec, _ in pods(world) for container in containers(spec) if "image" in container
    }
    assert len(images) == 3 and all(DIGEST in image and ":0.1.0@" in image for image in images), images


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_file_holds_one_template_and_says_how_to_use_it(path: Path) -> None:
    text = path.read_text()
    objects = load(text)
    assert [(item["kind"], item["metadata"]["name"]) for item in objects] == [("WorkflowTemplate", path.stem)]
    assert objects[0]["spec"]["entrypoint"]
    assert path.name in load((ROOT / "workflows/kustomization.yaml").read_text())[0]["resources"]
    _has_header(text)


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.stem)
def test_an_example_is_short_and_ready_to_submit(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) < 40
    assert [item["kind"] for item in load(text)] in (["Workflow"], ["CronWorkflow"])
    _has_header(text)


def _has_header(text: str) -> None:
    header = [line for line in text.split("apiVersion:")[0].splitlines() if line.strip()]
    assert all(line.startswith("#") for line in header)
    for word in ("Apply:", "Check:", "Clean:"):
        assert any(word in line for line in header), f"no {word} in the header"


def test_every_config_that_an_example_names_exists() -> None:
    for path in EXAMPLES.glob("*.yaml"):
        for item in load(path.read_text()):
            spec = item["spec"].get("workflowSpec") or item["spec"]
            config = next(entry["value"] for entry in spec["arguments"]["parameters"] if entry["name"] == "config")
            assert (ROOT / config).is_file(), f"{path.name}: {config}"
