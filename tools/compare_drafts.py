"""One page for several drafts: accept length by suite and position, speed-up, loss, cost, and how they were made.

    python3 tools/compare_drafts.py runs/eagle runs/dspark s3://BUCKET/week-7 --html compare.html

A run, or the folder of a published draft that tools/fetch_draft.py brought: what was measured of it came with it.
"""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from spec import cli
from spec.errors import BadInput
from spec.report.comparison import read, render
from spec.storage import open_store


def main(
    runs: Annotated[list[str], Argument(help="Runs, or folders of fetched drafts: directories or s3://BUCKET/PREFIX.")],
    html: Annotated[Path, Option(help="Where to write the page.")] = Path("compare.html"),
) -> None:
    """Write a page on which several drafts stand side by side."""
    if len(set(runs)) < len(runs):
        raise BadInput("the same run is given twice")
    drafts = read([open_store(run) for run in runs])
    html.write_text(render(drafts))
    print(f"{html}: {', '.join(draft.name for draft in drafts)}")


if __name__ == "__main__":
    cli.run(main)
