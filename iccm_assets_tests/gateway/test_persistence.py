"""A batch of records is stored by a few statements, and what is wrong with one stops no other (G5)."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from iccm_assets.gateway.persistence import store_records
from iccm_assets.settings import Settings
from iccm_assets_tests.factories.scorable_rows import make_record


def count_statements(engine: sa.Engine, settings: Settings, records: list[dict[str, Any]]) -> int:
    """Store a batch and return the number of statements that it took."""
    statements: list[str] = []

    def note(_conn: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        statements.append(statement)

    sa.event.listen(engine, "before_cursor_execute", note)
    try:
        with engine.begin() as conn:
            assert store_records(conn, records, settings).stored == len(records)
    finally:
        sa.event.remove(engine, "before_cursor_execute", note)
    return len(statements)


def test_a_batch_takes_as_many_statements_as_one_record(engine: sa.Engine, settings: Settings) -> None:
    def batch(name: str, size: int) -> list[dict[str, Any]]:
        return [make_record(settings, f"{name}-{index}", f"s-{index}") for index in range(size)]

    assert count_statements(engine, settings, batch("opened", 40)) <= count_statements(
        engine, settings, [make_record(settings, "one", "s-one")]
    )
    # Further responses of the same sessions replace their accepted texts, also together.
    assert count_statements(engine, settings, batch("again", 40)) <= 20
    query = """
        select count(*), count(distinct c.id), min(jsonb_array_length(c.content)) from iccm.conversations c
        join iccm.requirements r on r.conversation_id = c.id and r.kind = 'model'
        where c.session_id similar to 's-[0-9]+'
    """
    with engine.connect() as conn:
        assert tuple(conn.execute(sa.text(query)).one()) == (80, 40, 4)


def test_a_conversation_that_is_too_large_does_not_stop_the_others_of_its_batch(
    engine: sa.Engine, settings: Settings
) -> None:
    capture = settings.capture.model_copy(update={"max_conversation_mib": 0.01})
    small = settings.model_copy(update={"capture": capture})
    records = [
        make_record(small, "a", "s-a"),
        make_record(small, "large", "s-large", text="The function `f` shall return 1. " * 1000),
        make_record(small, "b", "s-b"),
    ]
    with engine.begin() as conn:
        assert store_records(conn, records, small).stored == 3
    query = """
        select r.request_id, c.session_id from iccm.requirements r
        left join iccm.conversations c on c.id = r.conversation_id
        where r.kind = 'model' and r.request_id in ('a', 'b', 'large') order by 1
    """
    with engine.connect() as conn:
        stored = [tuple(row) for row in conn.execute(sa.text(query))]
    assert stored == [("a", "s-a"), ("b", "s-b"), ("large", None)]
