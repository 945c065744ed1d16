"""Makes an earlier version the latest again: readers get it from then on, and nothing is copied or deleted.

python3 tools/roll_back.py s3://BUCKET/PREFIX                    # to the one before that is there and whole
python3 tools/roll_back.py s3://BUCKET/PREFIX --to VERSION
"""

from typing import Annotated

from typer import Argument, Option

from spec import cli
from spec.errors import BadInput
from spec.publishing.versions import StorePlace
from spec.storage import open_store


def main(
    place: Annotated[str, Argument(help="Where versions are published: s3://BUCKET/PREFIX or a directory")],
    to: Annotated[str, Option(help="The version; default: the last that was the latest and is still whole")] = "",
) -> None:
    """Point PLACE's `latest` to an earlier version, whose files are all there."""
    if place.startswith("hf://"):
        raise BadInput(f"{place}: a hub has its own history, each version a tag in it; revert the commit there")
    before, now = StorePlace(open_store(place)).roll_back(to or None)
    print(f"{place}: latest is {now} again, no longer {before}")


if __name__ == "__main__":
    cli.run(main)
