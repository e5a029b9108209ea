"""docs/how-to/deploy.md and upgrade.md: the commands that they show, and the names in them, exist."""

from __future__ import annotations

import re
import shlex
import sys
from importlib.metadata import entry_points

import pytest

from iccm_assets_tests.factories.deployments import (
    DEPLOY,
    MANIFESTS,
    manifest_documents,
    read_compose,
    read_dotenv,
    read_yaml,
)
from iccm_assets_tests.factories.how_to_pages import HOW_TO
from iccm_assets_tests.factories.processes import ROOT

PAGES = "".join((HOW_TO / name).read_text("utf-8") for name in ("deploy.md", "upgrade.md", "sizing.md"))
_FENCE = re.compile(r"^```\w*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINES = [line for block in _FENCE.findall(PAGES) for line in block.splitlines()]
INLINE = [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", _FENCE.sub("", PAGES))]
OBJECTS = {(document["kind"].lower(), document["metadata"]["name"]) for _, document in manifest_documents()}


def own_commands() -> list[tuple[str, ...]]:
    """The platform's and Dagster's commands, without what runs them in a container and comments."""
    commands = set()
    for line in [*LINES, *INLINE]:
        try:
            words = shlex.split(line, comments=True)
        except ValueError:  # continued on the next line: none of these
            continue
        starts = [index for index, word in enumerate(words) if word in ("iccm", "dagster")]
        is_shell = words[:1] and words[0] in ("iccm", "dagster", "docker", "kubectl")
        if is_shell and starts and "/" not in "".join(words[starts[-1] + 1 :][:1] or "/"):
            commands.add(tuple(words[starts[-1] :]))
    return sorted(commands)


@pytest.mark.parametrize("command", own_commands(), ids=shlex.join)
def test_a_command_of_the_pages_exists_with_its_options(
    command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if command[:3] == ("iccm", "db", "shell"):  # the rest is psql's
        command = command[:3]
    [script] = entry_points(group="console_scripts", name=command[0])
    monkeypatch.setattr(sys, "argv", [*command, "--help"])
    with pytest.raises(SystemExit) as ended:
        script.load()()
    shown = capsys.readouterr()
    assert not ended.value.code and "Usage" in shown.out, shown.err


def test_the_pages_show_commands() -> None:
    names = {" ".join(command[:2]) for command in own_commands()}
    assert names >= {
        "iccm doctor",
        "iccm db",
        "iccm backup",
        "iccm status",
        "iccm deploy",
        "dagster instance",
    }


def test_the_files_of_the_pages_exist() -> None:
    paths = set(re.findall(r"deploy/[\w./-]+\w", " ".join([*LINES, *INLINE]))) - {"deploy/settings.env"}
    assert len(paths) >= 6
    assert sorted(path for path in paths if not (ROOT / path).exists()) == []
    table = re.findall(r"^\| ((?:`[^`]+`,? ?)+)\|", PAGES.partition("## Docker")[0], re.M)
    names = [name for row in table for name in re.findall(r"`([^`]+)`", row)]
    assert len(names) >= 8 and [name for name in names if not (DEPLOY / name).exists()] == []


def test_the_objects_of_the_pages_exist() -> None:
    text = "\n".join(LINES)
    named = re.findall(r"\b(deployment|service|job)/([\w-]+)", text)
    named += [("job", name) for name in " ".join(re.findall(r"kubectl delete job (.*)", text)).split()]
    assert len(named) >= 5 and set(named) <= OBJECTS
    labels = set(re.findall(r"app.kubernetes.io/component=(\S+)", text))
    components = {
        document["metadata"].get("labels", {}).get("app.kubernetes.io/component")
        for _, document in manifest_documents()
    }
    assert labels and labels <= components
    resources = set(read_yaml(MANIFESTS / "kustomization.yaml")["resources"])
    assert {f"{label}.yaml" for label in labels} <= resources


def test_the_services_and_variables_of_the_pages_exist() -> None:
    text = "\n".join(LINES)
    services = read_compose()["services"]
    used = set(" ".join(re.findall(r"docker compose up --no-deps --wait (.*)", text)).split())
    used |= set(re.findall(r"docker compose exec (\S+)", text))
    used |= set(re.findall(r"docker compose run --rm (?:--volume \S+ )?(\S+)", text))
    assert used >= {"code", "migrations", "gateway-1", "gateway-2"} and used <= set(services)
    passwords = set(re.findall(r"\b([A-Z_]+_PASSWORD)=", text))
    assert passwords and passwords <= set(read_dotenv())
    published = {
        mapping.split(":")[1] for service in services.values() for mapping in service.get("ports", [])
    }
    addresses = set(re.findall(r"(?<=:)\d{4}(?=`)", PAGES.partition("## Docker")[2].partition("###")[0]))
    assert addresses and addresses <= published
