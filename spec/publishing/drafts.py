"""Publishes a run's draft with the evidence that it is good, and fetches published ones. Imports no torch."""

import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from spec.errors import BadInput, BelowBar
from spec.evaluation.gate import Bar, gate
from spec.export.verify import verify_files
from spec.methods import FIRST, method_of
from spec.methods.files import MARKER, WEIGHTS, exported
from spec.methods.method import Method
from spec.publishing import versions
from spec.publishing.manifest import Manifest
from spec.report import card
from spec.report import page as report
from spec.report.evidence import REPORT, gather, measured_keys
from spec.storage import Store
from spec.storage.markers import Marker, read_marker

Say = Callable[[str], None]


def publish(
    run: Store, destination: str, *, bar: Bar | None = None, without_report: bool = False, say: Say = print
) -> Manifest:
    """Publish the run's draft at `destination` (see `place_of`) as its latest version: weights, card and report.

    Raises `BadInput` for a damaged draft or one without a report of its own, `BelowBar` where its report says that it
    missed its bar, or misses `bar`; `without_report` publishes without asking for one. With a bar of regression,
    `Overtaken` where another draft than the one that this was compared with is published by then.
    """
    draft = run.at("draft")
    marker = exported(draft)
    if not without_report:
        require_passing_report(run, marker, bar or Bar())
    with tempfile.TemporaryDirectory(prefix="publish-draft-") as scratch:
        files = {name: _local(draft, name, Path(scratch)) for name in (*marker.files, MARKER)}
        verify_files(files[MARKER].parent)
        evidence = gather(run)
        files[card.FILE] = _written(Path(scratch) / "card.md", card.render(evidence))
        if not without_report:
            files |= {key: _local(run, key, Path(scratch)) for key in (REPORT, *measured_keys(run, marker))}
            files[report.PAGE] = _written(Path(scratch) / "report.html", report.render(evidence))
        place = place_of(destination, method_of(marker.facts["config"]))
        compares = bar is not None and bar.max_regression is not None
        replaces = (own_version(place, marker) or _compared_with(run)) if compares else ...
        return versions.publish(place, "draft", files, say, replaces)


def own_version(place: str, draft: Marker) -> str | None:
    """The latest version at `place` (see `place_of`), if it is of this very draft: an older card of it, say."""
    there = versions.open_place(place, "draft")
    version = there.latest()
    if version is None:
        return None
    weights = there.resolve(version).manifest.files.get(WEIGHTS)
    return version if weights and weights.sha256 == draft.files[WEIGHTS].sha256 else None


def _compared_with(run: Store) -> str | None:
    """The version that the report, which reached its bar beside it, compares the draft with; None: there was none."""
    report = read_marker(run, REPORT)
    assert report is not None  # require_passing_report has seen it
    return report.facts["published"]["version"]


def place_of(destination: str, method: Method) -> str:
    """Where drafts of `method` have their versions and their `latest`: EAGLE-3's at `destination` itself, as ever,
    another method's in a folder of its name, so that one does not replace the other. On a hub, whose repositories have
    one head, in a repository whose name ends in the method's.
    """
    if method.name == FIRST:
        return destination
    if not destination.startswith("hf://"):
        return f"{destination.rstrip('/')}/{method.name}"
    named = "@" in destination or destination.lower().endswith(f"-{method.name}")  # by a revision, or already
    return destination if named else f"{destination.rstrip('/')}-{method.name}"


def require_passing_report(run: Store, draft: Marker, bar: Bar) -> None:
    """Raise unless the run's report is of this very draft, its gate was passed, and its figures reach `bar` too."""
    found = read_marker(run, REPORT)
    advice = "run tools/evaluate_draft.py, or publish with --without-report"
    if found is None:
        raise BadInput(f"{run.url}: the draft has no report; {advice}")
    if found.inputs.get("draft") != draft.identity:
        raise BadInput(f"{run.url}/{REPORT} is of another draft than the one that is there now; {advice}")
    judged = found.facts.get("gate", {})
    if judged.get("passed") is True and bar != Bar():
        judged = gate(found.facts, bar)
    if judged.get("passed") is not True:
        raise BelowBar(f"{run.url}: the draft missed its bar: {judged.get('why', 'its report has no gate')}")


def fetch(source: str, folder: Path, *, version: str | None = None, say: Say = print) -> Marker:
    """Bring a published draft (default: the latest) into `folder`, checked as a fresh export is; gives its marker."""
    versions.fetch(source, "draft", folder, version=version, say=say)
    return verify_files(folder)


def _written(path: Path, text: str) -> Path:
    """Card and page as the evidence has it now: those in the run may be older than the report."""
    path.write_text(text)
    return path


def _local(store: Store, name: str, scratch: Path) -> Path:
    """`name` as a local file: in place where the run is a directory, else downloaded. A lost one stays missing."""
    folder = store.local_path()
    if folder is None:
        with suppress(FileNotFoundError):
            store.download(name, scratch / name)
    return (folder or scratch) / name
