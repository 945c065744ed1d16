"""Check that a draft is whole and is what was trained; a damaged one is refused with the damage named (exit 2).

python3 tools/verify_draft.py RUN/draft --target TARGET
"""

import tempfile
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from spec import cli
from spec.export.verify import verify
from spec.methods.files import CONFIG, MARKER, WEIGHTS
from spec.storage import Store, open_store


def main(
    draft: Annotated[str, Argument(help="The draft: a directory or s3://BUCKET/PREFIX.")],
    target: Annotated[
        Path | None, Option(help="The target's directory. Default: what the exporter noted of the target is believed.")
    ] = None,
    context_length: Annotated[
        int | None, Option(min=1, help="What it is to be served with. Default: what it was exported for.")
    ] = None,
) -> None:
    """Check that a draft is whole and is what was trained."""
    store = open_store(draft)
    with tempfile.TemporaryDirectory() as scratch:
        marker = verify(_local(store, Path(scratch)), target, context_length=context_length)
    print(
        f"{draft}: whole, and equal to the trained draft; for contexts up to "
        f"{marker.facts['config']['max_position_embeddings']}"
    )


def _local(store: Store, scratch: Path) -> Path:
    """The draft's folder on this machine; what is missing stays missing, for `verify` to name."""
    folder = store.local_path()
    if folder is not None:
        return folder
    for name in (CONFIG, WEIGHTS, MARKER):
        if store.exists(name):
            store.download(name, scratch / name)
    return scratch


if __name__ == "__main__":
    cli.run(main)
