"""Brings a run's draft, exported and not yet published, to the server that is to prove it."""

from pathlib import Path

from spec.drafts.layout import MARKER
from spec.errors import BadInput
from spec.storage import open_store
from spec.storage.markers import Marker, fetch, read_marker


def stage_draft(url: str, folder: Path) -> Marker:
    """Bring RUN/draft into `folder`, every SHA-256 verified; returns its marker."""
    store = open_store(url)
    marker = read_marker(store, MARKER)
    if marker is None:
        raise BadInput(f"{store.url}: no draft here ({MARKER} is missing); run tools/extract_draft_model.py")
    fetch(store, marker, folder)
    return marker
