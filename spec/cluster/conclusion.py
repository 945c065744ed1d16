"""The last word of a workflow: which step failed and why.

Argo gives a failed DAG no message. The pipeline therefore runs inside a step that may fail, and the exit handler fails
in its stead with the cause, which Argo then shows as the workflow's own message (`kubectl get`, `argo list`, the UI).
"""

import base64
import gzip
import json
import re
from typing import Any

from spec.cluster.api import Json
from spec.cluster.pods import last_words
from spec.errors import BadInput, BelowBar, PassingFault, SpecError, Stopped

_PIPELINE = "pipeline"
# `main: Error (exit code 3): ` and the end of the step's log, whose last `error: ...` says why
_MESSAGE = re.compile(r"^(?:main: )?(?P<reason>\w+) \(exit code (?P<code>\d+)\)(?:: )?(?P<log>.*)$", re.S)
_ERRORS: dict[int, type[SpecError]] = {error.exit_code: error for error in (BadInput, BelowBar, PassingFault, Stopped)}


def conclude(workflow: Json) -> str:
    """A line on a pipeline that succeeded. Raises the failed step's error otherwise.

    Anything but a pipeline node that succeeded is a failure, so that a workflow never looks better than it is.
    """
    name = workflow["metadata"]["name"]
    nodes = nodes_of(workflow)
    pipeline = next((node for node in nodes.values() if node["name"] == f"{name}[0].{_PIPELINE}"), None)
    if shutdown := (workflow.get("spec") or {}).get("shutdown"):
        raise Stopped(f"{shutdown.lower()}ped by hand; submit the same run again to go on where it stopped")
    if pipeline is None:
        raise PassingFault((workflow.get("status") or {}).get("message") or "the pipeline never started")
    causes = sorted(_causes(nodes), key=lambda node: node.get("finishedAt") or "")
    # Argo calls a DAG succeeded whose leaves were all left out because a step before them ended in an error.
    if pipeline["phase"] == "Succeeded" and not causes:
        return "every step succeeded or was already done"
    if not causes:
        raise PassingFault(
            f"the pipeline ended as {pipeline['phase']}: {pipeline.get('message') or 'no step says why'}"
        )
    raise _error(nodes, causes[0])


def nodes_of(workflow: Json) -> dict[str, Json]:
    """The nodes of a Workflow by their ids."""
    status = workflow.get("status") or {}
    if packed := status.get("compressedNodes"):  # what Argo does with a workflow of near 1 MiB
        return json.loads(gzip.decompress(base64.b64decode(packed)))
    return status.get("nodes") or {}


def _causes(nodes: dict[str, Json]) -> list[Json]:
    """The last attempt of every step that failed for good, and what Argo itself could not do."""
    attempts = {child for node in nodes.values() if node["type"] == "Retry" for child in node.get("children") or []}
    causes = []
    for node in nodes.values():
        if not _failed(node):
            continue
        if node["type"] == "Retry":
            last = [nodes[child] for child in node.get("children") or [] if child in nodes and _failed(nodes[child])]
            causes.append({**node, "message": last[-1].get("message") if last else node.get("message")})
        elif node["id"] not in attempts and (
            node["type"] == "Pod" or (node["phase"] == "Error" and node.get("message"))
        ):
            causes.append(node)
    return causes


def _failed(node: Json) -> bool:
    return node.get("phase") in ("Failed", "Error")


def _error(nodes: dict[str, Json], cause: Json) -> SpecError:
    step = cause["displayName"]
    group = nodes.get(cause.get("boundaryID", ""), {}).get("displayName", "")
    if group and group != _PIPELINE and group != step:
        step = f"{group}/{step}"
    message = (cause.get("message") or cause["phase"]).strip()
    found = _MESSAGE.match(message)
    if not found:
        return PassingFault(f"{step}: {message}")
    kind: Any = _ERRORS.get(int(found["code"]), PassingFault)
    words = last_words(found["log"]) or f"{found['reason']} (exit code {found['code']}), see its log"
    return kind(f"{step}: {words}")
