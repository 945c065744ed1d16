"""Wait until a server's Deployment is ready, which its readiness probe says once it has generated a token.

A server that keeps crashing ends this with 2 and its last words; one that is not ready in time with 75.
"""

from typing import Annotated

import typer

from spec import cli
from spec.cluster.api import Cluster
from spec.cluster.servers import wait_until_ready
from spec.costs.pods import saw_server


def main(
    deployment: Annotated[str, typer.Argument(help="Name of the Deployment")],
    seconds: Annotated[float, typer.Option(help="How long it may take, scheduling and loading included")] = 3600,
    namespace: Annotated[str | None, typer.Option(help="Default: this pod's, or the kubeconfig's")] = None,
) -> None:
    """Wait for a server."""
    cluster = Cluster(namespace)
    took = wait_until_ready(cluster, deployment, patience=seconds)
    saw_server(cluster.get("deployment", deployment), cluster.pods(f"sgl-spec/server={deployment}"))
    print(f"deployment/{deployment}: ready after {took:.0f} s", flush=True)


if __name__ == "__main__":
    cli.run(main)
