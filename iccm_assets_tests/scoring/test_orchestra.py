"""The orchestra: its members, and what its digest depends on (O1)."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from iccm_assets.errors import OrchestraError, SettingsError
from iccm_assets.scoring.chat_endpoints import PROMPT
from iccm_assets.scoring.orchestra import (
    LocalReconstructor,
    Orchestra,
    load_orchestra,
    load_orchestra_from_settings,
)
from iccm_assets.scoring.reconstruction import ProgramShape
from iccm_assets.settings import EndpointSettings, load_settings

FIRST, SECOND = "openai:http://one:8000/v1#a", "openai:https://other/v1#b"


def test_the_builtin_orchestra_has_at_least_three_members_with_names_of_their_own() -> None:
    orchestra = load_orchestra("builtin", quorum=2)
    assert len(orchestra.members) >= 3
    assert len({member.name for member in orchestra.members}) == len(orchestra.members)
    # The filter recognizes them by this prefix.
    assert all(member.name.startswith("builtin/") for member in orchestra.members)


@pytest.mark.parametrize(
    ("spec", "quorum", "words"),
    [
        ("nobody", 1, "unknown member 'nobody'"),
        ("builtin,builtin", 2, "named twice: builtin"),
        (f"{FIRST},{FIRST.replace('/v1', '/v1/')}", 2, "named twice: openai:http://one:8000/v1#a"),
        ("builtin", 9, "the quorum is 9"),
    ],
)
def test_an_invalid_orchestra_is_rejected_with_the_reason(spec: str, quorum: int, words: str) -> None:
    with pytest.raises(OrchestraError, match=words):
        load_orchestra(spec, quorum)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (",", "is empty; use `builtin` or"),
        ("openai:localhost#m", "part 1 is not openai:http://host:port/v1#model"),
        ("builtin,openai:http://localhost/v1", "part 2 is not openai:http://host:port/v1#model"),
        ("openai:http://localhost:99999/v1#m", "no such port"),
        ("openai:http://[::1/v1#m", "not a URL"),
        ("openai:ftp://localhost/v1#m", "part 1 is not"),
        ("openai:http:///v1#m", "part 1 is not"),
        ("openai:http://host/v1#a model", "part 1 is not"),
        ("openai:http://me:hunter2@host/v1#m", "holds a password"),
        ("openai:http://host/v1?key=hunter2#m", "has a query"),
        ("two words", "part 1 is neither a name"),
    ],
)
def test_a_malformed_orchestra_is_a_settings_error_that_repeats_no_secret(
    monkeypatch: pytest.MonkeyPatch, spec: str, words: str
) -> None:
    monkeypatch.setenv("ICCM_ORCHESTRA", spec)
    with pytest.raises(SettingsError, match=r"ICCM_ORCHESTRA: .*") as raised:
        load_settings()
    assert words in str(raised.value) and "hunter2" not in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_reconstructor_that_cannot_parse_a_text_calls_the_text_unreadable() -> None:
    def reject(text: str) -> str:
        raise ValueError("no statement")

    answer = LocalReconstructor("strict", reject).reconstruct("blah")
    assert (answer.status, answer.detail) == ("unreadable", "no statement")


def digest(**limits: object) -> str:
    return load_orchestra(FIRST, 1, EndpointSettings.model_validate(limits)).digest


def test_the_digest_changes_with_what_answers_depend_on_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain = digest()
    changed = [
        digest(temperature=0.5),
        digest(seed=1),
        digest(max_tokens=100),
        digest(system_prompt="You write Python."),
        digest(request={"top_p": 0.5}),
        load_orchestra(SECOND, 1).digest,
    ]
    assert len({plain, *changed}) == 7
    assert digest(timeout_seconds=1, retries=9, concurrency=1, requests_per_minute=5) == plain
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    assert digest() == plain


def test_the_digest_depends_on_the_members() -> None:
    a, b = LocalReconstructor("a", str), LocalReconstructor("b", str)
    assert Orchestra((a, b), 2).digest != Orchestra((a,), 1).digest


def members_json(**members: object) -> str:
    return json.dumps(members)


def test_members_of_one_orchestra_send_what_their_own_settings_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(
        "ICCM_ORCHESTRA", "openai:http://one/v1#gpt-5,openai:http://two/v1#m,openai:http://x/v1#m"
    )
    monkeypatch.setenv("ICCM_ENDPOINTS__REQUEST", '{"top_p": 0.5}')
    overrides = {
        "gpt-5": {"temperature": None, "max_tokens": None, "request": {"max_completion_tokens": 8000}},
        "m": {"seed": None, "temperature": 0.3, "timeout_seconds": 7, "retries": 0},
        "openai:http://X/v1/#m": {"prompt": "Schreibe Python.", "system_prompt": "Kurz.", "temperature": 0.9},
    }
    monkeypatch.setenv("ICCM_ENDPOINTS__MEMBERS", json.dumps(overrides))
    first, second, third = load_orchestra_from_settings(load_settings()).members
    bodies = [member.build_request("X") for member in (first, second, third)]
    user = {"role": "user", "content": PROMPT + "X"}
    bodies_with_packages = [
        member.build_request("X", shape=ProgramShape(("a==1", "b==2"), ("a.py", "b/c.py")))
        for member in (first, third)
    ]
    texts = [body["messages"][-1]["content"] for body in bodies_with_packages]
    assert "uses only the standard library and these packages: a==1, b==2 and" in texts[0]
    assert "the files a.py, b/c.py. Answer" in texts[0] and "(```python b/c.py)" in texts[0]
    assert texts[1].startswith(
        "Schreibe Python.\n\nThese packages may be imported: a==1, b==2.\n\nThe program"
    )
    assert bodies[0] == {
        "model": "gpt-5", "messages": [user], "seed": 17, "top_p": 0.5, "max_completion_tokens": 8000,
    }  # fmt: skip
    assert bodies[1] == {
        "model": "m", "messages": [user], "max_tokens": 4096, "temperature": 0.3, "top_p": 0.5,
    }  # fmt: skip
    # Both the model and the full name match: the full name wins, field by field.
    assert bodies[2] == {
        **bodies[1],
        "messages": [
            {"role": "system", "content": "Kurz."},
            {"role": "user", "content": "Schreibe Python.\n\nX"},
        ],
        "temperature": 0.9,
    }
    assert [(member.limits.timeout_seconds, member.limits.retries) for member in (first, second, third)] == [
        (120, 2), (7, 0), (7, 0),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("members", "words"),
    [
        (members_json(c={}), "no member is named c; the endpoints of ICCM_ORCHESTRA are: openai:http://one"),
        (members_json(builtin={}), "no member is named builtin"),
        (members_json(a={"temprature": 1}), "ICCM_ENDPOINTS__MEMBERS: a.temprature: Extra inputs"),
        (members_json(a={"concurrency": 1}), "ICCM_ENDPOINTS__MEMBERS: a.concurrency: Extra inputs"),
        (members_json(a={"members": {}}), "ICCM_ENDPOINTS__MEMBERS: a.members: Extra inputs"),
        (members_json(a={"seed": -1}), "ICCM_ENDPOINTS__MEMBERS: a.seed: "),
        (members_json(a={"timeout_seconds": None}), "ICCM_ENDPOINTS__MEMBERS: a.timeout_seconds: "),
        (members_json(a=1), "ICCM_ENDPOINTS__MEMBERS: a: "),
    ],
)
def test_overrides_of_unknown_members_or_fields_are_errors_that_name_them(
    monkeypatch: pytest.MonkeyPatch, members: str, words: str
) -> None:
    monkeypatch.setenv("ICCM_ORCHESTRA", FIRST)
    monkeypatch.setenv("ICCM_ENDPOINTS__MEMBERS", members)
    with pytest.raises(SettingsError) as raised:
        load_settings()
    assert words in str(raised.value) and "\n" not in str(raised.value)


def test_the_digest_changes_with_the_override_of_one_member() -> None:
    def load_digest(**members: object) -> str:
        limits = EndpointSettings.model_validate({"members": members})
        return load_orchestra(f"{FIRST},{SECOND}", 1, limits).digest

    changes = [{"a": {"temperature": 1}}, {"b": {"temperature": 1}}, {"a": {"seed": None}}]
    changes += [{"a": {"prompt": "Write Python."}}, {"a": {"request": {"top_k": 1}}}]
    assert len({load_digest(), *(load_digest(**members) for members in changes)}) == 6
    assert load_digest(a={"timeout_seconds": 1, "retries": 0}) == load_digest()


def keys(*addresses: str) -> list[str | None]:
    return [member.key_variable for member in load_orchestra(",".join(addresses), 1).members]


def test_the_common_key_goes_to_one_host_only_and_an_endpoints_own_key_to_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-common")
    assert keys(FIRST, FIRST.replace("8000", "8001")) == ["OPENAI_API_KEY"] * 2
    assert keys(FIRST, SECOND) == [None, None]
    monkeypatch.setenv("OPENAI_API_KEY_OTHER", "sk-other")
    assert keys(FIRST, SECOND) == ["OPENAI_API_KEY", "OPENAI_API_KEY_OTHER"]


def test_an_orchestra_of_local_reconstructors_loads_no_http_client() -> None:
    code = (
        "import sys; from iccm_assets.scoring.orchestra import load_orchestra;"
        "load_orchestra('builtin', 2).reconstruct('x');"
        "print([name for name in ('httpx2', 'openai') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
