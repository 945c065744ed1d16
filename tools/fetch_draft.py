"""Fetches a published draft, verifies it, and prints the command that serves it.

python3 tools/fetch_draft.py s3://BUCKET/PREFIX DIR
"""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from spec import cli
from spec.publishing.drafts import fetch
from spec.report.command import serving_command
from spec.tuning.arithmetic import words


def main(
    source: Annotated[
        str, Argument(help="Where drafts are published: s3://BUCKET/PREFIX, hf://ORG/NAME, a directory.")
    ],
    folder: Annotated[Path, Argument(metavar="DIR", help="An empty or new directory for the draft.")],
    version: Annotated[str | None, Option(help="A version's name; the latest if left out.")] = None,
    target: Annotated[
        str | None, Option(help="Where the target is, for the command; default: as it was trained.")
    ] = None,
) -> None:
    """Fetch the draft that SOURCE's latest version holds into DIR, every SHA-256 verified."""
    marker = fetch(source, folder, version=version)
    print(f"{folder}: whole and verified. Serve it:\n\n{serving_command(marker, str(folder), target=target)}")
    if serving := marker.facts.get("serving"):
        print(f"\nmeasured: {words(serving)}")


if __name__ == "__main__":
    cli.run(main)
