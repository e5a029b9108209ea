"""The migrations and the table definitions agree, and upgrades and downgrades work."""

from __future__ import annotations

import threading

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from iccm_assets.db.database import (
    MIGRATIONS,
    create_engine_for,
    current_revision,
    head_revision,
    upgrade,
)
from iccm_assets.db.tables import metadata
from iccm_assets.errors import DatabaseError

_CATALOG = {
    "columns": """
        select table_name, column_name, ordinal_position, data_type, udt_name, is_nullable, column_default,
               is_identity
        from information_schema.columns where table_schema = 'iccm' and table_name <> 'alembic_version'
        order by table_name, ordinal_position
    """,
    "constraints": """
        select conrelid::regclass::text, conname, pg_get_constraintdef(oid) from pg_constraint
        where connamespace = 'iccm'::regnamespace and contype <> 'n' and conname not like 'alembic%'
        order by 1, 2
    """,
    "indexes": """
        select tablename, indexname, indexdef from pg_indexes
        where schemaname = 'iccm' and tablename <> 'alembic_version' order by 1, 2
    """,
    "comments": """
        select relname, obj_description(oid) from pg_class
        where relnamespace = 'iccm'::regnamespace and relkind = 'r' and relname <> 'alembic_version'
        order by 1
    """,
}
# Only the migrations create these.
_ROUTINES = {
    "functions": """
        select proname, pg_get_functiondef(oid), obj_description(oid) from pg_proc
        where pronamespace = 'iccm'::regnamespace order by 1
    """,
    "triggers": """
        select tgrelid::regclass::text, tgname, pg_get_triggerdef(oid) from pg_trigger
        where not tgisinternal and tgrelid::regclass::text like 'iccm.%' order by 1, 2
    """,
}


def catalog(engine: sa.Engine, queries: dict[str, str] = _CATALOG) -> dict[str, list[tuple]]:
    with engine.connect() as conn:
        return {name: [tuple(row) for row in conn.execute(sa.text(sql))] for name, sql in queries.items()}


def config_for(conn: sa.Connection) -> Config:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.attributes["connection"] = conn
    return config


def test_alembic_sees_no_difference_between_migrations_and_tables(engine):
    with engine.connect() as conn:
        options = {
            "include_schemas": True,
            "version_table_schema": "iccm",
            "compare_type": True,
            "compare_server_default": True,
            "include_name": lambda name, kind, parents: kind != "schema" or name == "iccm",
        }
        assert compare_metadata(MigrationContext.configure(conn, opts=options), metadata) == []


def test_the_migrated_catalog_equals_the_catalog_of_the_tables(engine, new_database):
    """Includes checks, defaults and partial indexes, which Alembic does not compare."""
    other = create_engine_for(new_database(empty=True))
    with other.begin() as conn:
        conn.execute(sa.text("create extension vector"))
        conn.execute(sa.text("create schema iccm"))
        conn.execute(
            sa.text("create function iccm.now() returns timestamptz language sql stable as 'select now()'")
        )
        metadata.create_all(conn)
    expected, migrated = catalog(other), catalog(engine)
    other.dispose()
    for name, rows in expected.items():
        assert migrated[name] == rows


def test_the_head_revision_from_file_names_equals_alembics():
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    assert ScriptDirectory.from_config(config).get_heads() == [head_revision()]


def test_up_down_up_leaves_the_same_schema(engine):
    before = catalog(engine, _CATALOG | _ROUTINES)
    with engine.begin() as conn:
        command.downgrade(config_for(conn), "base")
    assert current_revision(engine) is None
    assert [rows for rows in catalog(engine, _CATALOG | _ROUTINES).values() if rows] == []
    assert upgrade(engine) == (None, head_revision())
    assert catalog(engine, _CATALOG | _ROUTINES) == before


def test_absolute_paths_of_the_store_become_relative_and_others_stay(new_database):
    old = create_engine_for(new_database(empty=True))
    paths = {
        "v1": "/gone/home/models/d1",
        "v2": "/gone/my/models/d2",
        "v3": "/elsewhere/d3",
        "v4": "/models/d1",
    }
    with old.begin() as conn:
        command.upgrade(config_for(conn), "0011")
        for name, path in paths.items():
            conn.execute(
                sa.text(
                    "insert into iccm.model_versions (version, status, digest, path)"
                    " values (:v, 'retired', :d, :p)"
                ),
                {"v": name, "d": f"d{name[1]}", "p": path},
            )
        conn.execute(
            sa.text(
                "insert into iccm.rollback_events (from_version, to_version, reason, new_model_path)"
                " values ('v1', 'v2', 'manual', '/gone/home/models/d1')"
            )
        )
    upgrade(old)
    with old.connect() as conn:
        stored = conn.execute(sa.text("select version, path from iccm.model_versions")).all()
        [rolled_back] = conn.execute(sa.text("select new_model_path from iccm.rollback_events")).scalars()
    old.dispose()
    # The name of a directory in the store is the digest: /models/d1 is not that of v4.
    assert dict(map(tuple, stored)) == {**paths, "v1": "models/d1", "v2": "models/d2"}
    assert rolled_back == "models/d1"


def test_an_upgrade_from_0007_keeps_the_rows_and_gives_the_schema_of_a_new_database(engine, new_database):
    old = create_engine_for(new_database(empty=True))
    with old.begin() as conn:
        command.upgrade(config_for(conn), "0007")
        for statement in _ROWS_OF_0007.split(";"):
            conn.execute(sa.text(statement))
    assert upgrade(old) == ("0007", head_revision())
    assert catalog(old, _CATALOG | _ROUTINES) == catalog(engine, _CATALOG | _ROUTINES)
    with old.connect() as conn:
        row = conn.execute(
            sa.text(
                """
                select s.exclusion_reason, q.stored_xid, d.rebuilt_at = 'epoch', a.last_attempt_at = 'epoch',
                    e.physically_erased_at = 'epoch', e.physical_erasure, e.hashed_names
                from iccm.rollout_samples s, iccm.requests q, iccm.pool_days d, iccm.alert_deliveries a,
                    iccm.erasures e
                """
            )
        ).one()
        labels = conn.execute(
            sa.text(
                """
                select r.test_suite_origin, r.evidence, x.evidence, f.evidence, f.test_suite_origin
                from iccm.requirements r
                    left join iccm.reconstructions x on x.requirement_id = r.id
                    left join iccm.filtered_conversations f on f.conversation_id = r.conversation_id
                order by r.id
                """
            )
        ).all()
    old.dispose()
    assert row == ("both_arms", 7, True, True, True, {"files": 3}, {"sessions": ["erased:h"]})
    assert labels == [
        ("attached", {"kind": "pytest"}, "pytest", "pytest", "attached"),
        ("attached", {"kind": "cases", "reason": "no quorum"}, None, None, None),
        ("attached", None, None, None, None),
        (None, None, None, None, None),
    ]


_ROWS_OF_0007 = """
    insert into iccm.model_versions (version, status, digest, path)
        values ('v1', 'production', 'd1', 'p1'), ('v2', 'canary', 'd2', 'p2');
    insert into iccm.rollouts (id, candidate, production) values (1, 'v2', 'v1');
    insert into iccm.rollout_samples
        (rollout_id, requirement_id, session_key, arm, stage, pass_rate, served_at, left_out, revision)
        values (1, 1, 'k', 'canary', 1, 1, 'epoch', 'both_arms', 1);
    insert into iccm.requests (request_id, status, stored_in) values ('r', 'ok', 7);
    insert into iccm.pool_days (day, folded_at, kept, removed, fingerprint)
        values ('2026-01-01', 'epoch', 1, 0, 'f');
    insert into iccm.alerts (key, severity, title) values ('k', 'info', 't');
    insert into iccm.alert_deliveries (key, channel, tried_at) values ('k', 'log', 'epoch');
    insert into iccm.conversations (id, session_id, origin) values (1, 's1', 'import'), (2, 's2', 'import');
    insert into iccm.requirements
        (id, session_id, conversation_id, kind, text, test_suite, test_pass_rate, evidence, scored_at)
        values (1, 's1', 1, 'accepted', 't', '{"kind": "pytest"}', 1, null, 'epoch'),
            (2, 's2', 2, 'accepted', 't', '{"kind": "cases"}', null, '{"reason": "no quorum"}', 'epoch'),
            (3, 's2', 2, 'model', 't', '{"kind": "cases"}', null, null, null),
            (4, 's2', 2, 'model', 't', null, null, null, null);
    insert into iccm.reconstructions (requirement_id, reconstructor, status) values (1, 'a', 'scored');
    insert into iccm.filtered_conversations (conversation_id, day, session_id, source_code, requirements,
        test_pass_rate, implementation_variance, quality_score, content_sha256)
        values (1, '2026-01-01', 's1', 'x', 't', 1, 0, 1, 'h');
    insert into iccm.erasures (subject, subject_sha256, conversations, actor, scrubbed_at, scrub)
        values ('user', 's', '{1,3}', 'a', 'epoch', '{"files": 3}');
    insert into iccm.conversations (id, session_id, origin, erased_at)
        values (3, 'erased:h', 'import', 'epoch')
"""


def test_four_concurrent_migrations_give_one_schema(new_database):
    url = new_database(empty=True)
    outcomes: list[object] = []

    def migrate() -> None:
        engine = create_engine_for(url)
        try:
            outcomes.append(upgrade(engine))
        except Exception as error:
            outcomes.append(error)
        finally:
            engine.dispose()

    threads = [threading.Thread(target=migrate) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    head = head_revision()
    assert sorted(map(str, outcomes)) == sorted(map(str, [(None, head)] + [(head, head)] * 3))


def test_a_schema_newer_than_the_package_is_an_error_with_its_revision(engine):
    with engine.begin() as conn:
        conn.execute(sa.text("update iccm.alembic_version set version_num = '9999'"))
        conn.execute(sa.text("comment on table iccm.alembic_version is null"))
    with pytest.raises(DatabaseError, match="revision 9999"):
        upgrade(engine)
