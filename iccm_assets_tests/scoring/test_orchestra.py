"""The orchestra: its members, and what its digest depends on (O1)."""

from __future__ import annotations

import subprocess
import sys

import pytest

from iccm_assets.errors import OrchestraError, SettingsError
from iccm_assets.scoring.orchestra import LocalReconstructor, Orchestra, load_orchestra
from iccm_assets.settings import EndpointSettings, load_settings

FIRST, SECOND = "openai:http://one:8000/v1#a", "openai:https://other/v1#b"


def test_the_builtin_orchestra_has_at_least_three_members_with_names_of_their_own() -> None:
    orchestra = load_orchestra("builtin", quorum=2)
    assert len(orchestra.members) >= 3
    assert len({member.name for member in orchestra.members}) == len(orchestra.members)


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
