"""After an erasure no file and no row holds the text, searched byte by byte (V2)."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from iccm_assets.db import tables as t
from iccm_assets.governance.erasure import DataSubject, erase
from iccm_assets.governance.physical_erasure import erase_from_files
from iccm_assets_tests.factories.erasure_worlds import EMBEDDER, World, learn, marker, populated, traces


def test_no_file_and_no_row_holds_erased_text(own_world: World) -> None:
    engine, words = own_world.engine, marker("user")
    ids = populated(own_world, words)
    taught = learn(own_world, name="aaaaaaaa")
    plain = "plain1"
    with engine.begin() as conn:
        conn.execute(
            t.requests.insert(),
            [
                {"request_id": f"{words}-{n}", "session_id": f"{words}-{n}", "user_id": f"mallory-{words}",
                 "status": "error", "error": words}
                for n in range(3)
            ],
        )  # fmt: skip
        conn.execute(
            t.canary_results.insert().values(
                version="v1", model_digest="d", set="production_holdout", canary_set_digest="h",
                item=f"conversation:{ids['mallory'][0]}", slice="s", reconstructor="a", orchestra="o",
                judge_version="1", decoding="greedy", requirements=words, status="scored",
            )
        )  # fmt: skip
        # A row that fails a check is quoted by the server, and the log must not hold it.
        with pytest.raises(sa.exc.IntegrityError), conn.begin_nested():
            conn.execute(t.feedback.insert().values(session_id=words, rating=7, comment=words))
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
        conn.execute(sa.text("analyze"))
        conn.execute(sa.text("checkpoint"))
    before = traces(own_world.home, engine, words)
    assert {place.split("/")[0] for place in before} >= {"postgres", "datasets", "iccm.iccm.conversations"}
    assert any("pg_wal" in place for place in before) and "iccm.pg_statistic" in before
    assert not any(place.endswith("server.log") for place in before)

    done = erase(engine, DataSubject("user", f"mallory-{words}"), actor="test")
    files = erase_from_files(engine, own_world.settings, done.hashes, embedder=EMBEDDER)

    assert traces(own_world.home, engine, words) == []
    assert traces(own_world.home, engine, plain) != []
    assert list(done.conversations) == ids["mallory"]
    assert [version.version for version in done.plan.versions] == [taught]
    assert len(files.snapshots) == 1
    with engine.connect() as conn:
        [[left, pooled, state]] = conn.execute(
            sa.text(
                """
                select (select count(*) from iccm.conversations where erased_at is null),
                    (select count(*) from iccm.phase4_training_data),
                    (select physically_erased_at is not null from iccm.erasures)
                """
            )
        ).all()
    assert (left, pooled, state) == (4, 4, True)
