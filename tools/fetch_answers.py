"""Brings published answers into a run, as if its own filter step had made them: tools/prepare_data.py is next."""

from typing import Annotated

from typer import Argument, Option

from spec import cli
from spec.conversations.shards import read_counts
from spec.publishing.answers import fetch
from spec.storage import open_store


def main(
    source: Annotated[
        str, Argument(help="Where answers were published: s3://BUCKET/PREFIX, hf://ORG/NAME, a directory.")
    ],
    run: Annotated[str, Argument(help="The run to bring them into: a directory or s3://BUCKET/PREFIX.")],
    version: Annotated[str | None, Option(help="A version's name; the latest if left out.")] = None,
) -> None:
    """Fetch SOURCE's answers into RUN, every SHA-256 verified; again writes only what is missing."""
    store = open_store(run)
    manifest = fetch(source, store, version=version)
    counts = ", ".join(f"{name} {count}" for name, count in read_counts(store).items())
    print(f"{store.url}: answers {manifest.version}: {counts}")


if __name__ == "__main__":
    cli.run(main)
