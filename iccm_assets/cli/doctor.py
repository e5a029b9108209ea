"""`iccm doctor`: try what the platform will use, name the fix for what is missing.

Starts no server and changes nothing; needs no network but for `ICCM_STORAGE`, where it writes a small object
and deletes it again.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib.util import find_spec
from typing import TYPE_CHECKING

import typer
from rich.markup import escape

from iccm_assets.cli import machine_checks
from iccm_assets.cli.console import AsJson, echo_json, out, pluralize, print_line
from iccm_assets.cli.machine_checks import SystemCheck
from iccm_assets.errors import DatabaseError, IccmError, ModelNotFoundError, SettingsError, first_line
from iccm_assets.object_storage import ObjectStorage
from iccm_assets.settings import Settings, load_settings

if TYPE_CHECKING:
    from sqlalchemy import Connection

PROGRAM_TIMEOUT_SECONDS = 20
_PUBLISHED = {"full": "whole models", "lora": "adapters"}


def doctor(as_json: AsJson = False) -> None:
    """Check this machine; exits 1 if something required is missing."""
    # The checks work without a network: the model hub is not queried.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    checks = []
    for check in run_checks():
        checks.append(check)
        if not as_json:
            print_line(_format(check))
    missing = [check for check in checks if check.required and not check.ok]
    if as_json:
        echo_json({"ok": not missing, "checks": [asdict(check) for check in checks]})
    else:
        problems = pluralize(len(missing), "requirement is", "requirements are")
        out.print(f"\n{problems} missing." if missing else "\nThis machine is ready.")
    if missing:
        raise typer.Exit(1)


def run_checks() -> Iterator[SystemCheck]:
    """Run every check in order; a check that fails to run is a missing requirement, never an exception."""
    yield machine_checks.check_python()
    try:
        settings = load_settings()
    except IccmError as error:
        yield SystemCheck(
            "settings", False, True, error.detail, error.hint or "Unset or correct the variable."
        )
        return
    yield SystemCheck("settings", True, True, f"profile {settings.profile}")
    yield check_database(settings)
    yield from machine_checks.check_sandbox(settings)
    yield machine_checks.check_disk(settings.home)
    if settings.storage:
        yield _run_check("storage", lambda settings: ObjectStorage(settings.storage).check(), settings)
    yield machine_checks.check_port(machine_checks.UI_PORT)
    yield _run_check("base model", _describe_base_model, settings)
    yield from check_production(settings)
    yield _run_check("embedder", _describe_embedder, settings)
    yield from check_canary_set(settings)
    yield check_rehearsal(settings)
    fix = "Correct ICCM_ORCHESTRA or ICCM_ORCHESTRA_QUORUM."
    yield _run_check("orchestra", _describe_orchestra, settings, fix)
    yield from check_real_traffic(settings)
    yield from check_trackers(settings)
    yield from check_processes(settings)
    if settings.compute == "ray":
        yield from check_cluster(settings)
    yield machine_checks.check_browser()


def check_database(settings: Settings) -> SystemCheck:
    """Check the server at ``ICCM_DATABASE_URL``, or the programs of the embedded one."""
    describe = _describe_embedded if settings.database_url is None else _describe_server
    return _run_check("postgresql", describe, settings)


def check_production(settings: Settings) -> Iterator[SystemCheck]:
    """Load the version in production, or ask its model server, and compare its base.

    Yields nothing where the database does not run.
    """
    from iccm_assets.gateway.backends import make_model_loader
    from iccm_assets.gateway.routing import ModelLocation
    from iccm_assets.models.model_probe import probe_model
    from iccm_assets.registry.base_difference import find_base_difference
    from iccm_assets.registry.model_store import fetch_model
    from iccm_assets.registry.versions import get_production_version

    with _running_database(settings) as conn:
        production = get_production_version(conn) if conn else None
        difference = find_base_difference(conn, settings) if conn else None
    if production is None:
        return

    def describe(settings: Settings) -> str:
        if settings.gateway.backend == "openai":
            location = ModelLocation(production.version, production.path, production.digest)
            make_model_loader(settings)(location).close()
            return f"{production.version} answers on its model server"
        probe_model(fetch_model(production.path, settings), settings)
        return f"{production.version} loads and answers"

    fix = "Correct ICCM_GATEWAY__OPENAI_URLS or start the server."
    if settings.gateway.backend != "openai":
        fix = (
            "Replace it: `iccm evaluate DIR`, then `iccm deploy VERSION --force --skip-rollout --reason '…'`."
        )
    check = _run_check("production model", describe, settings)
    yield SystemCheck(check.name, check.ok, True, check.detail, "" if check.ok else f"{check.fix} {fix}")
    if difference is not None:
        yield SystemCheck("production base", False, False, difference.detail, difference.fix)


def check_canary_set(settings: Settings) -> Iterator[SystemCheck]:
    """Read the canary set, and name the rules of the gate that cannot decide with it."""
    from iccm_assets.curation.canary_set import load_canary_set
    from iccm_assets.evaluation.canary_limits import find_canary_limits

    limits: list[str] = []

    def describe(settings: Settings) -> str:
        canary_set = load_canary_set(settings.canary_set)
        limits.extend(find_canary_limits(canary_set, settings.evaluation))
        items, slices = pluralize(len(canary_set.items), "item"), pluralize(len(canary_set.slices), "slice")
        return f"{items} in {slices}, {canary_set.digest}"

    yield _run_check("canary set", describe, settings, "Correct ICCM_CANARY_SET or the file.")
    for limit in limits:
        fix = "Add items to the canary set, or suites with `expect` to its items."
        yield SystemCheck("canary set", False, False, limit, fix)


def check_rehearsal(settings: Settings) -> SystemCheck:
    """Read the rehearsal sample; a missing one is a warning, since forgetting is measured anyway."""
    from iccm_assets.training.dataset import load_rehearsal

    if not settings.rehearsal and settings.training.rehearsal_fraction > 0:
        detail = "no rehearsal sample: forgetting is measured, but not prevented"
        fix = "Set ICCM_REHEARSAL to a sample of what the base model was trained on (JSON lines)."
        return SystemCheck("rehearsal", False, False, detail, fix)
    return _run_check(
        "rehearsal", lambda settings: f"{len(load_rehearsal(settings.rehearsal))} examples", settings
    )


def check_real_traffic(settings: Settings) -> Iterator[SystemCheck]:
    """Report real conversations that `builtin` cannot score; nothing where the database does not run."""
    from iccm_assets.reporting.real_traffic import find_builtin_notice

    with _running_database(settings) as conn:
        notice = find_builtin_notice(conn, settings.orchestra) if conn else None
    if notice is not None:
        fix = "Set ICCM_ORCHESTRA to chat endpoints: openai:URL#model, … (docs/how-to/orchestra.md)."
        yield SystemCheck("real traffic", False, False, notice, fix)


def check_trackers(settings: Settings) -> Iterator[SystemCheck]:
    """Check that the experiment trackers and MLflow's client are installed; sends no request."""
    from iccm_assets.registry.mlflow_registry import EXPERIMENT, check_client

    for tracker in settings.training.trackers:
        if tracker == "mlflow":
            yield _run_check("tracker mlflow", lambda _: check_client(EXPERIMENT), settings)
        else:
            installed = find_spec(tracker) is not None
            fix = "" if installed else f"`pip install {tracker}`, or remove it from ICCM_TRAINING__REPORT_TO."
            detail = "installed" if installed else "not installed"
            yield SystemCheck(f"tracker {tracker}", installed, True, detail, fix)
    if settings.mlflow_model:
        yield _run_check("MLflow model", lambda settings: check_client(settings.mlflow_model), settings)


def check_processes(settings: Settings) -> Iterator[SystemCheck]:
    """Read the configuration of several training processes, and count the GPUs where trainings run."""
    from iccm_assets.training.accelerate_config import load_accelerate_config

    def describe(settings: Settings) -> str:
        config = load_accelerate_config(settings.training)
        assert config is not None
        where = "on CPUs" if config.use_cpu else "on a GPU each"
        reserved = settings.ray.num_gpus
        if settings.compute == "ray" and not config.use_cpu and reserved < config.num_processes:
            raise SettingsError(
                f"{config.num_processes} processes need a GPU each, and a job reserves {reserved:g}",
                hint=f"Set ICCM_RAY__NUM_GPUS={config.num_processes}.",
            )
        if settings.compute == "local" and not config.use_cpu:
            from iccm_assets.training.process_group import require_gpus

            require_gpus(config)
        return f"{config.num_processes} processes, {config.distributed_type}, {where}"

    if settings.training.accelerate_config:
        yield _run_check("training processes", describe, settings)


@contextmanager
def _running_database(settings: Settings) -> Iterator[Connection | None]:
    """Connect to the database; None if it does not run, has no schema or lets this role not read it.

    The check `postgresql` reports these.
    """
    from sqlalchemy.exc import SQLAlchemyError

    from iccm_assets.db.database import create_engine_for, current_revision
    from iccm_assets.db.embedded.embedded_server import EmbeddedServer
    from iccm_assets.db.roles import find_missing_grants

    engine = None
    try:
        url = settings.database_url or EmbeddedServer(settings.home).running_url()
        engine = create_engine_for(url) if url else None
        connection = engine.connect() if engine is not None and current_revision(engine) else None
        if connection is not None and find_missing_grants(connection):
            connection.close()
            connection = None
    except (IccmError, SQLAlchemyError):
        connection = None
    try:
        yield connection
    finally:
        if connection is not None:
            connection.close()
        if engine is not None:
            engine.dispose()


def _run_check(
    name: str, describe: Callable[[Settings], str], settings: Settings, fix: str = ""
) -> SystemCheck:
    try:
        return SystemCheck(name, True, True, describe(settings))
    except IccmError as error:
        return SystemCheck(name, False, True, error.detail, error.hint or fix)
    except Exception as error:
        # Any error of a library is a result of the check: the command itself must not fail.
        return SystemCheck(name, False, True, first_line(error), "Reinstall the package (`make install`).")


def _describe_embedded(_: Settings) -> str:
    from iccm_assets.db.embedded.binaries import postgres_home

    command = [str(postgres_home() / "bin" / "postgres"), "--version"]
    result = subprocess.run(
        command, capture_output=True, text=True, timeout=PROGRAM_TIMEOUT_SECONDS, check=True
    )
    return f"embedded, {result.stdout.strip()}"


def _describe_server(settings: Settings) -> str:
    from sqlalchemy import text

    from iccm_assets.db.database import (
        MIN_SERVER_VERSION,
        create_engine_for,
        current_revision,
        database_url,
        find_missing_server_rights,
    )

    engine = create_engine_for(database_url(settings))
    try:
        revision = current_revision(engine)
        with engine.connect() as conn:
            version = int(conn.execute(text("show server_version_num")).scalar_one()) // 10_000
            vector = conn.execute(
                text("select from pg_available_extensions where name = 'vector'")
            ).one_or_none()
    finally:
        engine.dispose()
    if version < MIN_SERVER_VERSION:
        raise DatabaseError(f"version {version}", hint=f"Use PostgreSQL {MIN_SERVER_VERSION} or newer.")
    if vector is None:
        raise DatabaseError("no pgvector", hint=f"Install postgresql-{version}-pgvector on the server.")
    if missing := find_missing_server_rights(settings):
        details = "; ".join(right.detail for right in missing)
        raise DatabaseError(details, hint=" ".join(right.fix for right in missing))
    return f"version {version} with pgvector, schema revision {revision or 'none yet'}"


def check_cluster(settings: Settings) -> Iterator[SystemCheck]:
    """Run `iccm doctor` as a job on a node of the Ray cluster; what it requires and lacks is missing here."""
    from iccm_assets.defs.ray_workers import run_doctor

    problems: list[SystemCheck] = []

    def describe(settings: Settings) -> str:
        job, node, report = run_doctor(settings)
        for check in report["checks"]:
            if check["required"] and not check["ok"]:
                problems.append(SystemCheck(**{**check, "name": f"node: {check['name']}"}))
        return f"{settings.ray.address}, node {node[:8]} ran job {job} with {len(report['checks'])} checks"

    yield _run_check("ray cluster", describe, settings, "Correct ICCM_RAY__ADDRESS, or start the cluster.")
    yield from problems


def _describe_base_model(settings: Settings) -> str:
    from iccm_assets.models.model_probe import probe_model
    from iccm_assets.registry import hub
    from iccm_assets.training.training_method import require_kind, resolve_method

    name = settings.base_model
    try:
        directory = hub.resolve(name)
    except ModelNotFoundError:
        if hub.is_local_path(name):
            raise
        fix = f"With a network: `hf download {name}`; without: set ICCM_BASE_MODEL to a directory."
        raise ModelNotFoundError(f"{name} is not in the Hugging Face cache", hint=fix) from None
    model = probe_model(directory, settings)
    require_kind(settings.training, seq2seq=model.kind == "seq2seq")
    method = resolve_method(settings.training, model.parameters).method
    facts = f"{model.kind}, {model.parameters:,} parameters, {model.tokens} tokens"
    return f"{directory} answers ({facts}); training publishes {_PUBLISHED[method]}"


def _describe_embedder(settings: Settings) -> str:
    from iccm_assets.models.embedding import Embedder

    embedder = Embedder.load(settings)
    [vector] = embedder.encode(["def add(a, b):"])
    return f"{embedder.path}, {embedder.digest[:12]}, {len(vector)} dimensions"


def _describe_orchestra(settings: Settings) -> str:
    """List the members; sends no request to endpoints, because requests cost money."""
    from iccm_assets.scoring.orchestra import load_orchestra_from_settings

    orchestra = load_orchestra_from_settings(settings)
    advice = "; `iccm orchestra check` tries the endpoints" if "openai:" in settings.orchestra else ""
    return f"{', '.join(member.name for member in orchestra.members)}; quorum {orchestra.quorum}{advice}"


def _format(check: SystemCheck) -> str:
    mark = "[green]ok     [/]" if check.ok else "[red]missing[/]" if check.required else "[yellow]warning[/]"
    fix = f"\n        fix: {check.fix}" if check.fix else ""
    return mark + escape(f" {check.name}: {check.detail}{fix}")
