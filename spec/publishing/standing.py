"""The draft that a run's is to replace, brought to the run: what it is compared with does not change meanwhile.

RUN/published/VERSION/   its files as `spec.publishing.drafts` has them, then draft.json
"""

import tempfile
from pathlib import Path

from spec.evaluation.regression import Standing
from spec.methods import method_of
from spec.methods.files import MARKER, exported
from spec.publishing.drafts import fetch, own_version, place_of
from spec.publishing.versions import open_place
from spec.storage import Store
from spec.storage.markers import read_marker

NONE = "none"  # in place of a version: nothing was published there when this was asked


def standing(run: Store, destination: str, version: str = "") -> Standing | None:
    """The named version at `destination`, or the latest, brought to `run`; None where there is none, or for NONE.

    `BadInput` for a run without a draft, whose method decides the place, and for a published one that is damaged.
    """
    place = place_of(destination, method_of(exported(run.at("draft")).facts["config"]))
    name = version or open_place(place, "draft").latest()
    if name in (None, NONE):
        return None
    folder = f"published/{name}"
    store = run.at(folder)
    marker = read_marker(store, MARKER)
    if marker is None:
        with tempfile.TemporaryDirectory(prefix="published-draft-") as scratch:
            marker = fetch(place, Path(scratch), version=name)
            for file in (*marker.files, MARKER):
                store.upload(file, Path(scratch) / file)
    return Standing(name, folder, marker)


def to_compare_with(run: Store, place: str) -> str:
    """The version at `place` that this run's draft is to be better than, NONE where there is none.

    Where the latest is the run's own draft, published before, it is the one that this was compared with then.
    """
    found = open_place(place, "draft").latest()
    if found is None:
        return NONE
    draft = read_marker(run, f"draft/{MARKER}")
    if draft and own_version(place, draft):
        return compared_with(run) or found
    return found


def compared_with(run: Store) -> str | None:
    """The version that the run's report compares its draft with, or NONE; None for a report that compares with none."""
    report = read_marker(run, "report/report.json")
    there = report.facts.get("published") if report else None
    return None if there is None else there["version"] or NONE
