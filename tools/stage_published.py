"""Bring the draft that a run's is to be compared with to RUN/published: what is measured does not change meanwhile."""

from typing import Annotated

import typer

from spec import cli
from spec.publishing.standing import standing
from spec.storage import open_store


def main(
    run: Annotated[str, typer.Argument(help="The run, its draft exported: a directory or s3://BUCKET/PREFIX")],
    destination: Annotated[str, typer.Argument(help="Where drafts are published, as for publish_draft.py")],
    version: Annotated[str, typer.Option(help="Which of them; default: the latest")] = "",
) -> None:
    """Bring what is published to the run that is to replace it."""
    its = standing(open_store(run), destination, version)
    print(
        f"{run}: nothing is published at {destination} yet" if its is None else f"{run}/{its.folder}: whole, verified"
    )


if __name__ == "__main__":
    cli.run(main)
