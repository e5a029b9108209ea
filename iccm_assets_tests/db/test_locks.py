"""Advisory locks: one registry, stable keys, mutual exclusion."""

from __future__ import annotations

import sqlalchemy as sa

from iccm_assets.db.locks import Lock, acquire_lock, lock_key

_TRY = sa.text("select pg_try_advisory_xact_lock(:key)")


def test_every_lock_and_member_has_its_own_stable_key() -> None:
    keys = {lock_key(lock, member) for lock in Lock for member in (None, 1, 2, "a")}
    assert len(keys) == 4 * len(Lock) and all(-(2**63) <= key < 2**63 for key in keys)
    assert lock_key(Lock.DEPLOYMENT) == -6268616654757799010


def test_a_lock_is_exclusive_until_the_transaction_ends_and_members_are_locked_separately(
    engine: sa.Engine,
) -> None:
    with engine.connect() as other:
        with engine.begin() as conn:
            acquire_lock(conn, Lock.DEPLOYMENT)
            acquire_lock(conn, Lock.SESSION, "b", "a")
            for lock, member in ((Lock.DEPLOYMENT, None), (Lock.SESSION, "a"), (Lock.SESSION, "b")):
                assert not other.scalar(_TRY, {"key": lock_key(lock, member)})
            assert other.scalar(_TRY, {"key": lock_key(Lock.SESSION, "c")})
        assert other.scalar(_TRY, {"key": lock_key(Lock.DEPLOYMENT)})
