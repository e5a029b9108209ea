"""Scores through faulty endpoints, in the database: right or null, and the totals add up (O1, E3)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from datetime import date
from statistics import fmean, pvariance
from typing import Any

import psutil
import pytest
import sqlalchemy as sa

from iccm_assets.cli.orchestra import check, serve
from iccm_assets.db import tables as t
from iccm_assets.errors import AddressError, InputError, OrchestraError
from iccm_assets.scoring import scoring_pass
from iccm_assets.scoring.orchestra import LocalReconstructor, Orchestra, load_orchestra
from iccm_assets.scoring.scoring import ScoringTask, score_texts
from iccm_assets.scoring.scoring_pass import score_unscored
from iccm_assets.scoring.scoring_queue import count_rows, unscored_requirements
from iccm_assets.settings import EndpointSettings, Settings, get_settings
from iccm_assets.simulation.reconstructors import RECONSTRUCTORS
from iccm_assets.simulation.reconstructors.fault_injection import FAULTS
from iccm_assets.simulation.reconstructors.mock_endpoint import FaultConfig, MockEndpoint
from iccm_assets.suites.test_suites import parse_suite
from iccm_assets_tests.factories.processes import killed_at_the_end
from iccm_assets_tests.factories.scorable_rows import put_conversation

SOURCE = "def rate(weight):\n    if weight < 3:\n        return 5\n    return 9\n"
SUITE = {
    "kind": "cases",
    "cases": [{"call": "rate", "args": [n], "expect": 5 if n < 3 else 9} for n in (-7, 0, 2, 3, 4, 50)],
}
# Understood alike by all three reconstructors, by each in its own way, or by none.
PHRASES = ("less than 3", "less than about 3", "less than 4", "less than a certain limit")
TIMEOUT_SECONDS = 240  # only ends a broken test
DAY = (date(2026, 3, 1), date(2026, 3, 1))


def text(number: int) -> str:
    if number % 20 == 19:
        return f"Please make the report number {number} nicer."
    phrase, spare = PHRASES[number % len(PHRASES)], number + 100
    return (
        f"The function `rate` shall take `weight`. When `weight` is {phrase}, it shall return 5. "
        f"When `weight` is greater than {spare}, it shall return {spare}. Otherwise it shall return 9."
    )


def load_rows(engine: sa.Engine) -> dict[str, dict[str, Any]]:
    """Load the requirements rows by text; `members` holds the reconstructions by the model's name."""
    r, rc = t.requirements, t.reconstructions
    with engine.connect() as conn:
        rows = {row["id"]: {**row, "members": {}} for row in conn.execute(sa.select(r)).mappings()}
        for row in conn.execute(sa.select(rc)).mappings():
            name = row["reconstructor"].replace("/", "#").rpartition("#")[2]
            rows[row["requirement_id"]]["members"][name] = row
    return {row["text"]: row for row in rows.values()}


@pytest.mark.slow
def test_a_faulty_endpoint_never_turns_into_a_wrong_score(engine: sa.Engine, settings: Settings) -> None:
    texts = [text(number) for number in range(104)]
    for number, requirements in enumerate(texts):
        put_conversation(engine, settings, f"s{number}", suite=SUITE, source=SOURCE, text=requirements)
    # The number in a text is out of the suite's reach: texts of one phrase score alike.
    tasks = [ScoringTask(requirements, parse_suite(SUITE)) for requirements in texts[: len(PHRASES)]]
    scores = score_texts(tasks, load_orchestra("builtin", 2), settings)
    truth = [{m.reconstructor.partition("/")[2]: m.test_pass_rate for m in score.members} for score in scores]

    faults = FaultConfig(dict.fromkeys(FAULTS, 0.04), slow_seconds=0.1, retry_after_seconds=0.05)
    limits = EndpointSettings(timeout_seconds=1.5, retries=1, concurrency=16, circuit_breaker_failures=1000)
    with MockEndpoint(faults) as endpoint:
        report = score_unscored(engine, load_orchestra(endpoint.members, 2, limits), settings)

    statuses: Counter[str] = Counter()
    stored = load_rows(engine)
    for number, requirements in enumerate(texts):
        row, right = stored[requirements], truth[number % len(PHRASES)]
        assert set(row["members"]) == set(RECONSTRUCTORS)
        statuses.update(member["status"] for member in row["members"].values())
        answered = [name for name in RECONSTRUCTORS if row["members"][name]["status"] != "missing"]
        for name in answered:
            assert (
                row["members"][name]["implementation_code"].rstrip()
                == RECONSTRUCTORS[name](requirements).rstrip()
            )
            assert row["members"][name]["test_pass_rate"] == right[name]
        for name in set(RECONSTRUCTORS) - set(answered):
            assert row["members"][name]["test_pass_rate"] is None and row["members"][name]["reason"]
        rates = [right[name] for name in answered]
        if len(rates) >= 2:
            assert row["test_pass_rate"] == pytest.approx(fmean(rates), abs=1e-12)
            assert row["implementation_variance"] == pytest.approx(pvariance(rates), abs=1e-12)
        else:
            assert (row["test_pass_rate"], row["implementation_variance"]) == (None, None)
            assert f"{len(rates)} of 3 members gave a score, the quorum is 2" in row["evidence"]["reason"]

    nulls = sum(row["test_pass_rate"] is None for row in stored.values())
    assert (report.scored, report.inconclusive) == (len(texts) - nulls, nulls)
    assert nulls >= 10 and report.scored >= 10, "the faults were too few or too many to show anything"
    assert len({row["test_pass_rate"] for row in stored.values()}) >= 3
    assert statuses.total() == report.answers.total() == 3 * len(texts)
    assert statuses["missing"] == report.answers["missing"] > 50
    assert statuses["scored"] == report.answers["answered"]


def count_requests(endpoint: MockEndpoint) -> int:
    return endpoint.config.request_counts.total()


def test_only_the_members_that_were_missing_are_asked_again(engine: sa.Engine, settings: Settings) -> None:
    for number in range(5):
        put_conversation(engine, settings, f"s{number}", suite=SUITE, source=SOURCE, text=text(number))
    limits = EndpointSettings(retries=0, timeout_seconds=60, circuit_breaker_failures=1000)
    with MockEndpoint() as alive, MockEndpoint(FaultConfig({"500": 1.0})) as failing:
        spec = f"openai:{alive.url}#strict,openai:{alive.url}#literal,openai:{failing.url}#lenient"
        orchestra = load_orchestra(spec, 3, limits)
        assert score_unscored(engine, orchestra, settings).inconclusive == 5
        first = {row["id"]: row["scored_at"] for row in load_rows(engine).values()}
        assert (count_requests(alive), count_requests(failing)) == (10, 5)

        assert score_unscored(engine, orchestra, settings).inconclusive == 5
        assert (count_requests(alive), count_requests(failing)) == (10, 10)
        again = load_rows(engine).values()
        assert {row["evidence"]["attempts"] for row in again} == {2}
        assert {row["id"]: row["scored_at"] for row in again} == first, "nothing a filter reads has changed"

        assert count_rows(engine, unscored_requirements()) == 0, (
            "twice in a row is enough: the third time has to wait"
        )
        assert count_rows(engine, unscored_requirements(DAY)) == 5, (
            "a day asked for by name waits for nothing"
        )
        failing.config.faults = {}
        # The same as moving the platform's clock on by the wait.
        with engine.begin() as conn:
            conn.execute(
                sa.text(
                    "update iccm.requirements set evidence = jsonb_set(evidence, '{tried_at}',"
                    " to_jsonb(iccm.now() - interval '11 minutes'))"
                )
            )
        report = score_unscored(engine, load_orchestra(spec, 3, limits), settings)
        assert (report.scored, count_requests(alive), count_requests(failing)) == (5, 10, 15)
    assert not any("reason" in (row["evidence"] or {}) for row in load_rows(engine).values())
    assert count_rows(engine, unscored_requirements(DAY)) == 0


def test_another_orchestra_reuses_no_answers_and_leaves_no_old_rows(
    engine: sa.Engine, settings: Settings
) -> None:
    put_conversation(engine, settings, "s", suite=SUITE, source=SOURCE, text=text(0))
    with MockEndpoint() as alive:
        dead = "openai:http://127.0.0.1:9/v1#strict"
        limits = EndpointSettings(retries=0)
        score_unscored(engine, load_orchestra(f"openai:{alive.url}#strict,{dead}", 2, limits), settings)
        other = load_orchestra(
            f"openai:{alive.url}#strict,builtin", 2, limits.model_copy(update={"temperature": 1.0})
        )
        assert score_unscored(engine, other, settings).scored == 1
        assert count_requests(alive) == 2
    with engine.connect() as conn:
        names = set(conn.execute(sa.select(t.reconstructions.c.reconstructor)).scalars())
    assert names == {member.name for member in other.members}


def test_an_inconclusive_score_of_another_cause_is_not_retried(engine: sa.Engine, settings: Settings) -> None:
    put_conversation(engine, settings, "s", suite=SUITE, source=SOURCE, text=text(0))
    small = Orchestra((LocalReconstructor("strict", RECONSTRUCTORS["strict"]),), quorum=2)
    assert score_unscored(engine, small, settings).inconclusive == 1
    assert count_rows(engine, unscored_requirements(DAY)) == 0


SCORER = """
import sys
from iccm_assets.scoring.orchestra import load_orchestra
from iccm_assets.scoring.scoring_pass import score_unscored
from iccm_assets.settings import EndpointSettings, load_settings
from iccm_assets.db.database import create_engine_for
settings = load_settings()
limits = EndpointSettings(concurrency=4, timeout_seconds=30)
score_unscored(create_engine_for(settings.database_url), load_orchestra(sys.argv[1], 2, limits), settings)
"""


def load_scored_ids(engine: sa.Engine) -> set[int]:
    with engine.connect() as conn:
        return set(
            conn.execute(
                sa.select(t.requirements.c.id).where(t.requirements.c.scored_at.is_not(None))
            ).scalars()
        )


@pytest.mark.slow
def test_an_interrupt_keeps_the_stored_scores_and_the_next_pass_requests_only_the_rest(
    engine: sa.Engine, settings: Settings
) -> None:
    count = 40
    for number in range(count):
        put_conversation(
            engine,
            settings,
            f"s{number}",
            suite=SUITE,
            source=SOURCE,
            text=text(0).replace("100", str(1000 + number)),
        )
    environment = {
        **os.environ,
        "ICCM_DATABASE_URL": str(settings.database_url),
        "ICCM_HOME": str(settings.home),
    }
    with MockEndpoint(FaultConfig({"slow": 1.0}, slow_seconds=0.1)) as endpoint:
        command = [sys.executable, "-c", SCORER, endpoint.members]
        with killed_at_the_end(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
            while process.poll() is None and not load_scored_ids(engine):
                time.sleep(0.05)
            endpoint.config.slow_seconds = 20  # nothing more is scored before the signal arrives
            process.send_signal(signal.SIGINT)
            _, stderr = process.communicate(timeout=TIMEOUT_SECONDS)
        before = load_scored_ids(engine)
        assert stderr.rstrip().endswith("KeyboardInterrupt"), stderr
        assert scoring_pass.BATCH_SIZE <= len(before) < count
        requests_before = count_requests(endpoint)
        endpoint.config.faults = {}
        limits = EndpointSettings(timeout_seconds=30)
        report = score_unscored(engine, load_orchestra(endpoint.members, 2, limits), settings)
        assert report.scored == count - len(before)
        assert count_requests(endpoint) - requests_before == 3 * (count - len(before))
    assert len(load_scored_ids(engine)) == count
    assert not [child for child in psutil.Process().children(recursive=True) if child.pid == process.pid]


def test_the_command_line_serves_the_reconstructors_and_asks_every_member_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    iccm = "from iccm_assets.cli.main import main; main()"
    command = [sys.executable, "-c", iccm, "orchestra", "serve", "--port", "0"]
    with killed_at_the_end(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        spec = server.stdout.readline().strip().removeprefix("ICCM_ORCHESTRA=")
        try:
            monkeypatch.setenv("ICCM_ORCHESTRA", f"{spec},openai:http://127.0.0.1:9/v1#dead")
            get_settings.cache_clear()
            check(as_json=True)
            report = json.loads(capsys.readouterr().out)
            assert [member["test_pass_rate"] for member in report["members"]] == [1.0, 1.0, 1.0, None]
            assert report["ok"] and "ConnectError" in report["members"][-1]["detail"]
            monkeypatch.setenv("ICCM_ORCHESTRA_QUORUM", "4")
            get_settings.cache_clear()
            with pytest.raises(OrchestraError, match="3 members gave a score, the quorum is 4"):
                check()
        finally:
            get_settings.cache_clear()
        server.send_signal(signal.SIGINT)
        assert server.wait(timeout=TIMEOUT_SECONDS) == 0


@pytest.mark.parametrize(
    ("faults", "words"),
    [
        ("sloth=1", "unknown fault 'sloth'"),
        ("slow=0.7,hang=0.7", "at most 1"),
        ("slow=nan", "between 0 and 1"),
        ("slow=-1", "between 0 and 1"),
        ("slow=often", "not a number"),
    ],
)
def test_invalid_faults_are_rejected_in_one_line(faults: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        serve(fault=faults, port=0)


def test_a_port_in_use_is_rejected_in_one_line() -> None:
    with MockEndpoint() as endpoint, pytest.raises(AddressError, match="cannot listen on"):
        serve(port=int(endpoint.url.split(":")[2].split("/")[0]))
