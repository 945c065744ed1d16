"""Brings a run's draft, exported and not yet published, to the server that is to prove it."""

from pathlib import Path

from spec.methods.files import exported
from spec.storage import open_store
from spec.storage.markers import Marker, fetch


def stage_draft(url: str, folder: Path) -> Marker:
    """Bring RUN/draft into `folder`, every SHA-256 verified; returns its marker. `BadInput` where there is no draft."""
    store = open_store(url)
    marker = exported(store)
    fetch(store, marker, folder)
    return marker
