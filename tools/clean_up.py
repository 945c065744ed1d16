"""End what a workflow started besides its own pods, and wait until it is gone; or sweep up after all that are over.

The sweep also ends steps that have been pending for longer than --pending-seconds, with the scheduler's words, and lets
go of deleted workflows that Argo would keep for ever.
With --verdict it then posts how the run ended to WEBHOOK_URL, if the environment has one, and ends as the run did, also
where something could not be ended; of a run that succeeded, that is then the error.
"""

import os
import time
from typing import Annotated

import typer

from spec import cli
from spec.cluster.api import Cluster, Json
from spec.cluster.cleanup import ALL, SERVERS, end, sweep
from spec.cluster.conclusion import conclude
from spec.cluster.deletion import release
from spec.cluster.pending import end_pending
from spec.errors import BadInput


def main(
    workflow: Annotated[str | None, typer.Option(help="The workflow whose servers and jobs to end")] = None,
    servers_only: Annotated[bool, typer.Option(help="Leave its training jobs alone")] = False,
    verdict: Annotated[
        bool, typer.Option(help="Afterwards, end as the workflow's pipeline did, with its cause")
    ] = False,
    sweep_up: Annotated[bool, typer.Option("--sweep", help="End what workflows that are over have left")] = False,
    pending_seconds: Annotated[
        float, typer.Option(envvar="PENDING_SECONDS", help="In a sweep: how long a step's pod may be pending")
    ] = 3600,
    seconds: Annotated[float, typer.Option(help="How long the pods may take to end")] = 600,
    namespace: Annotated[str | None, typer.Option(help="Default: this pod's, or the kubeconfig's")] = None,
) -> None:
    """Delete servers and training jobs."""
    if (workflow is None) != sweep_up:
        raise BadInput("name one --workflow, or --sweep up after all")
    cluster = Cluster(namespace)
    if workflow is None:
        swept = sweep(cluster)
        print(f"swept: {', '.join(swept) or 'nothing was left'}", flush=True)
        for words in end_pending(cluster, seconds=pending_seconds, now=time.time()):
            print(f"ended: {words}", flush=True)
        if released := release(cluster, now=time.time()):
            print(f"let go: {', '.join(released)}", flush=True)
        return
    left: Exception | None = None
    try:
        ended = end(cluster, workflow, SERVERS if servers_only else ALL, patience=seconds)
        print(f"ended: {', '.join(ended) or 'nothing was left'}", flush=True)
    except Exception as error:
        if not verdict:
            raise
        left = error  # told last: how the run ended matters more, and somebody waits for it
        print(f"not ended: {error}", flush=True)
    if verdict:
        print(_verdict(cluster.get("workflow", workflow)), flush=True)
    if left:
        raise left


def _verdict(workflow: Json) -> str:
    """How its pipeline ended, once whoever waits for it is told. Raises the failed step's error."""
    if url := os.environ.get("WEBHOOK_URL"):
        from spec.cluster.notice import tell  # brings what reads a run, which the sweep does without

        print(tell(workflow, url, os.environ.get("WEBHOOK_KEY", "")), flush=True)
    return conclude(workflow)


if __name__ == "__main__":
    cli.run(main)
