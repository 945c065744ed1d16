"""The connection to the Kubernetes API, and its errors in the words of this project."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kubernetes import client, config
from kubernetes.client.exceptions import ApiException
from urllib3.exceptions import HTTPError

from spec.errors import BadInput, PassingFault

Json = dict[str, Any]

WORKFLOW_LABEL = "sgl-spec/workflow"  # on everything that a run makes besides its own pods
KINDS = {  # group, version, plural; services are of the core API
    "deployment": ("apps", "v1", "deployments"),
    "pytorchjob": ("kubeflow.org", "v1", "pytorchjobs"),
    "workflow": ("argoproj.io", "v1alpha1", "workflows"),
}
_SECONDS = (10, 60)  # to connect, to read: a call never hangs for good


class Cluster:
    """One namespace of a cluster, read as plain JSON. `told` says what it raises."""

    def __init__(self, namespace: str | None = None):
        try:
            if "KUBERNETES_SERVICE_HOST" in os.environ:
                config.load_incluster_config()
            else:
                config.load_kube_config()
        except (config.ConfigException, OSError) as error:
            raise BadInput(f"no cluster to talk to: {error}; set KUBECONFIG or run this in a pod") from error
        self.namespace = namespace or own_namespace()
        self._api = client.ApiClient()
        self._core = client.CoreV1Api(self._api)
        self._objects: Any = client.CustomObjectsApi(self._api)

    def get(self, kind: str, name: str) -> Json:
        group, version, plural = KINDS[kind]
        with told(f"{kind}/{name}"):
            return self._objects.get_namespaced_custom_object(
                group, version, self.namespace, plural, name, _request_timeout=_SECONDS
            )

    def find(self, kind: str, selector: str) -> list[Json]:
        if kind == "service":
            with told("services"):
                found = self._core.list_namespaced_service(
                    self.namespace, label_selector=selector, _request_timeout=_SECONDS
                )
            return self._api.sanitize_for_serialization(found)["items"] or []
        group, version, plural = KINDS[kind]
        with told(f"{kind}s"):
            answer = self._objects.list_namespaced_custom_object(
                group, version, self.namespace, plural, label_selector=selector, _request_timeout=_SECONDS
            )
        return answer["items"] or []

    def metadata(self, kind: str) -> list[Json]:
        """Of every object of a kind, without what may be a megabyte each."""
        group, version, plural = KINDS[kind]
        accept = {"Accept": "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"}
        with told(f"{kind}s"):
            answer = self._objects.list_namespaced_custom_object(
                group, version, self.namespace, plural, _headers=accept, _request_timeout=_SECONDS
            )
        return [item["metadata"] for item in answer["items"] or []]

    def delete(self, kind: str, name: str) -> None:
        """Delete with all that it owns: it leaves the API only after its pods have. A missing one is fine."""
        options = client.V1DeleteOptions(propagation_policy="Foreground")
        try:
            with told(f"{kind}/{name}"):
                if kind == "service":
                    self._core.delete_namespaced_service(name, self.namespace, _request_timeout=_SECONDS)
                    return
                group, version, plural = KINDS[kind]
                self._objects.delete_namespaced_custom_object(
                    group, version, self.namespace, plural, name, body=options, _request_timeout=_SECONDS
                )
        except FileNotFoundError:
            pass

    def pods(self, selector: str) -> list[Json]:
        with told("pods"):
            answer = self._core.list_namespaced_pod(self.namespace, label_selector=selector, _request_timeout=_SECONDS)
        return self._api.sanitize_for_serialization(answer)["items"] or []

    def quotas(self) -> list[Json]:
        with told("resource quotas"):
            answer = self._core.list_namespaced_resource_quota(self.namespace, _request_timeout=_SECONDS)
        return self._api.sanitize_for_serialization(answer)["items"] or []

    def patch(self, kind: str, name: str, change: Json) -> Json:
        """Merge `change` into an object, and give what it is then."""
        group, version, plural = KINDS[kind]
        with told(f"{kind}/{name}"):
            return self._objects.patch_namespaced_custom_object(
                group, version, self.namespace, plural, name, change, _request_timeout=_SECONDS
            )

    def set_pod_status(self, name: str, status: Json) -> None:
        """Change these fields of a pod's status. A missing one is fine."""
        try:
            with told(f"status of pod/{name}"):
                self._core.patch_namespaced_pod_status(
                    name, self.namespace, {"status": status}, _request_timeout=_SECONDS
                )
        except FileNotFoundError:
            pass

    def config_map(self, name: str, namespace: str) -> dict[str, str]:
        with told(f"configmap/{name} of namespace {namespace}"):
            return self._core.read_namespaced_config_map(name, namespace, _request_timeout=_SECONDS).data or {}

    def log(
        self,
        pod: str,
        container: str,
        *,
        since_seconds: int | None = None,
        tail_lines: int | None = None,
        before_restart: bool = False,
        to_its_end: float = 0.0,
    ) -> str:
        """What a container printed, each line behind its time stamp; "" while it has not started.

        With `to_its_end`, all that it prints until it ends, unless it is silent for so many seconds.
        """
        with told(f"log of {pod}"):
            try:
                answer: Any = self._core.read_namespaced_pod_log(
                    pod,
                    self.namespace,
                    container=container,
                    timestamps=True,
                    since_seconds=since_seconds,
                    tail_lines=tail_lines,
                    previous=before_restart,
                    follow=bool(to_its_end),
                    _preload_content=False,  # which would take it for clean UTF-8
                    _request_timeout=(_SECONDS[0], to_its_end or _SECONDS[1]),
                )
                return answer.data.decode(errors="replace")
            except ApiException as error:
                if error.status == 400:  # "container is waiting to start"
                    return ""
                raise


@contextmanager
def told(what: str) -> Iterator[None]:
    """Turn the client's errors into `FileNotFoundError` (404), `BadInput` (a missing right) or `PassingFault`."""
    try:
        yield
    except ApiException as error:
        if error.status == 404:
            raise FileNotFoundError(what) from error
        if error.status in (401, 403):
            raise BadInput(
                f"{what}: the API server refuses ({error.reason}): this service account lacks a Role of manifests/base "
                "or, to roll out, that of workflows/examples/serving; apply it in the namespace asked"
            ) from error
        raise PassingFault(f"{what}: the API server answers {error.status} {error.reason}") from error
    except (HTTPError, OSError) as error:
        raise PassingFault(f"{what}: the API server cannot be reached: {error}") from error


def own_namespace() -> str:
    """The pod's own namespace, else that of the kubeconfig's current context."""
    mounted = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
    if mounted.is_file():
        return mounted.read_text().strip()
    _, active = config.list_kube_config_contexts()
    return active["context"].get("namespace", "default")
