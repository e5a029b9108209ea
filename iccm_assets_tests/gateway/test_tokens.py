"""Tokens of the gateway's clients: scopes, expiry, rotation, revocation, counted uses, admins (G9)."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa

from iccm_assets.cli import token as token_commands
from iccm_assets.db.tables.rollout import TOKEN_SCOPES
from iccm_assets.errors import InputError, SettingsError
from iccm_assets.gateway.auth import SCOPE_BY_PATH, Authenticator, require_tokens_off_loopback
from iccm_assets.gateway.problem_details import ProblemDetail
from iccm_assets.gateway.tokens import (
    TokenStore,
    create_token,
    has_active_token,
    hash_token,
    list_tokens,
    revoke_token,
    rotate_token,
)
from iccm_assets_tests.factories.gateways import SOURCE, database_url, eventually, gateway, rows

NOW = datetime(2026, 11, 29, tzinfo=UTC)
BOOTSTRAP = "a-bootstrap-token"
BODIES = {
    "/v1/requirements": {"source_code": SOURCE},
    "/v1/chat/completions": {"model": "cet-d", "messages": [{"role": "user", "content": SOURCE}]},
    "/v1/conversations": {"session_id": "s", "messages": [{"role": "user", "content": "Thanks."}]},
    "/v1/feedback": {"session_id": "s", "rating": 1},
    "/v1/probe": {"source_code": SOURCE},
}


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def row(name: str = "ci", token: str = "secret", **more: object) -> dict[str, object]:
    return {
        "name": name, "hash": hash_token(token).hex(), "previous_hash": None, "previous_until": None,
        "scopes": ["feedback"], "expires_at": None, "revoked_at": None, **more,
    }  # fmt: skip


def check(rows_: list[dict[str, object]], path: str, token: str, host: str = "192.0.2.1"):
    store = TokenStore()
    store.replace(rows_)
    authenticator = Authenticator((hash_token(BOOTSTRAP),), store, host, lambda: NOW)
    headers = {b"authorization": f"Bearer {token}".encode()} if token else {}
    return authenticator.authenticate(path, headers), store


@pytest.mark.parametrize("scope", TOKEN_SCOPES)
@pytest.mark.parametrize("path", [*SCOPE_BY_PATH, "/v1/routing", "/v1/models", "/docs", "/healthz"])
def test_each_path_needs_its_scope_and_admin_has_all(path, scope):
    needed = SCOPE_BY_PATH.get(path, "")
    if scope == "admin" or needed in ("", scope):
        caller, store = check([row(scopes=[scope])], path, "secret")
        assert caller.is_admin == (scope == "admin" and path != "/healthz")
        assert store.take_uses() == ([] if path == "/healthz" else [(1, "ci")])
    else:
        with pytest.raises(ProblemDetail) as caught:
            check([row(scopes=[scope])], path, "secret")
        assert caught.value.status == 403 and needed in caught.value.detail


@pytest.mark.parametrize(
    ("more", "token", "status", "word"),
    [
        ({}, "", 401, "required"),
        ({}, "wrong", 401, "required"),
        ({"expires_at": NOW}, "secret", 401, "expired"),
        ({"expires_at": NOW + timedelta(seconds=1)}, "secret", 200, ""),
        ({"revoked_at": NOW}, "secret", 401, "revoked"),
        ({"previous_hash": hash_token("old").hex(), "previous_until": NOW}, "old", 401, "expired"),
        (
            {"previous_hash": hash_token("old").hex(), "previous_until": NOW + timedelta(hours=1)},
            "old",
            200,
            "",
        ),
        (
            {
                "previous_hash": hash_token("old").hex(),
                "previous_until": NOW + timedelta(hours=1),
                "expires_at": NOW - timedelta(hours=1),
            },
            "old",
            401,
            "expired",
        ),
        ({}, BOOTSTRAP, 200, ""),
    ],
    ids=[
        "none",
        "wrong",
        "expired",
        "valid",
        "revoked",
        "rotated",
        "grace",
        "both",
        "bootstrap",
    ],
)
def test_who_is_admitted(more, token, status, word):
    if status == 200:
        caller, _ = check([row(**more)], "/v1/feedback", token)
        assert caller.token_name == ("ci" if token != BOOTSTRAP else f"token-{hash_token(token).hex()[:8]}")
        assert not caller.is_admin
    else:
        with pytest.raises(ProblemDetail) as caught:
            check([row(**more)], "/v1/feedback", token)
        assert caught.value.status == status and word in caught.value.detail


def test_on_loopback_a_known_token_is_held_to_its_word_and_others_are_not_needed():
    store = TokenStore()
    store.replace([row(), row("gone-by", "expired", expires_at=NOW)])
    local = Authenticator((), store, "127.0.0.1", lambda: NOW)
    assert local.authenticate("/v1/requirements", {}).token_name is None
    unused = {b"authorization": b"Bearer unused", b"host": b"localhost"}
    assert local.authenticate("/v1/requirements", unused).token_name is None
    for path, token, status in (("/v1/requirements", b"secret", 403), ("/v1/feedback", b"expired", 401)):
        with pytest.raises(ProblemDetail) as caught:
            local.authenticate(path, {b"authorization": b"Bearer " + token})
        assert caught.value.status == status
    assert local.authenticate("/v1/feedback", {b"authorization": b"bearer secret"}).token_name == "ci"


def test_tokens_are_created_rotated_and_revoked_and_only_hashes_are_stored(fresh):
    assert not has_active_token(fresh)
    token = create_token(fresh, "ci", ["feedback", "feedback", "metrics"], 30)
    minutes = "round(extract(epoch from expires_at - created_at) / 60)"
    [stored] = rows(fresh, f"select hash, scopes, {minutes} from iccm.gateway_tokens")
    assert stored == (hash_token(token).hex(), ["feedback", "metrics"], 30 * 24 * 60)
    assert has_active_token(fresh) and len(token) > 40
    second = rotate_token(fresh, "ci", 1)
    [stored] = rows(fresh, "select hash, previous_hash from iccm.gateway_tokens")
    assert stored == (hash_token(second).hex(), hash_token(token).hex())
    revoke_token(fresh, "ci")
    assert [item["state"] for item in list_tokens(fresh)] == ["revoked"] and not has_active_token(fresh)
    for change in (revoke_token, lambda engine, name: rotate_token(engine, name, 1)):
        with pytest.raises(InputError, match="no valid token"):
            change(fresh, "ci")
    for name, scopes, words in (
        ("ci", ["metrics"], "already"),
        ("", ["metrics"], "no name"),
        ("token-12345678", ["metrics"], "no name"),
        ("a b", ["metrics"], "no name"),
        ("x" * 61, ["metrics"], "no name"),
        ("new", ["root"], "no scope"),
        ("new", [], "needs a scope"),
    ):
        with pytest.raises(InputError, match=words):
            create_token(fresh, name, scopes)
    with pytest.raises(sa.exc.IntegrityError), fresh.begin() as conn:
        conn.exec_driver_sql("insert into iccm.gateway_tokens (name, hash, scopes) values ('n', 'h', '{}')")


def test_an_address_of_other_hosts_may_rely_on_tokens_of_the_database():
    require_tokens_off_loopback("0.0.0.0", (), lambda: True)
    with pytest.raises(SettingsError, match="iccm token create"):
        require_tokens_off_loopback("0.0.0.0", (), lambda: False)


def test_a_running_gateway_learns_of_tokens_counts_uses_and_lets_an_admin_act_for_others(fresh, tmp_path):
    with gateway(database_url(fresh), tmp_path, ICCM_GATEWAY__TOKENS=BOOTSTRAP) as running:
        client = running.client
        writer = create_token(fresh, "writer", ["requirements", "conversations"])
        admin = create_token(fresh, "boss", ["admin"])
        reader = create_token(fresh, "prometheus", ["metrics"])
        eventually(lambda: client.get("/metrics", headers=bearer(reader)).status_code == 200)
        answers = {
            path: client.post(path, json=body, headers=bearer(reader)) for path, body in BODIES.items()
        }
        assert {path: answer.status_code for path, answer in answers.items()} == {
            "/v1/requirements": 403, "/v1/chat/completions": 403, "/v1/conversations": 403,
            "/v1/feedback": 403, "/v1/probe": 200,
        }  # fmt: skip
        assert answers["/v1/chat/completions"].json()["error"]["type"] == "invalid_request_error"

        written = client.post(
            "/v1/requirements", json=BODIES["/v1/requirements"] | {"session_id": "s"}, headers=bearer(writer)
        )
        assert written.status_code == 200
        foreign = client.post(
            "/v1/conversations", json=BODIES["/v1/conversations"], headers=bearer(BOOTSTRAP)
        )
        assert foreign.status_code == 409
        query = "select token_name from iccm.conversations where session_id = 's'"
        eventually(lambda: rows(fresh, query))
        done = client.post("/v1/conversations", json=BODIES["/v1/conversations"], headers=bearer(admin))
        assert done.status_code == 200
        assert rows(fresh, query) == [("writer",)]
        assert client.post("/v1/feedback", json=BODIES["/v1/feedback"], headers=bearer(admin)).is_success

        counts = "select name, use_count, last_used_at is not null from iccm.gateway_tokens order by name"
        stored = eventually(lambda: (c := rows(fresh, counts)) and c[0][1] >= 2 and c)
        assert [(name, used) for name, count, used in stored if count] == [
            ("boss", True), ("prometheus", True), ("writer", True),
        ]  # fmt: skip
        revoke_token(fresh, "writer")
        eventually(
            lambda: client.post("/v1/requirements", json={}, headers=bearer(writer)).status_code == 401
        )


def test_the_commands_print_a_token_once_and_list_its_uses(fresh, monkeypatch, capsys):
    monkeypatch.setattr("iccm_assets.cli.context.open_platform", lambda: (None, fresh))
    token_commands.create("ci", None, 7.0, as_json=True)
    created = json.loads(capsys.readouterr().out)
    assert created["name"] == "ci" and created["token"].startswith("iccm_")
    token_commands.rotate("ci", 2.0)
    rotated = capsys.readouterr()
    assert rotated.out.strip().startswith("iccm_") and "only time" in rotated.err
    token_commands.list_(as_json=True)
    [item] = json.loads(capsys.readouterr().out)
    assert item["scopes"] == ["conversations", "feedback", "requirements"] and item["state"] == "active"
    assert not {"hash", "previous_hash"} & set(item)
    token_commands.revoke("ci")
    assert "revoked" in capsys.readouterr().out
    token_commands.list_()
    assert "revoked" in capsys.readouterr().out
