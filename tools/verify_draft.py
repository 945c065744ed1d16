"""Check that a draft is whole and is what was trained; a damaged one is refused with the damage named (exit 2).

    python3 tools/verify_draft.py RUN/draft --target TARGET

One that others published (EAGLE-3, DFlash or DSpark in SGLang's format) is checked against the target: what was trained
is not known of it.
"""

import tempfile
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from spec import cli
from spec.errors import BadInput
from spec.methods.files import CONFIG, MARKER
from spec.progress import Wait
from spec.storage import open_store

with Wait("importing torch and transformers"):
    from spec.export.verify import verify
    from spec.methods import method_of
    from spec.publishing import existing
    from spec.publishing.adopt import verify_published


def main(
    draft: Annotated[str, Argument(help="The draft: a directory, s3://BUCKET/PREFIX or hf://ORG/NAME[@REVISION].")],
    target: Annotated[
        Path | None, Option(help="The target's directory. Default: what the exporter noted of the target is believed.")
    ] = None,
    context_length: Annotated[
        int | None, Option(min=1, help="What it is to be served with. Default: what it was made for.")
    ] = None,
) -> None:
    """Check that a draft is whole and is what was trained."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = _local(draft, Path(scratch))
        if (folder / MARKER).is_file() or not (folder / CONFIG).is_file():
            config = verify(folder, target, context_length=context_length).facts["config"]
            found, trusted = "whole, and equal to the trained draft", ""
        elif target is None:
            raise BadInput(f"{draft}: no {MARKER}, so it is not known what was trained; name the target with --target")
        else:
            config = verify_published(folder, target, context_length=context_length)
            found = f"a whole {method_of(config).title} draft that fits the target (not exported here: no {MARKER})"
            trusted = method_of(config).taken_on_trust
    print(f"{draft}: {found}; for contexts up to {config['max_position_embeddings']}")
    if trusted:
        print(f"{draft}: not checked, only its training knew: {trusted}; what is wrong there costs acceptance alone")


def _local(draft: str, scratch: Path) -> Path:
    """The draft's folder on this machine."""
    folder = None if draft.startswith("hf://") else open_store(draft).local_path()
    if folder is not None:
        return folder
    source = existing.resolve(draft)
    if source is None:
        raise BadInput(f"{draft}: no draft is there")
    existing.fetch(source, CONFIG, scratch)
    existing.fetch_rest(source, scratch)
    return scratch


if __name__ == "__main__":
    cli.run(main)
