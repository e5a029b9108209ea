"""Roles of PostgreSQL: each process can do its work, and is refused what is another's (S1)."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pytest
import sqlalchemy as sa

from iccm_assets.cli import doctor
from iccm_assets.cli.machine_checks import SystemCheck
from iccm_assets.db import tables as t
from iccm_assets.db.database import connect, dagster_url, head_revision, upgrade
from iccm_assets.db.roles import GATEWAY, PLATFORM, READ_ONLY
from iccm_assets.errors import DatabaseError
from iccm_assets.gateway.tokens import create_token
from iccm_assets.governance.physical_erasure import _autocommit, _vacuum
from iccm_assets.models import model_probe
from iccm_assets.registry import model_store
from iccm_assets.settings import Settings, load_settings
from iccm_assets_tests.factories import gateways
from iccm_assets_tests.factories.external_servers import ExternalServer, external_server

REFUSED = "permission denied|must be owner|read-only transaction"


@pytest.fixture(scope="module")
def server() -> Iterator[ExternalServer]:
    with external_server() as started:
        owner = started.engine("owner")
        assert upgrade(owner) == (None, head_revision())
        gateways.two_versions(owner)
        owner.dispose()
        yield started


def run(server: ExternalServer, role: str, *statements: str) -> None:
    """Run statements as a role, and undo them."""
    engine = server.engine(role)
    try:
        with engine.connect() as conn:
            for statement in statements:
                conn.execute(sa.text(statement))
            conn.rollback()
    finally:
        engine.dispose()


def settings_for(server: ExternalServer, role: str, home: Path) -> Settings:
    return load_settings(
        home=home,
        database_url=server.url(role),
        dagster_database_url=server.url("platform", "iccm_dagster"),
    )


def test_the_script_can_run_again(server: ExternalServer) -> None:
    assert "ERROR" not in server.run_roles_script()


@pytest.mark.parametrize("role", ["platform", "gateway"])
def test_a_process_connects_to_a_migrated_schema_without_the_right_to_change_it(
    server: ExternalServer, role: str, tmp_path: Path
) -> None:
    connect(settings_for(server, role, tmp_path)).dispose()


@pytest.mark.parametrize("role", ["platform", "gateway", "read_only"])
@pytest.mark.parametrize(
    "statement",
    [
        *("create table iccm.own ()", "create schema own", "drop table iccm.requests"),
        *("alter table iccm.requests add own text", "truncate iccm.requests", "create extension plpython3u"),
        *("update iccm.alembic_version set version_num = '0001'", "create table public.own ()"),
        *("create role own", "select pg_read_file('/etc/passwd')", "copy iccm.requests to program 'cat'"),
    ],
)
def test_only_the_owner_changes_the_schema(server: ExternalServer, role: str, statement: str) -> None:
    with pytest.raises(sa.exc.DBAPIError, match=f"{REFUSED}|not available|extension"):
        run(server, role, statement)


@pytest.mark.parametrize(
    "statement",
    [
        "delete from iccm.phase4_training_runs",
        "insert into iccm.phase4_training_runs (trigger) values ('manual')",
        "update iccm.model_versions set status = 'retired'",
        "update iccm.rollouts set weight = 1",
        "insert into iccm.deployment_events (event_type) values ('promoted')",
        "delete from iccm.conversations",
        "delete from iccm.requests",
        "select * from iccm.phase4_training_data",
        "select * from iccm.gate_verdicts",
        "select * from iccm.erasures",
        "insert into iccm.gateway_tokens (name, hash, scopes) values ('n', repeat('a', 64), '{admin}')",
        "update iccm.gateway_tokens set scopes = '{admin}'",
        "delete from iccm.gateway_tokens",
        "delete from iccm.alerts",
        "update iccm.platform set value = '{}'",
    ],
)
def test_the_gateway_is_refused_what_only_the_platform_does(server: ExternalServer, statement: str) -> None:
    with pytest.raises(sa.exc.DBAPIError, match="permission denied"):
        run(server, "gateway", statement)


@pytest.mark.parametrize(
    "statement",
    [
        *(
            "delete from iccm.requests",
            "insert into iccm.alerts (key, severity, title) values ('k', 'info', 't')",
        ),
        *("select hash from iccm.gateway_tokens", "select * from iccm.gateway_tokens"),
    ],
)
def test_the_reader_is_refused_writes_and_the_hashes_of_tokens(
    server: ExternalServer, statement: str
) -> None:
    with pytest.raises(sa.exc.DBAPIError, match=REFUSED):
        run(server, "read_only", statement)


def test_the_reader_reads_every_table_and_the_names_of_tokens(server: ExternalServer) -> None:
    tables = [name for name in t.metadata.tables if name != "iccm.gateway_tokens"]
    assert len(tables) > 25
    run(server, "read_only", "select name, scopes from iccm.gateway_tokens", *(
        f"select * from {name} limit 1" for name in tables
    ))  # fmt: skip


@pytest.mark.parametrize("role", ["gateway", "read_only"])
def test_dagsters_database_is_the_platforms_alone(server: ExternalServer, role: str) -> None:
    engine = server.engine(role, "iccm_dagster")
    with pytest.raises(sa.exc.OperationalError, match="permission denied"):
        engine.connect()
    engine.dispose()


def test_the_platform_reads_and_writes_every_table_and_owns_dagsters_database(
    server: ExternalServer, tmp_path: Path
) -> None:
    settings = settings_for(server, "platform", tmp_path)
    assert "iccm_dagster" in dagster_url(settings)
    rights = ("select", "insert", "update", "delete")
    engine = server.engine("platform")
    with engine.connect() as conn:
        for name, right in product(t.metadata.tables, rights):
            may = conn.execute(sa.text(f"select has_table_privilege('{name}', '{right}')")).scalar_one()
            assert may, (name, right)
    engine.dispose()
    alert = "insert into iccm.alerts (key, severity, title) values ('k', 'info', 't')"
    run(server, "platform", alert, "select nextval(pg_get_serial_sequence('iccm.conversations', 'id'))")
    engine = server.engine("platform", "iccm_dagster")
    with engine.begin() as conn:
        conn.execute(sa.text("create table dagsters_own ()"))
        conn.execute(sa.text("drop table dagsters_own"))
    engine.dispose()


def test_the_platform_may_erase_from_the_files_of_tables(server: ExternalServer) -> None:
    engine = server.engine("platform")
    with _autocommit(engine) as conn:
        _vacuum(conn, True, statistics=False)
    engine.dispose()


def test_a_role_that_may_not_vacuum_learns_it_instead_of_a_warning_of_the_server(
    server: ExternalServer,
) -> None:
    """PostgreSQL skips such a table with a warning: an erasure would be taken for finished."""
    engine = server.engine("gateway")
    with (
        pytest.raises(DatabaseError, match=r"may not vacuum canary_results, conversations.*owns the schema"),
        _autocommit(engine) as conn,
    ):
        _vacuum(conn, False, statistics=False)
    engine.dispose()


def test_a_gateway_of_its_role_serves_and_stores(server: ExternalServer, tmp_path: Path) -> None:
    platform = server.engine("platform")
    token = create_token(platform, "client", ["requirements", "conversations", "feedback", "metrics"])
    with gateways.gateway(server.url("gateway"), tmp_path, ready=True) as running:
        running.client.headers["Authorization"] = f"Bearer {token}"
        answer = running.request("s-1", request_id="r-1", user_id="u").json()
        assert answer["model_version"] == "v1"
        conversation = {
            "session_id": "s-1",
            "user_id": "u",
            "messages": [{"role": "user", "content": gateways.SOURCE}],
            "requirements": "1. The function `add` MUST return the sum.",
            "tests": gateways.SUITE,
        }
        for _ in range(2):  # the second replaces the first, its requirements and their reconstructions
            gateways.eventually(
                lambda: running.client.post("/v1/conversations", json=conversation).status_code in (200, 201)
            )
        rating = {"session_id": "s-1", "user_id": "u", "rating": 1}
        assert running.client.post("/v1/feedback", json=rating).status_code < 300
        gateways.eventually(lambda: gateways.rows(platform, "select 1 from iccm.feedback"))
        uses = "select 1 from iccm.gateway_tokens where use_count >= 4"
        gateways.eventually(lambda: gateways.rows(platform, uses))
        metrics = running.client.get("/metrics").text
        gateways.eventually(lambda: "iccm_database_metrics_up 1.0" in running.client.get("/metrics").text)
        assert "iccm_gateway_dead_letters_total 0.0" in metrics
    assert gateways.stored(platform) == {"r-1"}
    platform.dispose()


def doctor_checks(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> dict[str, SystemCheck]:
    """What `iccm doctor` finds out from the database, as the role of the settings."""
    monkeypatch.setattr(model_probe, "probe_model", lambda directory, settings: None)
    monkeypatch.setattr(model_store, "fetch_model", lambda path, settings: Path(path))
    checks = [
        doctor.check_database(settings),
        *doctor.check_production(settings),
        *doctor.check_real_traffic(settings),
    ]
    return {check.name: check for check in checks}


@pytest.mark.parametrize("role", ["owner", "platform", "gateway"])
def test_doctor_is_content_with_the_role_that_a_process_has(
    role: str, server: ExternalServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = load_settings(home=tmp_path, database_url=server.url(role))
    if role != "gateway":  # which does not know of Dagster
        settings = settings_for(server, role, tmp_path)
    checks = doctor_checks(settings, monkeypatch)
    assert checks["postgresql"].ok, checks["postgresql"]
    assert f"schema revision {head_revision()}" in checks["postgresql"].detail
    assert checks["production model"].ok, checks["production model"]


def test_doctor_names_the_rights_that_a_role_lacks_and_who_grants_them(
    server: ExternalServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = server.engine("owner")
    with owner.begin() as conn:
        conn.execute(sa.text(f"revoke delete on iccm.feedback from {PLATFORM}, {GATEWAY}"))
        conn.execute(sa.text(f"revoke update on iccm.alerts from {PLATFORM}"))
        conn.execute(sa.text(f"revoke all on iccm.gateway_tokens, iccm.model_versions from {GATEWAY}"))
    try:
        for role, lacking in (
            ("platform", "alerts (update), feedback (delete)"),
            ("gateway", "feedback (delete), gateway_tokens (select, update), model_versions (select)"),
            ("read_only", "(insert, update, delete)"),
        ):
            settings = settings_for(server, role, tmp_path)
            check = doctor_checks(settings, monkeypatch)["postgresql"]
            assert not check.ok and f"iccm_{role} lacks rights" in check.detail and lacking in check.detail
            assert "`iccm db upgrade` with the role that owns the schema" in check.fix
        # As if the roles were made after the last upgrade: nothing was granted yet.
        with owner.begin() as conn:
            conn.execute(sa.text(f"revoke usage on schema iccm from {PLATFORM}"))
        check = doctor_checks(settings_for(server, "platform", tmp_path), monkeypatch)["postgresql"]
        assert not check.ok and "permission denied for schema iccm" in check.detail
        assert "`iccm db upgrade` with the role that owns the schema" in check.fix
    finally:
        upgrade(owner)
        owner.dispose()


def test_an_old_schema_tells_a_process_without_rights_who_upgrades_it(
    server: ExternalServer, tmp_path: Path
) -> None:
    owner = server.engine("owner")
    with owner.begin() as conn:
        conn.execute(sa.text("update iccm.alembic_version set version_num = '0018'"))
    try:
        with pytest.raises(DatabaseError, match="`iccm db upgrade` with the role that owns the schema"):
            connect(settings_for(server, "gateway", tmp_path))
    finally:
        with owner.begin() as conn:
            conn.execute(
                sa.text("update iccm.alembic_version set version_num = :head"), {"head": head_revision()}
            )
        owner.dispose()


def test_an_upgrade_takes_back_what_a_role_has_too_much(server: ExternalServer) -> None:
    owner = server.engine("owner")
    with owner.begin() as conn:
        for name in (PLATFORM, GATEWAY, READ_ONLY):
            conn.execute(sa.text(f"grant all on iccm.phase4_training_runs to {name}"))
    upgrade(owner)
    owner.dispose()
    for role in ("gateway", "read_only"):
        with pytest.raises(sa.exc.DBAPIError, match=REFUSED):
            run(server, role, "delete from iccm.phase4_training_runs")
