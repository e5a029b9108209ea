"""deploy/: every file parses and has the fields that its reader knows.

Compose and Kubernetes have published schemas. Dagster's chart has one that no package index carries, so the
values are checked by the models below, which list the fields that are used of its `values.schema.json`, by
Dagster's own check of the instance that they make, and by the Job that K8sRunLauncher makes of them.
"""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any, Literal

import jsonschema
import kubernetes_validate
import pytest
import yaml
from dagster._config import process_config, resolve_to_config_type
from dagster._core.instance.config import dagster_instance_config_schema
from dagster_k8s import K8sRunLauncher
from dagster_k8s.job import DagsterK8sJobConfig, UserDefinedDagsterK8sConfig, construct_dagster_k8s_job
from kubernetes.client import ApiClient
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from iccm_assets_tests.factories.deployments import (
    DEPLOY,
    HELM_VALUES,
    MANIFESTS,
    manifest_documents,
    read_compose,
    read_documents,
    read_yaml,
)
from iccm_assets_tests.factories.processes import ROOT

KUBERNETES = "1.37"
COMPOSE_SCHEMA = json.loads(
    (files("check_jsonschema") / "builtin_schemas" / "vendor" / "compose-spec.json").read_text("utf-8")
)


@pytest.mark.parametrize(
    "path", sorted(DEPLOY.rglob("*.y*ml")), ids=lambda path: str(path.relative_to(DEPLOY))
)
def test_every_yaml_file_parses(path) -> None:
    assert all(isinstance(document, dict) for document in read_documents(path))


# ---- compose -------------------------------------------------------------------------------------


def test_the_compose_file_has_the_schema_of_the_specification() -> None:
    jsonschema.validate(read_compose(), COMPOSE_SCHEMA)


@pytest.mark.parametrize("change", [{"comand": []}, {"ports": [{"target": "x", "to": 1}]}, {"restart": 3}])
def test_a_wrong_field_of_a_service_is_found(change: dict[str, Any]) -> None:
    document = read_compose()
    document["services"]["code"] |= change
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document, COMPOSE_SCHEMA)


# ---- manifests -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "document",
    [pytest.param(document, id=f"{name} {document['kind']}") for name, document in manifest_documents()],
)
def test_a_manifest_has_the_schema_of_kubernetes(document: dict[str, Any]) -> None:
    kubernetes_validate.validate(document, KUBERNETES, strict=True)


def test_a_wrong_field_of_a_manifest_is_found() -> None:
    [gateway] = [
        document for _, document in manifest_documents() if document["kind"] == "PodDisruptionBudget"
    ]
    gateway["spec"]["maxUnavailabel"] = 1
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(gateway, KUBERNETES, strict=True)


def test_the_kustomization_names_files_and_leaves_out_templates_and_examples() -> None:
    kustomization = read_yaml(MANIFESTS / "kustomization.yaml")
    left_out = {"kustomization.yaml", "secrets.example.yaml", "vllm.yaml"}
    assert set(kustomization["resources"]) == {path.name for path in MANIFESTS.iterdir()} - left_out


# ---- Dagster's chart -----------------------------------------------------------------------------


class Values(BaseModel):
    """Part of the chart's values; an unknown field is an error, as in the chart's schema."""

    model_config = ConfigDict(extra="forbid")


class Image(Values):
    repository: str
    tag: str
    pullPolicy: Literal["Always", "IfNotPresent", "Never"]


class Enabled(Values):
    enabled: bool


class NamedSource(Values):
    name: str


class Pod(Values):
    image: Image
    podSecurityContext: dict[str, Any]
    securityContext: dict[str, Any]
    resources: dict[str, Any]


class CodeLocation(Pod):
    name: str = Field(pattern="^[a-z0-9-]+$")
    dagsterApiGrpcArgs: list[str]
    port: int
    includeConfigInLaunchedRuns: Enabled
    envConfigMaps: list[NamedSource]
    envSecrets: list[NamedSource]
    volumes: list[dict[str, Any]]
    volumeMounts: list[dict[str, Any]]


class CodeLocations(Values):
    enabled: bool
    enableSubchart: bool
    deployments: list[CodeLocation]


class ServicePort(Values):
    type: Literal["ClusterIP"]
    port: int


class WorkspaceServer(Values):
    host: str
    port: int
    name: str


class Workspace(Values):
    enabled: bool
    servers: list[WorkspaceServer]


class Webserver(Pod):
    replicaCount: int
    service: ServicePort
    workspace: Workspace
    readinessProbe: dict[str, Any]


class Workers(Values):
    useThreads: bool
    numWorkers: int


class QueuedRunCoordinator(Values):
    queuedRunCoordinator: dict[str, Any]


class RunCoordinator(Values):
    enabled: bool
    type: Literal["QueuedRunCoordinator"]
    config: QueuedRunCoordinator


class Daemon(Pod):
    enabled: bool
    runCoordinator: RunCoordinator
    sensors: Workers
    schedules: Workers
    runMonitoring: Enabled
    runRetries: Enabled


class RunK8sConfig(Values):
    podSpecConfig: dict[str, Any]
    containerConfig: dict[str, Any]
    jobSpecConfig: dict[str, Any]


class K8sRunLauncherValues(Values):
    imagePullPolicy: Literal["Always", "IfNotPresent", "Never"]
    loadInclusterConfig: bool
    envConfigMaps: list[NamedSource]
    envSecrets: list[NamedSource]
    volumes: list[dict[str, Any]]
    volumeMounts: list[dict[str, Any]]
    resources: dict[str, Any]
    runK8sConfig: RunK8sConfig


class RunLauncherConfig(Values):
    k8sRunLauncher: K8sRunLauncherValues


class RunLauncher(Values):
    type: Literal["K8sRunLauncher"]
    config: RunLauncherConfig


class PostgresqlService(Values):
    port: int


class Postgresql(Values):
    enabled: bool
    postgresqlHost: str
    postgresqlUsername: str
    postgresqlDatabase: str
    postgresqlParams: dict[str, str]
    service: PostgresqlService


class PythonLogs(Values):
    managedPythonLoggers: list[str]
    pythonLogLevel: Literal["INFO"]


class Global(Values):
    dagsterHome: str
    postgresqlSecretName: str


class ChartValues(Values):
    global_: Global = Field(alias="global")
    generatePostgresqlPasswordSecret: bool
    postgresql: Postgresql
    userDeployments: CodeLocations = Field(alias="dagster-user-deployments")
    dagsterWebserver: Webserver
    dagsterDaemon: Daemon
    runLauncher: RunLauncher
    pythonLogs: PythonLogs
    telemetry: Enabled
    concurrency: Enabled
    retention: Enabled
    additionalInstanceConfig: dict[str, Any]


def test_the_values_have_the_fields_of_the_chart() -> None:
    values = read_yaml(HELM_VALUES)
    ChartValues.model_validate(values)
    values["runLauncher"]["config"]["k8sRunLauncher"]["envSecret"] = []
    with pytest.raises(ValidationError):
        ChartValues.model_validate(values)


def test_the_chart_makes_the_instance_that_dagster_yaml_describes() -> None:
    """What the chart's templates write of the values themselves, and what they append as it is."""
    values, written = read_yaml(HELM_VALUES), read_yaml(ROOT / "dagster.yaml")
    daemon, logs = values["dagsterDaemon"], values["pythonLogs"]
    workers = {
        kind: {"use_threads": daemon[kind]["useThreads"], "num_workers": daemon[kind]["numWorkers"]}
        for kind in ("sensors", "schedules")
    }
    made = {
        **workers,
        "python_logs": {
            "managed_python_loggers": logs["managedPythonLoggers"],
            "python_log_level": logs["pythonLogLevel"],
        },
        "telemetry": values["telemetry"],
        **values["additionalInstanceConfig"],
    }
    # The chart writes the storage; a code server of its own needs no start-up time of the others'.
    del written["storage"], written["code_servers"]
    assert made == written
    schema = dagster_instance_config_schema()
    assert process_config(resolve_to_config_type(schema), made).success
    assert not process_config(resolve_to_config_type(schema), made | {"run_monitorin": {}}).success


def launcher_config(values: dict[str, Any]) -> dict[str, Any]:
    """The launcher's configuration in dagster.yaml, as the chart's template writes it."""
    launcher = values["runLauncher"]["config"]["k8sRunLauncher"]
    run = launcher["runK8sConfig"]
    return {
        "load_incluster_config": launcher["loadInclusterConfig"],
        "job_namespace": "default",
        "image_pull_policy": launcher["imagePullPolicy"],
        "service_account_name": "dagster",
        "dagster_home": values["global"]["dagsterHome"],
        "instance_config_map": "dagster-instance",
        "postgres_password_secret": values["global"]["postgresqlSecretName"],
        "env_config_maps": [source["name"] for source in launcher["envConfigMaps"]],
        "env_secrets": [source["name"] for source in launcher["envSecrets"]],
        "volume_mounts": launcher["volumeMounts"],
        "volumes": launcher["volumes"],
        "resources": launcher["resources"],
        "run_k8s_config": {
            "container_config": run["containerConfig"],
            "pod_spec_config": run["podSpecConfig"],
            "job_spec_config": run["jobSpecConfig"],
        },
    }


def test_the_job_of_a_run_has_the_schema_of_kubernetes_and_what_the_sandbox_needs() -> None:
    config = launcher_config(read_yaml(HELM_VALUES))
    checked = process_config(resolve_to_config_type(K8sRunLauncher.config_type()), config)
    assert checked.success, checked.errors
    job = construct_dagster_k8s_job(
        DagsterK8sJobConfig(
            job_image="iccm:0.1.0",
            **{
                name: config[name]
                for name in (
                    *("dagster_home", "image_pull_policy", "service_account_name", "instance_config_map"),
                    *("postgres_password_secret", "env_config_maps", "env_secrets", "volume_mounts"),
                    *("volumes", "resources"),
                )
            },
        ),
        ["dagster", "api", "execute_run"],
        "dagster-run",
        UserDefinedDagsterK8sConfig.from_dict(config["run_k8s_config"]),
    )
    document = ApiClient().sanitize_for_serialization(job)
    kubernetes_validate.validate(document, KUBERNETES, strict=True)
    pod = document["spec"]["template"]["spec"]
    [container] = pod["containers"]
    assert pod["hostUsers"] is False and pod["securityContext"]["seccompProfile"]["type"] == "Unconfined"
    assert container["securityContext"]["procMount"] == "Unmasked"
    assert {"configMapRef": {"name": "iccm-settings"}} in container["envFrom"]
    assert {"secretRef": {"name": "iccm-platform"}} in container["envFrom"]
    assert any(mount["mountPath"] == "/var/lib/iccm" for mount in container["volumeMounts"])


def test_the_pods_of_the_chart_have_the_schema_of_kubernetes() -> None:
    values = read_yaml(HELM_VALUES)
    [code] = values["dagster-user-deployments"]["deployments"]
    for part in (code, values["dagsterWebserver"], values["dagsterDaemon"]):
        container = {
            "name": "it",
            "image": f"{part['image']['repository']}:{part['image']['tag']}",
            "securityContext": part["securityContext"],
            "resources": part["resources"],
            "volumeMounts": part.get("volumeMounts", []),
            **({"readinessProbe": part["readinessProbe"]} if "readinessProbe" in part else {}),
        }
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "it"},
            "spec": {
                "securityContext": part["podSecurityContext"],
                "volumes": part.get("volumes", []),
                "containers": [container],
            },
        }
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)


def test_no_yaml_file_has_a_key_twice() -> None:
    """YAML keeps the last one silently."""

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            keys = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
            assert len(keys) == len(set(keys)), f"{node.start_mark}: {keys}"
            return super().construct_mapping(node, deep)

    for path in DEPLOY.rglob("*.y*ml"):
        list(yaml.load_all(path.read_text("utf-8"), Loader))
