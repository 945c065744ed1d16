"""Brings a target to where servers and trainers read it, verified; the only step that asks a model hub.

python3 tools/stage_model.py Qwen/Qwen3-8B TARGET_DIR --revision b968826d9c46dd6066d109eabc6255188de91218
"""

from typing import Annotated

from typer import Argument, Option

from spec import cli
from spec.target.staging import stage


def main(
    model: Annotated[str, Argument(help="ORG/NAME on the hub, a directory, or s3://BUCKET/PREFIX.")],
    target: Annotated[str, Argument(help="A directory or s3://BUCKET/PREFIX; made if it is not there.")],
    revision: Annotated[str | None, Option(help="Commit, tag or branch on the hub; default: its head.")] = None,
    overwrite: Annotated[bool, Option(help="Replace another model or revision that TARGET holds.")] = False,
) -> None:
    """Stage MODEL in TARGET. A branch is resolved to the commit it is now, which `staged.json` there records."""
    stage(model, target, revision, overwrite=overwrite)


if __name__ == "__main__":
    cli.run(main)
