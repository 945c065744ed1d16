"""What is in the images: the tools of the `tools` image do without torch, and with what its requirements bring."""

import re
import subprocess
import sys
from importlib.metadata import requires

from packaging.requirements import Requirement

from tests.manifests.judge import world_of
from tests.manifests.objects import ROOT
from tests.manifests.pods import containers, pods

IMPORT_ALL = """
import importlib, importlib.metadata, re, sys

def normal(name):
    return re.sub(r"[-_.]+", "-", name).lower()

held, tools = set(sys.argv[1].split(",")), sys.argv[2].split(",")
for module, owners in importlib.metadata.packages_distributions().items():
    if not held & set(map(normal, owners)):
        sys.modules[module] = None  # as if it were not installed
sys.path[:0] = ["tools", "."]
for tool in tools:
    importlib.import_module(tool)
"""


def test_tools_of_the_small_image_import_only_what_it_holds() -> None:
    tools = sorted(tools_of("sgl-spec/tools"))
    assert {"filter_data", "prepare_data", "publish_draft", "watch_job", "clean_up"} <= set(tools)
    held = closure((ROOT / "images/tools/requirements.txt").read_text().split("\n"))
    assert not held & {"torch", "torchtune", "sglang"}
    words = [sys.executable, "-c", IMPORT_ALL, ",".join(held | {"sgl-spec"}), ",".join(tools)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def tools_of(image: str) -> set[str]:
    """Names of the tools/*.py that the base runs in this image."""
    return {
        name
        for _, spec, _ in pods(world_of(ROOT / "manifests/overlays/local"))
        for container in containers(spec)
        if container.get("image", "").startswith(image)
        for name in re.findall(r"tools/(\w+)\.py", " ".join(container.get("command") or []))
    }


def closure(names: list[str]) -> set[str]:
    """These distributions and all that they need, without their extras."""
    found: set[str] = set()
    waiting = [name for name in names if name and not name.startswith("#")]
    while waiting:
        name = normal(waiting.pop())
        if name not in found:
            found.add(name)
            needs = map(Requirement, requires(name) or [])
            waiting += [need.name for need in needs if not need.marker or need.marker.evaluate({"extra": ""})]
    return found


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
