"""Publishes a run's draft: a new version beside the old ones, and only then the pointer that readers follow.

    python3 tools/publish_draft.py RUN s3://BUCKET/PREFIX

Credentials come from the standard chains (AWS_*, HF_TOKEN). A store that refuses the checksums which boto3 adds wants
AWS_REQUEST_CHECKSUM_CALCULATION=when_required.
"""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from spec import cli
from spec.errors import BadInput
from spec.evaluation.gate import Bar
from spec.publishing.drafts import publish
from spec.storage import open_store


def main(
    run: Annotated[str, Argument(help="The run, its draft evaluated: a directory or s3://BUCKET/PREFIX.")],
    destination: Annotated[str, Argument(help="s3://BUCKET/PREFIX, hf://ORG/NAME or a directory.")],
    min_speed_up: Annotated[
        float,
        Option(
            min=0.0, help="A bar of speed, where the evaluation had none: tokens/s with the draft over those without."
        ),
    ] = 0.0,
    at_concurrency: Annotated[int, Option(min=0, help="The load of that bar, in requests at once.")] = 0,
    max_regression: Annotated[
        float,
        Option(
            min=0.0,
            max=1.0,
            help="The evaluation's bar beside the published draft, which must still be the latest. 1: no bar.",
        ),
    ] = 1.0,
    without_report: Annotated[bool, Option("--without-report", help="Publish a draft that nobody measured.")] = False,
    version_to: Annotated[Path | None, Option(help="A file for the version's name.")] = None,
) -> None:
    """Publish RUN's draft at DESTINATION as its latest version; the same draft again changes nothing."""
    bar = Bar(
        speed_up=min_speed_up or None,
        at_concurrency=at_concurrency or None,
        max_regression=None if max_regression == 1 else max_regression,
    )
    if without_report and bar != Bar():
        raise BadInput(
            "--without-report asks for no figures, --min-speed-up and --max-regression for some; leave one of them out"
        )
    manifest = publish(open_store(run), destination, bar=bar, without_report=without_report)
    if version_to:
        version_to.write_text(manifest.version)


if __name__ == "__main__":
    cli.run(main)
