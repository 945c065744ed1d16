"""Bring a run's exported draft to a folder that a server loads it from, verified. Published ones: fetch_draft.py."""

from pathlib import Path
from typing import Annotated

import typer

from spec import cli
from spec.cluster.staging import stage_draft


def main(
    draft: Annotated[str, typer.Argument(help="RUN/draft: a directory or s3://BUCKET/PREFIX")],
    folder: Annotated[Path, typer.Argument(help="Where to put it")],
) -> None:
    """Stage a run's draft."""
    marker = stage_draft(draft, folder)
    print(f"{folder}: {len(marker.files)} files of {draft}, verified")


if __name__ == "__main__":
    cli.run(main)
