"""One orchestra with members of every dialect: right code scores 1, and what is missing says why (O3)."""

from __future__ import annotations

import json

import pytest

from iccm_assets.cli.orchestra import check
from iccm_assets.errors import OrchestraError
from iccm_assets.scoring.orchestra import load_orchestra, load_orchestra_from_settings
from iccm_assets.scoring.scoring import ScoringTask, score_texts
from iccm_assets.settings import EndpointSettings, Settings, get_settings, load_settings
from iccm_assets.suites.test_suites import parse_suite
from iccm_assets_tests.factories.chat_dialects import (
    MEMBER_SETTINGS,
    MISSING,
    OTHER_CODE,
    RIGHT,
    fenced,
    run_stub,
    says,
)

TEXT = (
    "The function `rate` shall take `weight`. When `weight` is less than 3, it shall return 5. "
    "Otherwise it shall return 9."
)
SUITE = parse_suite(
    {
        "kind": "cases",
        "cases": [{"call": "rate", "args": [n], "expect": 5 if n < 3 else 9} for n in (1, 2, 3, 4)],
    }
)


def test_every_member_of_one_orchestra_is_scored_rightly(
    monkeypatch: pytest.MonkeyPatch, settings: Settings
) -> None:
    missing = {model: dialect for model, (dialect, _, _) in MISSING.items()}
    wrong = {"wrong": says(fenced(OTHER_CODE))}
    with run_stub({**RIGHT, **missing, **wrong}) as stub:
        monkeypatch.setenv("ICCM_ORCHESTRA", stub.members)
        monkeypatch.setenv("ICCM_ENDPOINTS__MEMBERS", json.dumps(MEMBER_SETTINGS))
        orchestra = load_orchestra_from_settings(load_settings(home=settings.home))
        [score] = score_texts([ScoringTask(TEXT, SUITE)], orchestra, settings)
    members = {member.reconstructor.partition("#")[2]: member for member in score.members}
    assert len(members) == len(RIGHT) + len(MISSING) + 1 >= 80
    assert {name: members[name].test_pass_rate for name in RIGHT} == dict.fromkeys(RIGHT, 1.0), {
        name: members[name].detail for name in RIGHT if members[name].test_pass_rate != 1.0
    }
    reasons = {name: members[name].detail for name in MISSING}
    assert {members[name].status for name in MISSING} == {"missing"}
    assert {name: reason for name, reason in reasons.items() if MISSING[name][1] not in reason} == {}
    expected = {name: requests for name, (_, _, requests) in MISSING.items()}
    assert {name: stub.counts[name] for name in MISSING} == expected
    assert (members["wrong"].status, members["wrong"].test_pass_rate) == ("scored", 0.0)
    repeated = {name for name in RIGHT if stub.counts[name] > 1}
    assert repeated == {name for name in RIGHT if name.endswith("-once")}


def test_the_check_fails_and_names_a_member_that_answers_a_trivial_text_wrongly(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    half = "def rate(weight):\n    return 5\n"
    dialects = {"right": RIGHT["plain"], "wrong": says(fenced(OTHER_CODE)), "half": says(fenced(half))}
    with run_stub({**dialects, "absent": MISSING["html"][0]}) as stub:
        monkeypatch.setenv("ICCM_ORCHESTRA", stub.members)
        monkeypatch.setenv("ICCM_ENDPOINTS__RETRIES", "0")
        get_settings.cache_clear()
        try:
            with pytest.raises(OrchestraError, match="2 members implement a trivial text wrongly") as raised:
                check(as_json=True)
            report = json.loads(capsys.readouterr().out)
            with pytest.raises(OrchestraError):
                check()
            printed = capsys.readouterr().out.splitlines()
            monkeypatch.setenv("ICCM_ORCHESTRA", f"openai:{stub.url}#right,builtin")
            get_settings.cache_clear()
            check(as_json=True)
            assert json.loads(capsys.readouterr().out)["ok"]
        finally:
            get_settings.cache_clear()
    assert (
        "#wrong" in str(raised.value) and "#half" in str(raised.value) and "#right" not in str(raised.value)
    )
    assert not report["ok"]
    assert [member["test_pass_rate"] for member in report["members"]] == [1.0, 0.0, 0.5, None]
    assert [line.split()[0] for line in printed if line.startswith(("ok", "wrong", "missing"))] == [
        "ok", "wrong", "wrong", "missing",
    ]  # fmt: skip


def test_a_retry_shows_the_model_its_answer_and_what_was_wrong_with_it() -> None:
    with run_stub({"prose": MISSING["prose"][0], "error": MISSING["choice-error"][0]}) as stub:
        load_orchestra(stub.members, 1, EndpointSettings(system_prompt="Be brief.")).reconstruct(TEXT)
    first, second = (request["messages"] for request in stub.requests["prose"])
    assert [message["role"] for message in first] == ["system", "user"]
    assert second[:2] == first
    assert second[2] == {"role": "assistant", "content": "I would return 5."}
    assert second[3]["role"] == "user" and "no code block in the answer" in second[3]["content"]
    assert "single fenced Python code block" in second[3]["content"]
    # A failure of the endpoint is none of the answer: the same request is sent again.
    assert [request["messages"] for request in stub.requests["error"]] == [
        stub.requests["error"][0]["messages"]
    ] * 3


def test_a_failure_inside_of_a_choice_opens_the_circuit_breaker() -> None:
    limits = EndpointSettings(retries=0, circuit_breaker_failures=2)
    with run_stub({"error": MISSING["choice-error"][0]}) as stub:
        orchestra = load_orchestra(stub.members, 1, limits)
        answers = [orchestra.reconstruct(TEXT)[0] for _ in range(4)]
    assert stub.counts["error"] == 2
    assert answers[-1].detail.startswith("skipped after 2 consecutive failures, the last: the model failed")
