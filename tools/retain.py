"""Deletes old published versions, runs or checkpoints. Says what would go, and deletes it only with --delete.

    python3 tools/retain.py versions s3://BUCKET/PREFIX --keep 5             # where drafts or answers are published
    python3 tools/retain.py runs s3://BUCKET/runs --keep 10 --delete
    python3 tools/retain.py checkpoints s3://BUCKET/runs/NAME --keep 1

What `latest` names or a workflow of the namespace needs that is not over is never deleted. For that the cluster is
asked; --no-cluster is for a machine where nothing but this command is at work.
"""

from enum import StrEnum
from typing import Annotated

from typer import Argument, Option

from spec import cli
from spec.cluster.api import Cluster
from spec.cluster.in_flight import naming
from spec.errors import BadInput
from spec.publishing import retention
from spec.storage import open_store


class What(StrEnum):
    VERSIONS = "versions"
    RUNS = "runs"
    CHECKPOINTS = "checkpoints"


def main(
    what: Annotated[What, Argument(help="What to delete old ones of")],
    place: Annotated[str, Argument(help="Where they are: s3://BUCKET/PREFIX or a directory")],
    keep: Annotated[int, Option(min=1, help="How many of the newest stay")],
    delete: Annotated[bool, Option("--delete", help="Delete; without it, only say what would go")] = False,
    no_cluster: Annotated[bool, Option("--no-cluster", help="Ask no cluster: nothing else is at work there")] = False,
    namespace: Annotated[str | None, Option(help="Default: this pod's, or the kubeconfig's")] = None,
) -> None:
    """Keep the newest of WHAT at PLACE, and what is in use."""
    if place.startswith("hf://"):
        raise BadInput(f"{place}: a hub keeps the history of its repositories itself; delete tags and branches there")
    store = open_store(place)
    plan = {
        What.VERSIONS: retention.of_versions,
        What.RUNS: retention.of_runs,
        What.CHECKPOINTS: retention.of_checkpoints,
    }
    items = plan[what](store, keep, (lambda text: "") if no_cluster else naming(Cluster(namespace)))
    for item in items:
        print(f"{item.folder}  {item.bytes / 2**30:.2f} GiB  {'stays: ' + item.kept if item.kept else 'goes'}")
    gone = [item for item in items if not item.kept]
    size = sum(item.bytes for item in gone) / 2**30
    if delete:
        retention.delete(store, items)
    print(f"{len(gone)} of {len(items)}, {size:.2f} GiB, {'deleted' if delete else 'would go; --delete deletes them'}")


if __name__ == "__main__":
    cli.run(main)
