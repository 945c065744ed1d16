"""A run's draft in a local folder, verified: what offline speculation loads and a server on this machine is given."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from spec.errors import BadInput
from spec.export import verify
from spec.methods.files import MARKER
from spec.storage import Store
from spec.storage.markers import Marker, fetch


@contextmanager
def verified_draft(
    store: Store, draft: Marker | None, target: Path, context_length: int | None = None
) -> Iterator[Path]:
    """The folder of the draft that `store` (RUN/draft) holds, for as long as the block.

    Raises `BadInput` naming the first damage, or that there is no draft.
    """
    if draft is None:
        raise BadInput(f"{store.url}: no exported draft; run tools/extract_draft_model.py first")
    with tempfile.TemporaryDirectory(prefix="evaluate-draft-") as scratch:
        folder = store.local_path()
        if folder is None:
            folder = fetch(store, draft, Path(scratch))
            store.download(MARKER, folder / MARKER)
        verify.verify(folder, target, context_length=context_length)
        yield folder
