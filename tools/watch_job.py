"""Follow a PyTorchJob to its end: print rank 0's log, say what holds it up, and tell whether trying again can help.

Killed and started again it finds the same job where it is. A failed attempt that another one may mend (lost pods, out
of memory, a deadline) is `retry` in --outcome and exit 0 while attempts are left, and 75 after the last; wrong settings
are exit 2 at once. A job that never gets its nodes is 75 too: another one would wait beside it. What every rank said is
kept in RUN/logs: a job's pods stay until that is read, and only then is the operator told to end what is left of them.
"""

import signal
from pathlib import Path
from typing import Annotated

import typer

from spec import cli
from spec.cluster import logs
from spec.cluster.api import Cluster, Json
from spec.cluster.jobs import CONTAINER, GaveUp, Outcome, Patience, follow
from spec.costs.pods import Sightings
from spec.errors import PassingFault, Stopped
from spec.storage import open_store


def main(
    job: Annotated[str, typer.Argument(help="Name of the PyTorchJob")],
    run: Annotated[str, typer.Option(help="The run, which keeps its pods' logs and times")],
    attempt: Annotated[int, typer.Option(help="Which attempt this job is, from 1", min=1)] = 1,
    attempts: Annotated[int, typer.Option(help="How many attempts there may be", min=1)] = 1,
    outcome: Annotated[Path | None, typer.Option(help="File to write `succeeded` or `retry` to")] = None,
    pending_seconds: Annotated[float, typer.Option(help="How long its pods may wait for a node")] = 3600,
    namespace: Annotated[str | None, typer.Option(help="Default: this pod's, or the kubeconfig's")] = None,
) -> None:
    """Wait until a training job has ended."""
    signal.signal(signal.SIGTERM, _leave)
    print(f"pytorchjob/{job}: attempt {attempt} of {attempts}", flush=True)
    cluster = Cluster(namespace)
    sightings = Sightings(open_store(run), "train")
    keeper = logs.Keeper(cluster, run, f"training.kubeflow.org/job-name={job}", CONTAINER)

    def saw(workers: list[Json]) -> None:
        sightings.saw(workers)
        keeper.saw(workers)

    try:
        message = follow(cluster, job, patience=Patience(pending=pending_seconds), saw=saw, over=keeper.end)
        result = Outcome.SUCCEEDED
    except GaveUp:
        raise
    except PassingFault as fault:
        if attempt >= attempts:
            raise PassingFault(f"attempt {attempt} of {attempts} failed too: {fault}") from fault
        message = f"attempt {attempt} of {attempts} failed, the next goes on from the newest checkpoint: {fault}"
        result = Outcome.RETRY
    finally:
        keeper.keep()
        keeper.wait()
    print(message, flush=True)
    if outcome is not None:
        outcome.write_text(result)


def _leave(*_: object) -> None:
    raise Stopped("told to stop watching; the job runs on, and the next watcher finds it")


if __name__ == "__main__":
    cli.run(main)
