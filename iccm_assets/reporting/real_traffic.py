"""Traffic that is not simulated, and the notice that `builtin` cannot score it (C3a)."""

from __future__ import annotations

from sqlalchemy import Connection, text

from iccm_assets.endpoint_urls import parse_orchestra

# Simulated developers in this process set the origin, those over HTTP mark the metadata.
IS_REAL = "origin <> 'simulated' and metadata -> 'simulated' is distinct from 'true'::jsonb"
NOTICE_DAYS = 7
BUILTIN_LIMITS = (
    "`builtin` reads its reference language only and scores other wordings 0. Its scores of real"
    " conversations teach nothing: set ICCM_ORCHESTRA to openai:URL#model."
)
_RECENT = text(
    f"""
    select count(*) from iccm.conversations
    where "timestamp" >= iccm.now() - make_interval(days => :days) and {IS_REAL}
    """
)


def describe_builtin_limits(orchestra: str) -> str | None:
    """Return what an orchestra with `builtin` cannot score; None for one without."""
    return BUILTIN_LIMITS if "builtin" in parse_orchestra(orchestra) else None


def find_builtin_notice(conn: Connection, orchestra: str) -> str | None:
    """Return the notice that `builtin` met real conversations in the last days; None if it did not."""
    limits = describe_builtin_limits(orchestra)
    if limits is None or conn.execute(text("select to_regclass('iccm.conversations')")).scalar_one() is None:
        return None
    count = conn.execute(_RECENT, {"days": NOTICE_DAYS}).scalar_one()
    return f"real conversations in {NOTICE_DAYS} days: {count}; {limits}" if count else None
