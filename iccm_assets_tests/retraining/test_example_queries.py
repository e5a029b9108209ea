"""Selectable rows in a real database: none that an ancestor of production was trained on (T7)."""

from __future__ import annotations

from datetime import timedelta

import sqlalchemy as sa

from iccm_assets.retraining.example_queries import count_selectable, fetch_candidates, propose_selection
from iccm_assets.settings import SelectionSettings
from iccm_assets_tests.factories.platform_rows import NOW, conversation, training_run, version

S = SelectionSettings()


def selectable(engine: sa.Engine) -> set[int]:
    with engine.connect() as conn:
        return {row.conversation_id for row in fetch_candidates(conn, NOW, S)}


def test_examples_of_production_and_its_ancestors_are_not_selectable(engine: sa.Engine) -> None:
    with engine.begin() as conn:
        for number in range(1, 8):
            conversation(conn, number)
        version(conn, "v1", status="retired")
        version(conn, "v2", "v1", status="retired")
        version(conn, "v3", "v2", status="production")
        training_run(conn, 1, "v2", examples={1: "new", 2: "validation", 3: "rehearsal"})
        training_run(conn, 2, "v3", examples={4: "new"})
    assert selectable(engine) == {3, 5, 6, 7}


def test_examples_of_a_rejected_rolled_back_or_failed_candidate_stay_selectable(engine: sa.Engine) -> None:
    with engine.begin() as conn:
        for number in range(1, 6):
            conversation(conn, number, pinned=True)
        version(conn, "v1", status="production")
        version(conn, "v2", "v1", status="gate_failed")
        version(conn, "v3", "v1", status="rolled_back")
        training_run(conn, 1, "v2", examples={1: "new"}, status="gate_failed")
        training_run(conn, 2, "v3", examples={2: "new"})
        training_run(conn, 3, None, examples={3: "new"}, status="failed")
    assert selectable(engine) == {1, 2, 3, 4, 5}


def test_rows_that_no_longer_qualify_or_were_erased_are_not_selectable(engine: sa.Engine) -> None:
    with engine.begin() as conn:
        conversation(conn, 1)
        conversation(conn, 2, filtered=False, pinned=True)
        conversation(conn, 3, erased=True)
        conversation(conn, 4, pool=False)
        conversation(conn, 5, at=NOW - timedelta(days=40))
    assert selectable(engine) == {1}


def test_the_window_extends_to_the_training_of_production(engine: sa.Engine) -> None:
    with engine.begin() as conn:
        version(conn, "v1", status="production")
        version(conn, "v2", "v1", status="gate_failed")
        conversation(conn, 1, at=NOW - timedelta(days=15))
        conversation(conn, 2, at=NOW - timedelta(days=25))
        training_run(conn, 1, "v1", trained_at=NOW - timedelta(days=20))
        training_run(conn, 2, "v2", trained_at=NOW - timedelta(days=2), status="gate_failed")
    with engine.connect() as conn:
        selection = propose_selection(conn, NOW, S)
    assert selection.window.start == NOW - timedelta(days=20)
    assert selection.counts["outside_window"] == 1


def test_a_new_platform_selects_from_thirty_days(engine: sa.Engine) -> None:
    with engine.begin() as conn:
        for number in range(1, 31):
            user = "busy" if number <= 8 else f"u{number}"
            conversation(conn, number, user=user, at=NOW - timedelta(days=number % 29))
    with engine.connect() as conn:
        selection = propose_selection(conn, NOW, S)
    assert len(selection.selected) == 24
    assert selection.reason == (
        "selected 24 of 30 new rows of the last 30 days (6 user_cap);"
        " the cap of 10% (23 users) leaves 24 of 30 rows"
    )
    with engine.connect() as conn:
        assert propose_selection(conn, NOW - timedelta(days=365), S).selected == ()


def test_the_database_counts_the_same_owners_as_the_selection(engine: sa.Engine) -> None:
    owners = [("u1", "ci"), ("u1", None), ("", "ci"), (None, "ci"), (None, ""), (None, None), ("ci", None)]
    with engine.begin() as conn:
        for number in range(1, 43):
            user, token = owners[number % len(owners)]
            conversation(conn, number, user=user, token=token)
    with engine.connect() as conn:
        selection, share = propose_selection(conn, NOW, S), count_selectable(conn, NOW, S)
    assert share == selection.fair_share
    assert share.users == 4


def test_a_retraining_from_another_version_selects_by_its_own_ancestors(engine: sa.Engine) -> None:
    with engine.begin() as conn:
        for number in range(1, 6):
            conversation(conn, number)
        version(conn, "v1", status="retired")
        version(conn, "v2", "v1", status="production")
        version(conn, "v3", "v1")
        training_run(conn, 1, "v1", examples={1: "new"}, trained_at=NOW - timedelta(days=26))
        training_run(conn, 2, "v2", examples={2: "new"}, trained_at=NOW - timedelta(days=24))
        training_run(conn, 3, "v3", examples={3: "new"}, trained_at=NOW - timedelta(days=22))
    with engine.connect() as conn:
        chosen = {base: propose_selection(conn, NOW, S, base=base) for base in (None, "v1", "v3")}
    ids = {base: {row.conversation_id for row in each.selected} for base, each in chosen.items()}
    assert ids == {None: {3, 4, 5}, "v1": {2, 3, 4, 5}, "v3": {2, 4, 5}}
    starts = {base: (NOW - each.window.start).days for base, each in chosen.items()}
    assert starts == {None: 24, "v1": 26, "v3": 22}
