"""Publishes a run's draft: a new version beside the old ones, and only then the pointer that readers follow.

    python3 tools/publish_draft.py RUN s3://BUCKET/PREFIX

Credentials come from the standard chains (AWS_*, HF_TOKEN). A store that refuses the checksums which boto3 adds wants
AWS_REQUEST_CHECKSUM_CALCULATION=when_required.
"""

from typing import Annotated

from typer import Argument, Option

from spec import cli
from spec.publishing.drafts import publish
from spec.storage import open_store


def main(
    run: Annotated[str, Argument(help="The run, its draft evaluated: a directory or s3://BUCKET/PREFIX.")],
    destination: Annotated[str, Argument(help="s3://BUCKET/PREFIX, hf://ORG/NAME or a directory.")],
    without_report: Annotated[bool, Option("--without-report", help="Publish a draft that nobody measured.")] = False,
) -> None:
    """Publish RUN's draft at DESTINATION as its latest version; the same draft again changes nothing."""
    publish(open_store(run), destination, without_report=without_report)


if __name__ == "__main__":
    cli.run(main)
