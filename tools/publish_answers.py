"""Publishes a run's answers as a data set (Parquet and a card), so that others can train without a server."""

from typing import Annotated

from typer import Argument

from spec import cli
from spec.publishing.answers import publish
from spec.storage import open_store


def main(
    run: Annotated[str, Argument(help="The run, its filter step finished: a directory or s3://BUCKET/PREFIX.")],
    destination: Annotated[str, Argument(help="s3://BUCKET/PREFIX, hf://ORG/NAME or a directory.")],
) -> None:
    """Publish RUN's answers at DESTINATION as its latest version; the same answers again change nothing."""
    publish(open_store(run), destination)


if __name__ == "__main__":
    cli.run(main)
