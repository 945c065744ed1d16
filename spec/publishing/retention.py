"""What may be deleted of published versions, runs and checkpoints: never what `latest` or a run in flight needs.

A plan first, then the deletion: markers and manifests go before the data that they vouch for, so that whoever reads
meanwhile, or finds what a killed deletion has left, sees nothing in place of half.
"""

import os
import re
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from spec.errors import BadInput
from spec.methods.files import MARKER as DRAFT
from spec.publishing.manifest import MANIFEST
from spec.publishing.versions import LATEST, StorePlace
from spec.storage import Store
from spec.storage.markers import Marker, read_marker
from spec.training import estimate

VERSIONS, CHECKPOINTS, CHECKPOINT = "versions", "checkpoints", "checkpoint.json"
_YOUNG = 7 * 86400  # seconds since its export in which a version that never was the latest may be about to be published

_STEP = re.compile(r"step-\d{6,}")  # as training names its checkpoints; other folders are not its

InFlight = Callable[[str], str]  # the name of a workflow that is not over and names this text, or ""


class Item(NamedTuple):
    folder: str  # relative to the place
    bytes: int
    kept: str  # why; "" for what goes


def of_versions(place: Store, keep: int, in_flight: InFlight) -> list[Item]:
    """Versions at `place`, newest first: the newest `keep` of those that were the latest, and those in use, stay."""
    if not place.exists(LATEST):
        raise BadInput(f"{place.url}: nothing is published here (there is no {LATEST})")
    latest, *before = StorePlace(place).order()
    sizes = _sizes(place, VERSIONS)
    # What is gone, by its manifest as for who goes back, takes no place among those that stay.
    order = [latest, *(name for name in before if name in sizes and place.exists(f"{VERSIONS}/{name}/{MANIFEST}"))]
    others = {name: _finished(read_marker(place, f"{VERSIONS}/{name}/{DRAFT}")) for name in sizes.keys() - set(order)}
    young = {name for name, finished in others.items() if finished is None or finished > _ago(_YOUNG)}
    items = []
    for at, name in enumerate([*order, *sorted(others, key=lambda name: others[name] or "", reverse=True)]):
        kept = "latest" if at == 0 else f"one of the newest {keep}" if at < keep else ""
        kept = kept or _used(in_flight, name) or ("perhaps about to be published" if name in young else "")
        if name in sizes:
            items.append(Item(f"{VERSIONS}/{name}", sizes[name], kept))
    return items


def of_runs(place: Store, keep: int, in_flight: InFlight) -> list[Item]:
    """Runs in the folders of `place`, newest first by their last marker: the newest `keep` and those in flight stay."""
    if (folder := place.local_path()) and not folder.is_dir():
        raise BadInput(f"{place.url}: no such directory; name the folder that holds the runs")
    if place.exists(LATEST):
        raise BadInput(f"{place.url}: versions are published here, no runs; name the folder that holds the runs")
    if _is_run(place):
        raise BadInput(f"{place.url}: is a run itself; name the folder that holds it, or ask for its checkpoints")
    sizes = _sizes(place, "")
    runs = {name: _last(place.at(name)) for name in sizes if _is_run(place.at(name))}
    newest = sorted(runs, key=lambda name: (runs[name], name), reverse=True)
    items = []
    for at, name in enumerate(newest):
        kept = f"one of the newest {keep}" if at < keep else _used(in_flight, f"{place.url}/{name}")
        kept = kept or ("" if runs[name] else "no step of it has ended; delete it by hand if it was given up")
        items.append(Item(name, sizes[name], kept))
    return items


def of_checkpoints(run: Store, keep: int, in_flight: InFlight) -> list[Item]:
    """Checkpoints of a run, newest first: the newest `keep`, the best and the one that its draft is of stay.

    `BadInput` for a run in flight: training keeps its own number of them.
    """
    if used := _used(in_flight, run.url):
        raise BadInput(f"{run.url}: {used}; its training keeps keep_checkpoints of them by itself")
    sizes = _sizes(run, CHECKPOINTS)
    names = sorted(filter(_STEP.fullmatch, sizes), key=lambda name: int(name[5:]), reverse=True)
    if not names:
        raise BadInput(f"{run.url}: no checkpoints here")
    draft = read_marker(run, f"draft/{DRAFT}")
    exported = draft.inputs.get("checkpoint") if draft else None
    markers = {name: read_marker(run, f"{CHECKPOINTS}/{name}/{CHECKPOINT}") for name in reversed(names)}
    whole = {name: marker.facts for name, marker in markers.items() if marker}
    newest, best = list(whole)[-keep:], estimate.best(whole)
    why: dict[str, Sequence[object]] = {f"one of the newest {keep}": newest, "the draft is of it": [exported]}
    why["the best by its estimate"] = best or ()
    items = []
    for name in names:
        kept = next((reason for reason, its in why.items() if name in its), "")
        items.append(Item(f"{CHECKPOINTS}/{name}", sizes[name], kept))
    return items


def delete(place: Store, items: Iterable[Item]) -> None:
    """Delete what no reason keeps."""
    for item in items:
        if item.kept:
            continue
        folder = place.at(item.folder)
        for entry in sorted(folder.list(), key=lambda entry: not entry.key.endswith(".json")):
            folder.delete(entry.key)
        if root := folder.local_path():
            _remove_empty(root)


def _remove_empty(root: Path) -> None:
    """Remove a directory and those in it, but none that holds a file: somebody may be writing it just now."""
    for path, _, _ in os.walk(root, topdown=False):
        with suppress(OSError):
            os.rmdir(path)


def _sizes(place: Store, prefix: str) -> dict[str, int]:
    """Bytes of each folder below `prefix`."""
    sizes: dict[str, int] = {}
    skip = f"{prefix}/" if prefix else ""
    for entry in place.list(prefix):
        name, inside, _ = entry.key.removeprefix(skip).partition("/")
        if inside:
            sizes[name] = sizes.get(name, 0) + entry.size
    return sizes


def _is_run(store: Store) -> bool:
    return store.exists("run.json")


def _last(run: Store) -> str:
    """When the last marker of a run was written, as UTC text; "" before there is one."""
    shards = [entry.key for entry in run.list("answers") if entry.key.endswith("/shard.json")]
    keys = ["samples/samples.json", f"draft/{DRAFT}", "report/report.json", *shards]
    return max((_finished(read_marker(run, key)) or "" for key in keys), default="")


def _finished(marker: Marker | None) -> str | None:
    return marker.finished_at if marker else None


def _ago(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - seconds))


def _used(in_flight: InFlight, text: str) -> str:
    workflow = in_flight(text)
    return f"workflow {workflow} is in flight and names it" if workflow else ""
