"""deploy/: what the image runs exists, and fits together: commands, settings, ports, files, limits (K5)."""

from __future__ import annotations

import fnmatch
import json
import os
import re
import shlex
import sys
import tomllib
from collections.abc import Iterator
from functools import partial
from importlib.metadata import entry_points as read_entry_points
from typing import Any

import pytest

from iccm_assets.cli.serve import DEFAULT_PORT
from iccm_assets.errors import SettingsError
from iccm_assets.gateway.server import FLUSH_TIMEOUT_SECONDS
from iccm_assets.settings import load_settings
from iccm_assets_tests.factories.deployments import (
    DEPLOY,
    DOCKERFILE,
    HELM_VALUES,
    PLATFORM_IMAGE,
    Container,
    all_containers,
    chart_containers,
    compose_containers,
    dockerfile_instructions,
    manifest_documents,
    platform_pods,
    pod_specs,
    read_compose,
    read_yaml,
)
from iccm_assets_tests.factories.processes import BIN, ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
CONTAINERS = all_containers()
entry_points_of_scripts = partial(read_entry_points, group="console_scripts")
# What other programs than the platform read.
FOREIGN_VARIABLES = {"DAGSTER_PG_URL"}
IDS = [container.name for container in CONTAINERS]


def entry_points() -> Iterator[tuple[str, ...]]:
    """Every command line of the image once, health checks included."""
    commands = [container.command for container in CONTAINERS]
    probes = [shlex.split(probe) for container in CONTAINERS for probe in container.probes]
    commands += [tuple(words) for words in probes if words[0].startswith("dagster")]
    [default] = [words for word, words in dockerfile_instructions() if word == "CMD"]
    yield from sorted({*commands, tuple(json.loads(default)[:1])})


@pytest.mark.parametrize("command", list(entry_points()), ids=shlex.join)
def test_a_command_exists_with_its_options(
    command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The parser reads all options before it obeys `--help`: an unknown one is an error.

    The scripts' functions are called here, as the scripts do: a process each would import Dagster each time.
    """
    [script] = entry_points_of_scripts(name=command[0])
    assert os.access(BIN / command[0], os.X_OK)
    monkeypatch.setattr(sys, "argv", [*command, "--help"])
    with pytest.raises(SystemExit) as ended:
        script.load()()
    shown = capsys.readouterr()
    assert not ended.value.code and "Usage" in shown.out, shown.err


@pytest.mark.parametrize("container", CONTAINERS, ids=IDS)
def test_every_variable_is_a_setting_with_a_valid_value(
    container: Container, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith("ICCM_")]:
        monkeypatch.delenv(name)
    for name, value in container.variables.items():
        assert name.startswith("ICCM_") or name in FOREIGN_VARIABLES
        monkeypatch.setenv(name, str(value))
    settings = load_settings()
    expected = {name for name in container.variables if name.startswith("ICCM_")}
    assert not expected or settings.database_url
    if "ICCM_GATEWAY__TOKENS" in expected:
        assert min(map(len, settings.gateway.tokens.split(","))) >= 16


def test_the_variable_that_kubernetes_would_set_for_a_service_named_iccm_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ICCM_GATEWAY_PORT", "tcp://10.0.0.1:80")
    with pytest.raises(SettingsError, match="ICCM_GATEWAY_PORT"):
        load_settings()
    services = [document for _, document in manifest_documents() if document["kind"] == "Service"]
    names = [service["metadata"]["name"] for service in services]
    names += [code["name"] for code in read_yaml(HELM_VALUES)["dagster-user-deployments"]["deployments"]]
    assert "gateway" in names and not [name for name in names if name.startswith("iccm")]
    [release] = re.findall(r"helm upgrade --install (\S+)", HELM_VALUES.read_text("utf-8"))
    assert not release.startswith("iccm")


# ---- ports ---------------------------------------------------------------------------------------


def listening_port(container: Container) -> int | None:
    options = [option for option in ("--port", "-p") if option in container.command]
    return int(container.option(options[0])) if options else None


@pytest.mark.parametrize("container", CONTAINERS, ids=IDS)
def test_a_container_is_reached_and_probed_at_the_port_it_listens_on(container: Container) -> None:
    port = listening_port(container)
    assert container.port in (port, None)
    for probe in container.probes:
        mentioned = re.findall(r"(?:127\.0\.0\.1:|--port |-p )(\d+)", probe)
        assert [int(number) for number in mentioned] in ([port], []), probe


def test_every_port_is_exposed_by_the_image_and_the_gateways_is_the_default() -> None:
    [exposed] = [words for word, words in dockerfile_instructions() if word == "EXPOSE"]
    assert set(map(int, exposed.split())) == {listening_port(container) for container in CONTAINERS} - {None}
    gateways = [container for container in CONTAINERS if container.command[:2] == ("iccm", "serve")]
    assert {listening_port(gateway) for gateway in gateways} == {DEFAULT_PORT} and len(gateways) == 3


def test_dagsters_processes_find_the_code_server() -> None:
    compose = {container.name: container for container in compose_containers()}
    [server] = read_yaml(DEPLOY / "dagster" / "workspace.yaml")["load_from"]
    assert server["grpc_server"]["port"] == listening_port(compose["compose code"])
    assert server["grpc_server"]["host"] in read_compose()["services"]
    [chart] = read_yaml(HELM_VALUES)["dagsterWebserver"]["workspace"]["servers"]
    [code] = [container for container in chart_containers() if container.name == "helm code"]
    assert (f"helm {chart['host']}", chart["port"]) == (code.name, code.port)
    assert server["grpc_server"]["location_name"] == chart["name"] == "iccm_assets.definitions"


def test_prometheus_and_grafana_find_what_they_read() -> None:
    services = read_compose()["services"]
    [job] = read_yaml(DEPLOY / "prometheus" / "compose.yml")["scrape_configs"]
    targets = {target for config in job["static_configs"] for target in config["targets"]}
    assert targets == {f"{name}:{DEFAULT_PORT}" for name in services if name.startswith("gateway")}
    assert job["authorization"]["credentials_file"] == f"/run/secrets/{services['prometheus']['secrets'][0]}"
    assert read_compose()["secrets"]["gateway-token"]["environment"] == "GATEWAY_TOKEN"
    [source] = read_yaml(DEPLOY / "grafana" / "datasources.yaml")["datasources"]
    host, _, port = source["url"].removeprefix("http://").partition(":")
    assert any(mapping.endswith(f":{port}") for mapping in services[host]["ports"])
    [provider] = read_yaml(DEPLOY / "grafana" / "dashboards.yaml")["providers"]
    mounted = [volume.split(":")[1] for volume in services["grafana"]["volumes"]]
    assert any(target.startswith(f"{provider['options']['path']}/") for target in mounted)
    # One alert file for both, beside the configuration.
    example = read_yaml(DEPLOY / "prometheus" / "prometheus.yml")
    assert read_yaml(DEPLOY / "prometheus" / "compose.yml")["rule_files"] == example["rule_files"]


def test_the_probes_of_the_gateway_are_its_endpoints() -> None:
    documented = (ROOT / "docs" / "reference" / "http-api.md").read_text("utf-8")
    probed = {
        re.sub(r".*127\.0\.0\.1:\d+(/\w+).*", r"\1", probe)
        for container in CONTAINERS
        if container.command[:2] == ("iccm", "serve")
        for probe in container.probes
    }
    assert probed == {"/readyz", "/healthz"} and all(path in documented for path in probed)


# ---- files ---------------------------------------------------------------------------------------


def test_every_mounted_file_exists() -> None:
    sources = [
        volume.split(":")[0]
        for service in read_compose()["services"].values()
        for volume in service.get("volumes", [])
    ]
    files = [source for source in sources if source.startswith(".")]
    assert len(files) >= 7 and [source for source in files if not (DEPLOY / source).is_file()] == []
    assert {source for source in sources if not source.startswith(".")} <= set(read_compose()["volumes"])


def test_the_image_gets_its_files_and_no_others() -> None:
    ignored = [
        line for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines() if not line.startswith("#")
    ]
    kept = {line.removeprefix("!") for line in ignored if line.startswith("!")}
    assert ignored[0] == "*"
    copied = {
        source
        for word, words in dockerfile_instructions()
        if word == "COPY" and "--from" not in words
        for source in words.split()[:-1]
    }
    assert copied == kept and all((ROOT / name).exists() for name in copied)
    assert any(fnmatch.fnmatch("iccm_assets/__pycache__", pattern) for pattern in ignored)


def test_the_image_installs_extras_that_exist_and_runs_as_the_user_of_the_pods() -> None:
    text = DOCKERFILE.read_text("utf-8")
    [extras] = re.findall(r"'\.\[([\w,]+)\]'", text)
    assert set(extras.split(",")) <= set(PROJECT["optional-dependencies"]) - {"dev"}
    [user] = [words for word, words in dockerfile_instructions() if word == "USER"]
    values = read_yaml(HELM_VALUES)
    contexts = [
        *(pod["securityContext"] for _, pod in platform_pods()),
        *(values[name]["podSecurityContext"] for name in ("dagsterWebserver", "dagsterDaemon")),
        values["dagster-user-deployments"]["deployments"][0]["podSecurityContext"],
        values["runLauncher"]["config"]["k8sRunLauncher"]["runK8sConfig"]["podSpecConfig"]["securityContext"],
    ]
    assert len(contexts) == 7
    assert {f"{context['runAsUser']}:{context['runAsGroup']}" for context in contexts} == {user}
    assert all(context["runAsNonRoot"] for context in contexts) and not user.startswith("0")


def test_names_of_releases_agree() -> None:
    assert f"iccm:{PROJECT['version']}" == PLATFORM_IMAGE
    images = re.findall(r"iccm:\d[\w.]*", "".join(path.read_text("utf-8") for path in DEPLOY.rglob("*.yaml")))
    assert set(images) == {PLATFORM_IMAGE} == set(re.findall(r"iccm:\d[\w.]*", DOCKERFILE.read_text("utf-8")))
    values = read_yaml(HELM_VALUES)
    [code] = values["dagster-user-deployments"]["deployments"]
    used = [pod["image"] for pod in (values["dagsterWebserver"], values["dagsterDaemon"], code)]
    assert {f"{image['repository']}:{image['tag']}" for image in used} == {PLATFORM_IMAGE}
    [dagster] = [name for name in PROJECT["dependencies"] if name.startswith("dagster==")]
    [chart] = re.findall(r"--version (\S+)", HELM_VALUES.read_text("utf-8"))
    assert f"dagster=={chart}" == dagster


def test_variables_of_the_compose_file_are_in_the_example_and_no_others() -> None:
    text = (DEPLOY / "compose.yaml").read_text("utf-8")
    example = (DEPLOY / ".env.example").read_text("utf-8")
    used = set(re.findall(r"\$\{(\w+)", text)) | {"GATEWAY_TOKEN"}
    assert used == set(re.findall(r"^(\w+)=", example, re.MULTILINE))
    # One that the platform would read as a setting, if a shell exported it.
    assert not [name for name in used if name.startswith("ICCM_")]


def test_every_directory_of_a_pod_is_a_volume() -> None:
    for name, pod in pod_specs():
        volumes = {volume["name"] for volume in pod.get("volumes", [])}
        mounts = [mount for container in pod["containers"] for mount in container.get("volumeMounts", [])]
        assert volumes == {mount["name"] for mount in mounts}, name
        claims = [volume.get("persistentVolumeClaim", {}).get("claimName") for volume in pod["volumes"]]
        assert set(claims) <= {"iccm-home", None}, name


# ---- limits --------------------------------------------------------------------------------------


def seconds(duration: str) -> float:
    return float(duration.removesuffix("s"))


def test_a_gateway_has_the_time_to_finish_its_requests_and_to_store_what_it_acknowledged() -> None:
    needed = load_settings().gateway.drain_timeout_seconds + FLUSH_TIMEOUT_SECONDS
    assert seconds(read_compose()["services"]["gateway-1"]["stop_grace_period"]) > needed
    [pod] = [pod for name, pod in pod_specs() if name.startswith("gateway.yaml")]
    pause = pod["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod["terminationGracePeriodSeconds"] > needed + pause


def test_only_what_judges_code_has_relaxed_profiles() -> None:
    """And nothing of the platform is privileged, or keeps a capability."""
    services = read_compose()["services"]
    relaxed = {name for name, service in services.items() if "unconfined" in str(service.get("security_opt"))}
    assert relaxed == {"code"}
    for name, service in services.items():
        if service["image"] == PLATFORM_IMAGE:
            assert service["cap_drop"] == ["ALL"], name
            assert "no-new-privileges:true" in service["security_opt"], name
    for name, pod in platform_pods():
        assert pod["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault", name
        assert pod["containers"][0]["securityContext"]["capabilities"] == {"drop": ["ALL"]}, name
        assert pod["enableServiceLinks"] is False and pod["automountServiceAccountToken"] is False
    assert "privileged" not in "".join(path.read_text("utf-8") for path in DEPLOY.rglob("*.yaml"))


def test_dagsters_own_processes_know_dagsters_database_only() -> None:
    for name in ("webserver", "daemon"):
        service = read_compose()["services"][name]
        assert set(service["environment"]) == {"DAGSTER_PG_URL"} and service["env_file"] == []


def test_each_process_connects_as_its_role() -> None:
    roles = {
        container.name: re.findall(r"//(iccm_\w+):", container.variables.get("ICCM_DATABASE_URL", ""))
        for container in CONTAINERS
    }
    assert {name: names[0] for name, names in roles.items() if names} == {
        "compose migrations": "iccm_owner",
        "compose base-model": "iccm_platform",
        "compose code": "iccm_platform",
        "compose gateway-1": "iccm_gateway",
        "compose gateway-2": "iccm_gateway",
        "kubernetes migrations.yaml iccm-migrations": "iccm_owner",
        "kubernetes base-model.yaml iccm-base-model": "iccm_platform",
        "kubernetes gateway.yaml iccm-gateway": "iccm_gateway",
        "helm code": "iccm_platform",
    }


def test_the_autoscaler_and_the_budget_are_about_the_gateways_pods() -> None:
    objects: dict[str, Any] = {document["kind"]: document for name, document in manifest_documents()
                               if name == "gateway.yaml"}  # fmt: skip
    labels = objects["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert objects["Service"]["spec"]["selector"] == labels
    assert objects["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
    target = objects["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
    assert target["name"] == objects["Deployment"]["metadata"]["name"]
    assert "replicas" not in objects["Deployment"]["spec"]
