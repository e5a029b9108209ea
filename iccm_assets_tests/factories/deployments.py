"""What deploy/ starts: the containers of compose.yaml, of the manifests and of Dagster's chart."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from iccm_assets_tests.factories.processes import ROOT

DEPLOY = ROOT / "deploy"
COMPOSE = DEPLOY / "compose.yaml"
MANIFESTS = DEPLOY / "kubernetes"
HELM_VALUES = DEPLOY / "helm" / "values.yaml"
DOCKERFILE = DEPLOY / "Dockerfile"
PLATFORM_IMAGE = "iccm:0.1.0"
_VARIABLE = re.compile(r"\$\{(\w+)(?::\?)?\}")


@dataclass(frozen=True)
class Container:
    """One container of the platform's image; ``port`` is the one that it is reached at, if any."""

    name: str
    command: tuple[str, ...]
    variables: dict[str, str] = field(default_factory=dict)
    port: int | None = None
    probes: tuple[str, ...] = ()  # URLs or commands, as they stand

    def option(self, name: str) -> str:
        """Return the value of an option of the command."""
        return self.command[self.command.index(name) + 1]


def read_yaml(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def read_documents(path: Path) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all(path.read_text(encoding="utf-8")) if document]


def read_dotenv() -> dict[str, str]:
    """Read the example of the passwords, as compose does."""
    lines = (DEPLOY / ".env.example").read_text(encoding="utf-8").splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def read_compose() -> dict[str, Any]:
    """Read compose.yaml with the variables of the example filled in."""
    values = read_dotenv()

    def fill_in(node: Any) -> Any:
        if isinstance(node, dict):
            return {name: fill_in(value) for name, value in node.items()}
        if isinstance(node, list):
            return [fill_in(value) for value in node]
        return _VARIABLE.sub(lambda match: values[match[1]], node) if isinstance(node, str) else node

    return fill_in(read_yaml(COMPOSE))


def compose_containers() -> Iterator[Container]:
    for name, service in read_compose()["services"].items():
        if service["image"] == PLATFORM_IMAGE:
            check = service.get("healthcheck", {}).get("test", [])
            ports = [int(port.rpartition(":")[2]) for port in service.get("ports", [])]
            yield Container(
                f"compose {name}",
                tuple(service["command"]),
                service["environment"],
                ports[0] if ports else None,
                (shlex.join(check[1:]),) if check else (),
            )


def manifest_documents() -> list[tuple[str, dict[str, Any]]]:
    """Return the objects of all manifests, with the names of their files."""
    files = sorted(path for path in MANIFESTS.glob("*.yaml") if path.name != "kustomization.yaml")
    return [(path.name, document) for path in files for document in read_documents(path)]


def pod_specs() -> Iterator[tuple[str, dict[str, Any]]]:
    for name, document in manifest_documents():
        if "template" in document.get("spec", {}):
            yield f"{name} {document['metadata']['name']}", document["spec"]["template"]["spec"]


def platform_pods() -> list[tuple[str, dict[str, Any]]]:
    return [(name, pod) for name, pod in pod_specs() if pod["containers"][0]["image"] == PLATFORM_IMAGE]


def find_manifest(kind: str, name: str) -> dict[str, Any]:
    [document] = [
        document
        for _, document in manifest_documents()
        if document["kind"] == kind and document["metadata"]["name"] == name
    ]
    return document


def resolve_variables(container: dict[str, Any]) -> dict[str, str]:
    """Return the environment of a container of a manifest, from its config maps and secrets."""
    variables: dict[str, str] = {}
    for source in container.get("envFrom", ()):
        if "configMapRef" in source:
            variables |= find_manifest("ConfigMap", source["configMapRef"]["name"])["data"]
        else:
            variables |= find_manifest("Secret", source["secretRef"]["name"])["stringData"]
    return variables


def manifest_containers() -> Iterator[Container]:
    for name, pod in pod_specs():
        for container in pod["containers"]:
            if container["image"] == PLATFORM_IMAGE:
                [port] = [port["containerPort"] for port in container.get("ports", ())] or [None]
                probes = (container.get(f"{kind}Probe") for kind in ("startup", "readiness", "liveness"))
                yield Container(
                    f"kubernetes {name}",
                    tuple(container["command"]),
                    resolve_variables(container),
                    port,
                    tuple(probe["httpGet"]["path"] for probe in probes if probe),
                )


def chart_containers() -> Iterator[Container]:
    """What Dagster's chart starts with the values, as its templates do (release 1.13)."""
    values = read_yaml(HELM_VALUES)
    [code] = values["dagster-user-deployments"]["deployments"]
    environment = {
        "envFrom": [
            *({"configMapRef": source} for source in code["envConfigMaps"]),
            *({"secretRef": source} for source in code["envSecrets"]),
        ]
    }
    listening = ("-h", "0.0.0.0", "-p", str(code["port"]))
    yield Container(
        "helm code",
        ("dagster", "api", "grpc", *listening, *code["dagsterApiGrpcArgs"]),
        resolve_variables(environment),
        code["port"],
        (shlex.join(("dagster", "api", "grpc-health-check", "-p", str(code["port"]))),),
    )
    web = values["dagsterWebserver"]
    probe = web["readinessProbe"]["httpGet"]
    yield Container(
        "helm webserver",
        ("dagster-webserver", "-h", "0.0.0.0", "-p", str(web["service"]["port"]), "-w", "workspace.yaml"),
        {},
        web["service"]["port"],
        (f"http://127.0.0.1:{probe['port']}{probe['path']}",),
    )
    yield Container("helm daemon", ("dagster-daemon", "run", "-w", "workspace.yaml"), {}, None, ())


def all_containers() -> list[Container]:
    return [*compose_containers(), *manifest_containers(), *chart_containers()]


def dockerfile_instructions() -> list[tuple[str, str]]:
    """Return the instructions of the Dockerfile with their arguments, continued lines joined."""
    lines = [
        line
        for line in DOCKERFILE.read_text(encoding="utf-8").splitlines()
        if not line.lstrip().startswith("#")
    ]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [
        (word, rest.strip())
        for word, _, rest in (line.partition(" ") for line in joined.splitlines() if line)
    ]
