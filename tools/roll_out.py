"""Start the Deployment that serves a draft anew after a publication, and wait until the new server answers.

python3 tools/roll_out.py NAMESPACE/DEPLOYMENT VERSION

It fetches what `latest` names by itself (workflows/examples/serving). A server that keeps crashing ends this with 2,
one that is not ready in time with 75: the draft is published all the same; tools/roll_back.py takes it back.
"""

from typing import Annotated

import typer

from spec import cli
from spec.cluster.api import Cluster
from spec.cluster.rollout import named, roll_out


def main(
    serves: Annotated[str, typer.Argument(metavar="NAMESPACE/DEPLOYMENT", help="What serves the draft")],
    version: Annotated[str, typer.Argument(help="The published version; pods that have it stay")],
    seconds: Annotated[float, typer.Option(help="How long it may take, scheduling and loading included")] = 3600,
) -> None:
    """Roll a published draft out."""
    namespace, deployment = named(serves)
    took = roll_out(Cluster(namespace), deployment, version, patience=seconds)
    print(f"deployment/{deployment} of {namespace}: serves version {version} after {took:.0f} s", flush=True)


if __name__ == "__main__":
    cli.run(main)
