"""Tells whoever waits for a run that it has ended: one JSON message to a webhook, with a text that Slack shows.

Address and key are in a Secret and stay there: neither is in what is printed, nor in what goes wrong. A notice that
does not arrive changes nothing of the run.
"""

import hashlib
import hmac
import json
import logging
import time
from typing import Any
from urllib.parse import urlsplit

import httpx

from spec.cluster.api import Json
from spec.cluster.conclusion import conclude, nodes_of
from spec.cluster.names import is_host
from spec.costs.budget import Budget, used_by
from spec.costs.sums import Spent
from spec.errors import BadInput, BelowBar, SpecError, Stopped
from spec.methods import method_of
from spec.publishing.drafts import own_version, place_of
from spec.report.evidence import Evidence, gather
from spec.report.page import PAGE
from spec.storage import open_store

SIGNATURE = "X-Sgl-Spec-Signature"  # sha256=HEX, the HMAC of the body with the Secret's key
_PASSING_STATUS = {408, 425, 429}
_ATTEMPTS, _WAIT, _TIMEOUT = 5, 1.0, 10.0  # tries; seconds before the second one, which double; seconds of one


def check_url(name: str, url: str) -> None:
    """`BadInput` that does not show it, for what is no address of a webhook."""
    try:
        parsed = urlsplit(url.strip())
        host = (parsed.hostname or "").encode("idna").decode()  # as it is looked up
        wrong = parsed.scheme not in ("http", "https") or not is_host(host) or parsed.port == 0 or len(url.split()) != 1
    except ValueError:  # of a port that is none, too
        wrong = True
    if wrong:
        raise BadInput(f"{name}: not a URL that a message can be posted to; it reads https://HOST/PATH")


def tell(workflow: Json, url: str, key: str = "", *, wait: float = _WAIT) -> str:
    """Post how `workflow` ended; returns a line on what came of it, whatever that was. Never raises."""
    try:
        check_url("the webhook's address", url)
        return _post(url.strip(), key, json.dumps(message(workflow)).encode(), wait)
    except Exception as error:  # a notice is no part of the run: its bugs are not the run's either
        told = str(error) if isinstance(error, SpecError) else type(error).__name__  # others may name the address
        return f"no notice was sent: {told}"


def message(workflow: Json) -> Json:
    """What is posted; figures and places that are not known are null."""
    outcome, why = _verdict(workflow)
    metadata = workflow["metadata"]
    given = _given(workflow)
    found: Json = {
        "id": metadata.get("uid"),  # the same if it is told twice
        "workflow": metadata["name"],
        "namespace": metadata.get("namespace"),
        "outcome": outcome,
        "why": why,
        "run": given.get("run"),
        **dict.fromkeys(("accept_length", "speed_up", "cost", "report", "draft")),
    }
    if given.get("run"):
        found |= _figures(given["run"], given.get("destination", ""))
    return found | {"text": _text(found)}


def _verdict(workflow: Json) -> tuple[str, str]:
    try:
        return "succeeded", conclude(workflow)
    except BelowBar as error:
        return "refused", str(error)
    except Stopped as error:
        return "stopped", str(error)
    except SpecError as error:
        return "failed", str(error)


def _given(workflow: Json) -> dict[str, str]:
    """Where the run is and where it publishes, as its first step was given them: filled in, whatever was submitted."""
    for node in nodes_of(workflow).values():
        if node.get("displayName") == "preflight" and (node.get("inputs") or {}).get("parameters"):
            return {item["name"]: item.get("value", "") for item in node["inputs"]["parameters"]}
    return {}


def _figures(run: str, destination: str) -> Json:
    """Of the run's draft, as far as it has come. Of a store that is gone, nothing: the rest is still told."""
    try:
        store = open_store(run)
        evidence = gather(store)
        return {
            "accept_length": evidence.accept_length,
            "speed_up": evidence.speed_up,
            "cost": _cost(evidence.budget, used_by(store)),
            "report": f"{run}/{PAGE}" if evidence.report else None,
            "draft": _draft(evidence, run, destination),
        }
    except (SpecError, OSError):
        return {}


def _cost(budget: Budget, spent: Spent) -> Json:
    """Of the run's whole life, to the end of this workflow: the evidence ends with the report."""
    return {
        "gpu_hours": round(spent.gpu_hours, 4),
        "cpu_hours": round(spent.cpu_seconds / 3600, 4),
        "money": budget.money(spent),
        "currency": budget.currency or None,
        "told": budget.told(spent),
    }


def _draft(evidence: Evidence, run: str, destination: str) -> str | None:
    """Where readers get it, if it is the one that is published; else where it lies in the run."""
    if evidence.draft is None:
        return None
    if destination:
        url = place_of(destination, method_of(evidence.draft.facts["config"]))
        if version := own_version(url, evidence.draft):
            return f"{url} (version {version})"
    return f"{run}/draft"


def _text(found: Json) -> str:
    figures = []
    if found["accept_length"] is not None:
        figures.append(f"accept length {found['accept_length']:.2f}")
    if found["speed_up"] is not None:
        figures.append(f"{found['speed_up']:.2f} times the tokens/s")
    if found["cost"]:
        figures.append(found["cost"]["told"])
    lines = [f"{found['workflow']}: {found['outcome']}: {found['why']}", ", ".join(figures)]
    lines += [f"{name}: {found[name]}" for name in ("draft", "report", "run") if found[name]]
    return "\n".join(line for line in lines if line)


def _post(url: str, key: str, body: bytes, wait: float) -> str:
    logging.getLogger("httpx").setLevel(logging.WARNING)  # its INFO line has the address
    headers = {"Content-Type": "application/json"}
    if key:
        signature = hmac.new(key.strip().encode(), body, hashlib.sha256).hexdigest()
        headers[SIGNATURE] = f"sha256={signature}"
    why: Any = None
    for attempt in range(_ATTEMPTS):
        if attempt:
            time.sleep(wait * 2 ** (attempt - 1))
        try:
            answer = httpx.post(url, content=body, headers=headers, timeout=_TIMEOUT)
        except httpx.TransportError as error:
            why = f"the webhook cannot be reached ({type(error).__name__})"
            continue
        if answer.is_success:
            return "notice sent"
        why = f"the webhook answers {answer.status_code}"
        if answer.status_code < 500 and answer.status_code not in _PASSING_STATUS:
            break
    return f"no notice was sent: {why}"
