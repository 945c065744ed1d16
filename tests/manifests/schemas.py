"""Strict schemas: every unknown field is an error, which an API server would drop without a word.

Kubernetes' own schemas come with `kubernetes-validate`. Argo's are Hera's models and beside them the full CRDs of both
versions that the templates are for (argo/condense.py). The rest are models of the fields that this project writes,
after the named CRDs.
"""

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import kubernetes_validate
from hera.workflows import models as argo
from jsonschema import Draft202012Validator
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from tests.manifests.objects import Json

KUBERNETES = "1.34"
ARGO = {
    "Workflow": argo.Workflow,
    "WorkflowTemplate": argo.WorkflowTemplate,
    "CronWorkflow": argo.CronWorkflow,
}
CRDS = {path.stem: json.loads(path.read_text()) for path in sorted((Path(__file__).parent / "argo").glob("v*.json"))}


def findings(item: Json) -> list[tuple[str, str]]:
    """(rule, message) for everything in one object that its schema does not know."""
    return _findings(json.dumps(item))


@cache  # Kubernetes' schemas are loaded anew for every object, and most objects are in every world
def _findings(text: str) -> list[tuple[str, str]]:
    return list(_validate(json.loads(text)))


def _validate(item: Json) -> Iterator[tuple[str, str]]:
    group, kind = item.get("apiVersion", "").partition("/")[0], item.get("kind", "")
    try:
        if group == "argoproj.io" and kind in ARGO:
            rule = "argo-schema"
            for version, path, message in of_argo(item):
                yield rule, f"Argo {version}: {path}: {message}"
            ARGO[kind].model_validate(item, extra="forbid", by_alias=True, by_name=False)
        elif kind in CUSTOM:
            rule = "pytorchjob-schema" if kind == "PyTorchJob" else "custom-schema"
            CUSTOM[kind].model_validate(item)
        else:
            rule = "kubernetes-schema"
            kubernetes_validate.validate(item, KUBERNETES, strict=True)
    except ValidationError as error:
        for found in error.errors():
            yield rule, f"{'.'.join(map(str, found['loc']))}: {found['msg']}"
    except kubernetes_validate.ValidationError as error:
        yield rule, f"{'.'.join(map(str, error.path))}: {error.message}"
    except kubernetes_validate.SchemaNotFoundError as error:
        yield rule, error.message


def of_argo(item: Json) -> Iterator[tuple[str, str, str]]:
    """(version, path, message) of everything that a version's CRD does not know."""
    for version, definitions in CRDS.items():
        schema = {"$ref": f"#/$defs/{item['kind']}", **definitions}
        for error in Draft202012Validator(schema).iter_errors(item):
            yield version, ".".join(map(str, error.absolute_path)), error.message


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Metadata(Strict):
    name: Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$", max_length=253)]
    namespace: str | None = None
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}


class Object(Strict):
    apiVersion: str  # noqa: N815  (Kubernetes' names, here and below)
    kind: str
    metadata: Metadata


# --- kubeflow.org/v1 PyTorchJob, after the CRD of training-operator 1.9.3 and what its webhook insists on ---------


class SchedulingPolicy(Strict):
    minAvailable: int | None = None  # noqa: N815
    minResources: dict[str, str] | None = None  # noqa: N815
    priorityClass: str | None = None  # noqa: N815
    queue: str | None = None
    scheduleTimeoutSeconds: int | None = None  # noqa: N815


class RunPolicy(Strict):
    activeDeadlineSeconds: int | None = None  # noqa: N815
    backoffLimit: int | None = None  # noqa: N815
    cleanPodPolicy: Literal["All", "Running", "None"] | None = None  # noqa: N815
    managedBy: str | None = None  # noqa: N815
    schedulingPolicy: SchedulingPolicy | None = None  # noqa: N815
    suspend: bool | None = None
    ttlSecondsAfterFinished: int | None = None  # noqa: N815


class RdzvConf(Strict):
    key: str
    value: str


class ElasticPolicy(Strict):
    maxReplicas: int | None = None  # noqa: N815
    maxRestarts: int | None = None  # noqa: N815
    minReplicas: int | None = None  # noqa: N815
    rdzvBackend: Literal["c10d", "etcd", "etcd-v2"] | None = None  # noqa: N815
    rdzvConf: list[RdzvConf] = []  # noqa: N815
    rdzvHost: str | None = None  # noqa: N815
    rdzvId: str | None = None  # noqa: N815
    rdzvPort: int | None = None  # noqa: N815


class Replica(Strict):
    replicas: Annotated[int, Field(ge=1)] = 1
    restartPolicy: Literal["Always", "OnFailure", "Never", "ExitCode"] | None = None  # noqa: N815
    template: dict[str, Any]

    @model_validator(mode="after")
    def _is_a_pod(self) -> "Replica":
        template = self.template
        if "pytorch" not in [container.get("name") for container in template.get("spec", {}).get("containers", [])]:
            raise ValueError("no container named pytorch, which the operator's webhook refuses")
        pod = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "replica"}, "template": template}
        try:
            kubernetes_validate.validate(pod, KUBERNETES, strict=True)
        except kubernetes_validate.ValidationError as error:
            raise ValueError(f"{'.'.join(map(str, error.path))}: {error.message}") from error
        return self


class Replicas(Strict):
    Master: Replica | None = None
    Worker: Replica | None = None


class PyTorchJobSpec(Strict):
    elasticPolicy: ElasticPolicy | None = None  # noqa: N815
    nprocPerNode: str | None = None  # noqa: N815
    pytorchReplicaSpecs: Replicas  # noqa: N815
    runPolicy: RunPolicy | None = None  # noqa: N815


class JobMetadata(Metadata):
    name: Annotated[str, Field(pattern=r"^[a-z]([-a-z0-9]*[a-z0-9])?$", max_length=63)]  # DNS-1035


class PyTorchJob(Object):
    metadata: JobMetadata
    spec: PyTorchJobSpec


# --- What components and GitOps examples write ---------------------------------------------------------------------


class RemoteReference(Strict):
    key: str
    property: str | None = None


class SecretData(Strict):
    secretKey: str  # noqa: N815
    remoteRef: RemoteReference  # noqa: N815


class SecretStore(Strict):
    kind: Literal["SecretStore", "ClusterSecretStore"]
    name: str


class Named(Strict):
    name: str


class ExternalSecretSpec(Strict):
    refreshInterval: str  # noqa: N815
    secretStoreRef: SecretStore  # noqa: N815
    target: Named
    data: list[SecretData]


class ExternalSecret(Object):
    spec: ExternalSecretSpec


class LocalQueueSpec(Strict):
    clusterQueue: str  # noqa: N815


class LocalQueue(Object):
    spec: LocalQueueSpec


class MatchLabels(Strict):
    matchLabels: dict[str, str]  # noqa: N815


class Endpoint(Strict):
    port: str
    path: str
    interval: str


class ServiceMonitorSpec(Strict):
    selector: MatchLabels
    endpoints: list[Endpoint]


class ServiceMonitor(Object):
    spec: ServiceMonitorSpec


class Rule(Strict):
    alert: str
    expr: str
    for_: Annotated[str, Field(alias="for", pattern=r"^\d+[smhd]$")]
    labels: dict[str, str]
    annotations: dict[str, str]


class RuleGroup(Strict):
    name: str
    rules: list[Rule]


class PrometheusRuleSpec(Strict):
    groups: list[RuleGroup]


class PrometheusRule(Object):
    spec: PrometheusRuleSpec


class ApplicationSource(Strict):
    repoURL: str  # noqa: N815
    targetRevision: str  # noqa: N815
    path: str


class ApplicationDestination(Strict):
    server: str
    namespace: str


class Automated(Strict):
    prune: bool
    selfHeal: bool  # noqa: N815


class Backoff(Strict):
    duration: str
    factor: int
    maxDuration: str  # noqa: N815


class SyncRetry(Strict):
    limit: int
    backoff: Backoff


class SyncPolicy(Strict):
    automated: Automated
    retry: SyncRetry
    syncOptions: list[str]  # noqa: N815


class ApplicationSpec(Strict):
    project: str
    source: ApplicationSource
    destination: ApplicationDestination
    syncPolicy: SyncPolicy  # noqa: N815


class Application(Object):
    spec: ApplicationSpec


class GitReference(Strict):
    branch: str | None = None
    tag: str | None = None


class GitRepositorySpec(Strict):
    interval: str
    url: str
    ref: GitReference


class GitRepository(Object):
    spec: GitRepositorySpec


class SourceReference(Strict):
    kind: Literal["GitRepository"]
    name: str


class FluxKustomizationSpec(Strict):
    dependsOn: list[Named] = []  # noqa: N815
    interval: str
    retryInterval: str  # noqa: N815
    path: str
    prune: bool
    sourceRef: SourceReference  # noqa: N815
    wait: bool
    timeout: str


class FluxKustomization(Object):
    spec: FluxKustomizationSpec


CUSTOM: dict[str, type[Object]] = {
    "PyTorchJob": PyTorchJob,
    "ExternalSecret": ExternalSecret,
    "LocalQueue": LocalQueue,
    "ServiceMonitor": ServiceMonitor,
    "PrometheusRule": PrometheusRule,
    "Application": Application,
    "GitRepository": GitRepository,
    "Kustomization": FluxKustomization,
}
