"""`iccm simulate` and the several weeks of `iccm demo`: dates, drift, repeated sessions (X4)."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa
from typer.testing import CliRunner

from iccm_assets.cli import simulate
from iccm_assets.cli.main import build_app
from iccm_assets.demo import weekly_cycle
from iccm_assets.errors import InputError
from iccm_assets.settings import Settings, get_settings
from iccm_assets.simulation.language.families import BASE_FAMILIES, NEW_FAMILIES

YESTERDAY = datetime.now(UTC).date() - timedelta(days=1)


def call(*arguments: str) -> str:
    app = build_app("simulate", "demo")
    get_settings.cache_clear()
    try:
        result = CliRunner().invoke(app, arguments)
    finally:
        get_settings.cache_clear()
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


def stored(engine: sa.Engine) -> list[tuple[object, ...]]:
    query = """
        select c.session_id, c.xmin::text, c.timestamp, c.user_id, r.id, r.kind, r.text, r.created_at
        from iccm.conversations c join iccm.requirements r on r.conversation_id = c.id order by 1, r.kind
    """
    with engine.connect() as conn:
        return [tuple(row) for row in conn.execute(sa.text(query))]


@pytest.mark.slow
def test_the_same_seed_and_dates_repeat_the_same_sessions(engine: sa.Engine, platform: Settings) -> None:
    arguments = (
        "simulate",
        "--conversations",
        "8",
        "--users",
        "5",
        "--end",
        str(YESTERDAY),
        "--days",
        "3",
        "--json",
    )
    report = json.loads(call(*arguments))
    assert report["conversations"] == 8 and report["users"] == 5
    assert report["first_day"] == str(YESTERDAY - timedelta(days=2))
    assert report["accepted_as_is"] + report["corrected"] + report["open"] == 8
    assert report["gateway"]["arms"] == {"production": 8} and not report["gateway"]["failures"]
    before = stored(engine)
    assert len({row[0] for row in before}) == 8
    assert json.loads(call(*arguments)) == report
    assert stored(engine) == before
    call(*arguments[:-2], "2", "--json")
    assert len({row[0] for row in stored(engine)}) == 16


@pytest.mark.slow
def test_the_mix_of_domains_can_be_chosen(platform: Settings) -> None:
    new = NEW_FAMILIES[-1]
    report = json.loads(
        call(
            "simulate", "--conversations", "4", "--drift", "1", "--new-domains", new, "--seed", "3", "--json"
        )
    )
    assert report["domains"] == {new: 4} and report["new_domain"] == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--drift", "0.2:2"), "between 0 and 1"),
        (("--drift", f"{BASE_FAMILIES[0]}@2"), "is not a new domain"),
        (("--drift", f"{NEW_FAMILIES[0]}@8"), "from 1 to 7"),
        (("--new-domains", "nowhere"), "is not a new domain"),
        (("--end", "tomorrow"), "not a date"),
        (("--start", "9999-12-31"), "no daily partition"),
        (("--end", "0001-01-01"), "no daily partition"),
        (("--start", str(YESTERDAY), "--end", str(YESTERDAY - timedelta(days=1))), "is after"),
        (("--start", str(YESTERDAY), "--end", str(YESTERDAY), "--days", "3"), "are 1 days, not 3"),
    ],
)
def test_invalid_options_are_rejected_before_anything_is_stored(
    engine: sa.Engine, platform: Settings, arguments: tuple[str, ...], message: str
) -> None:
    with pytest.raises(InputError) as caught:
        call("simulate", *arguments)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert stored(engine) == []


def test_two_of_start_end_and_days_determine_the_third() -> None:
    first = YESTERDAY - timedelta(days=9)
    default = simulate.parse_period("", "", None)
    assert default[1] - default[0] == timedelta(days=6)
    assert default[1] >= YESTERDAY  # midnight may have passed since
    assert simulate.parse_period(str(first), "", None) == (first, first + timedelta(days=6))
    assert simulate.parse_period(str(first), "", 3) == (first, first + timedelta(days=2))
    assert simulate.parse_period("", str(first), 2) == (first - timedelta(days=1), first)
    assert simulate.parse_period(str(first), str(YESTERDAY), None) == (first, YESTERDAY)


def test_several_weeks_require_seven_days_each(platform: Settings) -> None:
    with pytest.raises(InputError, match="weeks of 7 days, not 3"):
        call("demo", "--weeks", "2", "--days", "3")


def test_a_demo_ends_at_the_last_trigger_time() -> None:
    assert weekly_cycle.last_trigger_time(datetime(2026, 3, 2, 1, 59, tzinfo=UTC)) == datetime(
        2026, 3, 1, 2, tzinfo=UTC
    )
    assert weekly_cycle.last_trigger_time(datetime(2026, 3, 2, 2, 0, tzinfo=UTC)) == datetime(
        2026, 3, 2, 2, tzinfo=UTC
    )
