"""The checks on real tables: green on a sound platform, red on the one thing that is broken (U4)."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import psycopg
import pytest
import sqlalchemy as sa

from iccm_assets.capture.conversations import Conversation, upsert_conversation
from iccm_assets.curation.code_fingerprints import content_sha256
from iccm_assets.curation.filtering import filter_day
from iccm_assets.curation.training_pool import rebuild_pool
from iccm_assets.db import tables as t
from iccm_assets.db.clock import now
from iccm_assets.db.database import create_engine_for
from iccm_assets.definitions import defs
from iccm_assets.defs import resources
from iccm_assets.defs.capture import checks as capture
from iccm_assets.defs.curation import checks as curation
from iccm_assets.defs.evaluation import checks as evaluation
from iccm_assets.defs.evaluation.assets import NO_MISSING_ITEMS, QUALITY_GATE, quality_gate_result
from iccm_assets.defs.monitoring import checks as monitoring
from iccm_assets.defs.resources import PlatformResource
from iccm_assets.defs.rollout import checks as rollout
from iccm_assets.defs.scoring import checks as scoring
from iccm_assets.defs.training import checks as training
from iccm_assets.registry.model_store import ModelStore
from iccm_assets.registry.versions import resolve_path
from iccm_assets.rollout.deployment import ensure_production
from iccm_assets.settings import Settings, get_settings, load_settings
from iccm_assets_tests.factories.platform_rows import training_run, version
from iccm_assets_tests.factories.training_pools import (
    HELD_OUT,
    SESSIONS,
    SUITE,
    HashEmbedder,
    write_canary_set,
)
from iccm_assets_tests.factories.verdicts import EXPECTED_STATUS, store_verdict

CHECK_MODULES = (capture, curation, evaluation, monitoring, rollout, scoring, training)


@pytest.fixture(scope="module")
def template(server_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Settings]]:
    """A database and a home of four days with 12 scored conversations each, filtered and folded; the base
    model in production; a canary set of 20 items. Its name, and settings that lead to it."""
    home = tmp_path_factory.mktemp("sound")
    items = [
        {
            "item": f"c{number}",
            "slice": "only",
            "source_code": f"def g(y): return y - {number}",
            "requirements": f"c{number} shall be c{number}.",
        }
        for number in range(20)
    ]
    name = f"test_sound_{secrets.token_hex(4)}"
    admin(server_url, f"create database {name} template iccm")
    settings = load_settings(
        home=home / "iccm",
        database_url=sa.make_url(server_url).set(database=name).render_as_string(hide_password=False),
        canary_set=write_canary_set(home / "canary.jsonl", items),
    )
    engine = create_engine_for(settings.database_url)
    fill(engine, settings)
    engine.dispose()
    yield name, settings
    admin(server_url, f"drop database {name} with (force)")


def fill(engine: sa.Engine, settings: Settings) -> None:
    embedder = HashEmbedder()
    ensure_production(engine, ModelStore(settings.home), settings)
    with engine.connect() as conn:
        today = now(conn)
    days = [today.date() - timedelta(days=back) for back in range(4, 0, -1)]
    sessions = iter(SESSIONS)
    for index, day in enumerate(days):
        for number in range(12):
            words = f"w{index}x{number}"
            put(engine, next(sessions), today - timedelta(days=4 - index), f"{words} shall be {words}.")
        filter_day(engine, day, settings, embedder)
    rebuild_pool(engine, days, settings, embedder)


@pytest.fixture
def sound(
    template: tuple[str, Settings], server_url: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[PlatformResource]:
    """A platform of its own that is as the template."""
    name, settings = template
    copy = f"test_copy_{secrets.token_hex(4)}"
    admin(server_url, f"create database {copy} template {name}")
    url = sa.make_url(server_url).set(database=copy).render_as_string(hide_password=False)
    monkeypatch.setenv("ICCM_DATABASE_URL", url)
    monkeypatch.setenv("ICCM_HOME", str(settings.home))
    monkeypatch.setenv("ICCM_CANARY_SET", settings.canary_set)
    monkeypatch.setattr("iccm_assets.models.embedding.Embedder.load", lambda settings: HashEmbedder())
    get_settings.cache_clear()
    resources._engine.cache_clear()
    yield PlatformResource()
    resources._engine().dispose()
    resources._engine.cache_clear()
    get_settings.cache_clear()
    admin(server_url, f"drop database {copy} with (force)")


@pytest.fixture
def engine(sound: PlatformResource) -> sa.Engine:
    return sound.engine


def admin(url: str, statement: str) -> None:
    maintenance = sa.make_url(url).set(database="postgres").render_as_string(hide_password=False)
    with psycopg.connect(maintenance, autocommit=True) as conn:
        conn.execute(statement)


def put(engine: sa.Engine, session: str, at: Any, text: str, rate: float | None = 0.9) -> int:
    with engine.begin() as conn:
        id_ = upsert_conversation(
            conn,
            Conversation(
                session_id=session,
                user_id="u",
                timestamp=at,
                messages=[{"role": "user", "content": f"```python\ndef f(x): return {text!r}\n```"}],
                requirements=text,
                origin="simulated",
                test_suite=SUITE,
            ),
        )
        if rate is not None:
            conn.execute(
                t.requirements.update()
                .where(t.requirements.c.session_id == session)
                .values(test_pass_rate=rate, implementation_variance=0.0, scored_at=sa.func.iccm.now())
            )
        return id_


def change(engine: sa.Engine, sql: str, **values: object) -> Any:
    with engine.begin() as conn:
        return conn.execute(sa.text(sql), values)


def evaluate(check: dg.AssetChecksDefinition, platform: PlatformResource) -> dg.AssetCheckResult:
    return check.op.compute_fn.decorated_fn(platform)


def all_checks() -> dict[str, dg.AssetChecksDefinition]:
    checks = [
        check
        for module in CHECK_MODULES
        for check in vars(module).values()
        if isinstance(check, dg.AssetChecksDefinition)
    ]
    by_name = {next(iter(check.check_keys)).name: check for check in checks}
    del by_name[QUALITY_GATE]  # a verdict on a candidate says nothing about the platform
    return by_name


def red(platform: PlatformResource) -> dict[str, dg.AssetCheckResult]:
    results = {name: evaluate(check, platform) for name, check in all_checks().items()}
    failed = {name: result for name, result in results.items() if not result.passed}
    assert [name for name, result in failed.items() if not result.metadata["recovery"].value] == []
    return failed


def test_every_asset_has_a_check() -> None:
    graph = defs().get_repository_def().asset_graph
    assert {key.asset_key for key in graph.asset_check_keys} == set(graph.get_all_asset_keys())


def test_the_checks_of_a_deployment_are_in_no_run_that_a_red_gate_ends() -> None:
    """Dagster would show them as failed: planned, and never executed."""
    repository = defs().get_repository_def()
    nodes = {
        name: {node.name for node in repository.get_job(name).nodes}
        for name in ("retrain_job", "production_quality_job")
    }
    check = "deployed_model_version_exactly_one_production_version"
    assert check not in nodes["retrain_job"] and check in nodes["production_quality_job"]


def test_a_red_gate_ends_the_run_before_the_deployment_and_after_the_other_check(
    sound: PlatformResource, engine: sa.Engine
) -> None:
    [serving] = change(engine, "select version from iccm.model_versions").scalars()
    with engine.begin() as conn:
        version(conn, "v-worse", status="candidate")
    store_verdict(engine, "v-worse", serving, "worse")
    keys = {
        dg.AssetCheckKey(dg.AssetKey("canary_evaluation"), name) for name in (QUALITY_GATE, NO_MISSING_ITEMS)
    }
    job = (
        defs()
        .get_repository_def()
        .get_maybe_subset_job_def(
            "__ASSET_JOB",
            asset_selection={dg.AssetKey("deployed_model_version")},
            asset_check_selection=keys,
        )
    )
    result = job.execute_in_process(raise_on_error=False)
    assert {item.check_name: item.passed for item in result.get_asset_check_evaluations()} == {
        QUALITY_GATE: False,
        NO_MISSING_ITEMS: True,
    }
    started = {event.step_key for event in result.all_events if event.is_step_start}
    assert not result.success and "deployed_model_version" not in started


def test_a_sound_platform_is_green_and_asks_for_nothing(sound: PlatformResource) -> None:
    results = {name: evaluate(check, sound) for name, check in all_checks().items()}
    assert {name: result.description for name, result in results.items() if not result.passed} == {}
    assert len(results) >= 19
    assert [name for name, result in results.items() if "recovery" in result.metadata] == []


@pytest.mark.parametrize("verdict", ["pass", "fail", "inconclusive"])
def test_the_gate_tells_what_to_do_only_where_it_did_not_pass(verdict: str) -> None:
    result = quality_gate_result(
        {"verdict": verdict, "summary": "v2 scores 0.8", "verdict_rules": "- rule", "improvement": 0.1}
    )
    assert result.passed == (verdict == "pass")
    assert result.description == "v2 scores 0.8" and result.metadata["verdict"].value == verdict
    assert ("recovery" in result.metadata) == (verdict != "pass")


def test_the_gate_can_be_evaluated_alone_and_shows_its_own_runs_verdict_or_the_newest(
    sound: PlatformResource, engine: sa.Engine
) -> None:
    def run(run_id: str) -> dg.AssetCheckEvaluation:
        job = (
            defs()
            .get_repository_def()
            .get_maybe_subset_job_def(
                "__ASSET_JOB",
                asset_selection=set(),
                asset_check_selection={dg.AssetCheckKey(dg.AssetKey("canary_evaluation"), QUALITY_GATE)},
            )
        )
        result = job.execute_in_process(run_id=run_id, raise_on_error=False)
        [evaluation] = result.get_asset_check_evaluations()
        assert evaluation.blocking and result.success == evaluation.passed
        return evaluation

    assert run("00000000-0000-0000-0000-000000000001").description == "no version has been evaluated yet"
    runs = {
        "00000000-0000-0000-0000-000000000002": "better",
        "00000000-0000-0000-0000-000000000003": "worse",
    }
    [serving] = change(engine, "select version from iccm.model_versions").scalars()
    for run_id, kind in runs.items():
        with engine.begin() as conn:
            version(conn, f"v-{kind}", status="candidate")
        store_verdict(engine, f"v-{kind}", serving, kind, run_id)
    for run_id, kind in runs.items():
        evaluation = run(run_id)
        assert evaluation.metadata["verdict"].value == EXPECTED_STATUS[kind]
        assert f"v-{kind} scores" in (evaluation.description or "")
    assert run("00000000-0000-0000-0000-000000000004").metadata["verdict"].value == "fail"


def test_a_day_without_arrivals_is_seen(sound: PlatformResource, engine: sa.Engine) -> None:
    change(
        engine,
        """update iccm.conversations set "timestamp" = "timestamp" - interval '1 day'
           where "timestamp" >= date_trunc('day', iccm.now() at time zone 'UTC') at time zone 'UTC'
                - interval '1 day'""",
    )
    assert "daily_volume_is_normal" in red(sound)


def test_a_refused_record_is_seen(sound: PlatformResource) -> None:
    spool = sound.settings.home / "spool"
    spool.mkdir(parents=True)
    try:
        (spool / "dead_letters.jsonl").write_text("{}\n", encoding="utf-8")
        assert set(red(sound)) == {"spool_is_flushed"}
    finally:
        shutil.rmtree(spool)


def test_unreadable_content_is_seen(sound: PlatformResource, engine: sa.Engine) -> None:
    change(engine, "update iccm.conversations set content = '{}' where id % 5 = 0")
    assert "content_is_valid" in red(sound)


def test_a_day_that_was_not_filtered_and_one_that_changed_since_are_seen(
    sound: PlatformResource, engine: sa.Engine
) -> None:
    change(engine, "delete from iccm.filtered_days where day = (select max(day) from iccm.filtered_days)")
    assert set(red(sound)) == {"yesterday_is_materialized", "partitions_are_fresh"}


def test_late_feedback_makes_its_day_stale(sound: PlatformResource, engine: sa.Engine) -> None:
    change(
        engine,
        """insert into iccm.feedback (session_id, rating, created_at)
           select session_id, -1, iccm.now() from iccm.conversations
           order by "timestamp" desc limit 1""",
    )
    failed = red(sound)
    assert set(failed) == {"partitions_are_fresh"}
    assert failed["partitions_are_fresh"].severity == dg.AssetCheckSeverity.WARN


def test_texts_without_a_score_are_seen(sound: PlatformResource, engine: sa.Engine) -> None:
    with engine.connect() as conn:
        yesterday = now(conn) - timedelta(days=1)
    put(engine, SESSIONS[-1], yesterday, "late shall be late.", rate=None)
    assert "no_missing_scores" in red(sound)


def test_inconclusive_scores_are_seen(sound: PlatformResource, engine: sa.Engine) -> None:
    change(
        engine,
        "update iccm.requirements set test_pass_rate = null, implementation_variance = null where id % 4 = 0",
    )
    assert "inconclusive_rate_is_low" in red(sound)


def test_suites_that_are_no_evidence_are_seen_apart(sound: PlatformResource, engine: sa.Engine) -> None:
    change(
        engine,
        """update iccm.requirements set test_pass_rate = null, implementation_variance = null,
               evidence = '{"kind": "cases", "suite": "weak", "reason": "a stub passes"}' where id % 4 > 0""",
    )
    failed = red(sound)
    assert "suites_are_usable" in failed and "inconclusive_rate_is_low" not in failed


@pytest.mark.parametrize("how", ["held_out", "erased", "canary"])
def test_what_may_not_be_learned_from_is_seen_wherever_it_lies(
    sound: PlatformResource, engine: sa.Engine, how: str
) -> None:
    [victim] = change(engine, "select max(conversation_id) from iccm.phase4_training_data").scalars()
    for table in ("filtered_conversations", "phase4_training_data"):
        if how == "held_out":
            where = f"update iccm.{table} set session_id = :session where conversation_id = :id"
            change(engine, where, session=HELD_OUT, id=victim)
        elif how == "canary":
            from iccm_assets.curation.canary_set import load_canary_set

            item = load_canary_set(sound.settings.canary_set).items[0]
            where = f"update iccm.{table} set source_code = :code where conversation_id = :id"
            change(engine, where, code=item.source_code, id=victim)
    if how == "erased":
        change(engine, "update iccm.conversations set erased_at = iccm.now() where id = :id", id=victim)
    failed = red(sound)
    assert {"no_contamination", "no_train_test_overlap"} <= set(failed)
    for name in ("no_contamination", "no_train_test_overlap"):
        assert str(victim) in failed[name].metadata["sample_ids"].value
        assert failed[name].severity == dg.AssetCheckSeverity.ERROR


def test_a_vector_close_to_the_canary_sets_is_seen(sound: PlatformResource, engine: sa.Engine) -> None:
    from iccm_assets.curation.canary_set import load_canary_set

    item = load_canary_set(sound.settings.canary_set).items[3]
    change(
        engine,
        """update iccm.phase4_training_data set embedding = (
               select embedding from iccm.embeddings where content_sha256 = :hash limit 1)
           where conversation_id = (select max(conversation_id) from iccm.phase4_training_data)""",
        hash=content_sha256(item.requirements),
    )
    assert "no_train_test_overlap" in red(sound)


def test_a_pair_of_duplicates_is_seen_unless_both_were_learned_from(
    sound: PlatformResource, engine: sa.Engine
) -> None:
    change(
        engine,
        """update iccm.phase4_training_data set embedding = (
               select embedding from iccm.phase4_training_data order by conversation_id limit 1)
           where conversation_id = (select max(conversation_id) from iccm.phase4_training_data)""",
    )
    failed = red(sound)
    assert set(failed) == {"no_duplicates"}
    assert "What to do: " in failed["no_duplicates"].description
    change(engine, "update iccm.phase4_training_data set pinned = true")
    assert red(sound) == {}


def test_rows_lost_between_filter_and_pool_are_seen(sound: PlatformResource, engine: sa.Engine) -> None:
    change(
        engine,
        "delete from iccm.phase4_training_data where conversation_id = "
        "(select max(conversation_id) from iccm.phase4_training_data)",
    )
    assert set(red(sound)) == {"row_counts_reconcile"}


def test_a_day_that_was_never_folded_is_seen(sound: PlatformResource, engine: sa.Engine) -> None:
    change(engine, "delete from iccm.pool_days where day = (select max(day) from iccm.pool_days)")
    assert set(red(sound)) == {"row_counts_reconcile"}


def test_another_canary_set_than_the_last_verdicts_and_missing_items_are_seen(
    sound: PlatformResource, engine: sa.Engine
) -> None:
    [serving] = change(engine, "select version from iccm.model_versions").scalars()
    with engine.begin() as conn:
        version(conn, "v9", status="candidate")
    item = {"slice": "s", "candidate_variance": None, "production_variance": None, "unreliable_reason": ""}
    evidence = {
        "candidate_version": "v9",
        "production_version": serving,
        "items": [
            {"item": "a", "candidate": 1.0, "production": 1.0, **item},
            {"item": "b", "candidate": None, "production": 1.0, **item},
        ],
        "expected_items": 3,
        "candidate_latency": [],
        "production_latency": [],
        "missing_layers": [],
    }
    with engine.begin() as conn:
        conn.execute(
            t.gate_verdicts.insert().values(
                version="v9", production_version=serving, status="inconclusive", evidence=evidence,
                canary_set_digest="another", orchestra="o", judge_version="j",
            )
        )  # fmt: skip
    failed = red(sound)
    assert set(failed) == {"digest_is_unchanged", "no_missing_items"}
    result = failed["no_missing_items"]
    assert "2 of 3" in result.description and result.metadata["sample_ids"].value == "b, never measured"


def test_damage_to_the_production_model_is_seen(sound: PlatformResource, engine: sa.Engine) -> None:
    [path] = change(engine, "select path from iccm.model_versions").scalars()
    tokenizer = Path(resolve_path(path)) / "tokenizer.json"
    tokenizer.chmod(0o644)
    whole = tokenizer.read_bytes()
    try:
        tokenizer.write_bytes(whole + b" ")
        assert set(red(sound)) == {"production_checksum_matches"}
    finally:
        tokenizer.write_bytes(whole)


def test_a_checkpoint_that_moved_nothing_or_lost_its_teachers_is_seen(
    sound: PlatformResource, engine: sa.Engine
) -> None:
    [path] = change(engine, "select path from iccm.model_versions").scalars()
    [teacher] = change(engine, "select max(id) from iccm.conversations").scalars()
    weight_change = {"relative": 0.0, "changed_share": 0.0, "largest": 0.0}
    with engine.begin() as conn:
        conn.execute(
            t.model_versions.insert().values(
                version="v2", status="gate_failed", digest="d", path=path,
                metrics={"training": {"weight_change": weight_change, "counts": {"new": 1}}},
            )
        )  # fmt: skip
        run = training_run(conn, 1, "v2")
        conn.execute(
            t.training_run_examples.insert().values(training_run_id=run, conversation_id=teacher, role="new")
        )
    assert set(red(sound)) == {"weights_changed"}
    change(engine, "update iccm.conversations set erased_at = iccm.now() where id = :id", id=teacher)
    assert {"weights_changed", "lineage_is_complete"} <= set(red(sound))


def test_no_production_version_a_stray_canary_and_a_lost_lease_are_seen(
    sound: PlatformResource, engine: sa.Engine
) -> None:
    with engine.begin() as conn:
        version(conn, "v2", status="canary")
    assert set(red(sound)) == {"statuses_match_rollout"}
    change(
        engine,
        """insert into iccm.rollouts (candidate, production, weight, lease_until)
           select 'v2', version, 0.1, iccm.now() + interval '1 hour'
           from iccm.model_versions where status = 'production'""",
    )
    assert red(sound) == {}
    change(engine, "update iccm.rollouts set lease_until = iccm.now() - interval '5 minutes'")
    assert set(red(sound)) == {"canary_lease_is_active"}
    change(engine, "update iccm.model_versions set status = 'retired' where status = 'production'")
    assert {"exactly_one_production_version", "statuses_match_rollout", "production_checksum_matches"} <= set(
        red(sound)
    )


def test_production_that_fell_or_that_nobody_measures_is_seen(
    sound: PlatformResource, engine: sa.Engine
) -> None:
    change(
        engine,
        """insert into iccm.quality_measurements (version, "set", n, mean, baseline_mean, judge_version)
           select version, 'canary_set', 20, 0.7, 0.8, 'j' from iccm.model_versions
           where status = 'production'""",
    )
    assert set(red(sound)) == {"production_quality_is_stable"}
    change(engine, "update iccm.quality_measurements set mean = 0.79")
    assert red(sound) == {}
    change(engine, "update iccm.quality_measurements set measured_at = measured_at - interval '1 day'")
    change(engine, "update iccm.model_versions set deployed_at = deployed_at - interval '1 day'")
    with engine.begin() as conn:  # a deployment counts as a measurement, and its event cannot be changed
        conn.execute(sa.text("alter table iccm.deployment_events disable trigger all"))
        conn.execute(
            sa.text("""update iccm.deployment_events set "timestamp" = "timestamp" - interval '1 day'""")
        )
    assert set(red(sound)) == {"production_quality_is_stable"}


def test_no_check_reads_a_large_pool_for_long(sound: PlatformResource, engine: sa.Engine) -> None:
    """Bounded by what they read, not by time: only the newest rows of a large pool are compared."""
    from iccm_assets.curation import checks

    rng = np.random.default_rng(0)
    with engine.connect() as conn:
        size = conn.execute(sa.text("select count(*) from iccm.phase4_training_data")).scalar_one()
        vectors = checks.load_pool_vectors(conn)
    assert vectors.pool_size == size and len(vectors.ids) == min(size, checks.MAX_VECTORS)
    assert vectors.vectors.matrix.shape == (len(vectors.ids), 384)
    assert np.allclose(
        np.linalg.norm(vectors.vectors.matrix[rng.integers(0, len(vectors.ids), 5)], axis=1), 1
    )
