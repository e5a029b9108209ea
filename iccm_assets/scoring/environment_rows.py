"""Environments in the database: register one, and try again what was inconclusive for want of it. (J5)"""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from iccm_assets.db import tables as t
from iccm_assets.sandbox.environments import Environment
from iccm_assets.suites.missing_dependencies import NOT_INSTALLED


def register_environment(engine: sa.Engine, environment: Environment) -> int:
    """Store an environment; return how many texts are scored again because it has what they lacked."""
    values = {"name": environment.name, "packages": list(environment.packages)}
    statement = insert(t.environments).values(digest=environment.digest, **values)
    modules = "|".join(sorted(environment.modules))
    with engine.begin() as conn:
        conn.execute(statement.on_conflict_do_update(index_elements=["digest"], set_=values))
        if not environment.modules:
            return 0
        sources = conn.execute(
            _FORGET, {"reason": f"%{NOT_INSTALLED}%", "modules": rf"\m({modules})\M"}
        ).scalars()
        return conn.execute(_RETRY, {"sources": list(set(sources))}).rowcount


_FORGET = sa.text(
    """
    delete from iccm.test_suites
    where status = 'none' and reason like :reason and reason ~ :modules returning source_sha256
    """
)
_RETRY = sa.text(
    """
    update iccm.requirements set scored_at = null
    where test_pass_rate is null and source_sha256 = any(:sources)
    """
)
