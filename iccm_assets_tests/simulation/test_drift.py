"""The drift of the domain mix: syntax and meaning (X4)."""

from __future__ import annotations

import pytest

from iccm_assets.errors import InputError
from iccm_assets.simulation.developers.drift import Drift, make_weekly_drift, parse_drift
from iccm_assets.simulation.language.families import NEW_FAMILIES

NEW = ("cycle", "ledger", "shares")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0.2:0.7", Drift(0.2, 0.7)),
        ("0.3", Drift(0.3, 0.3)),
        ("cycle@10", Drift(appears=(("cycle", 10),))),
        (" 0:1 , ledger@3 ,cycle@30", Drift(0.0, 1.0, (("cycle", 30), ("ledger", 3)))),
    ],
)
def test_shares_and_appearances_are_parsed_in_any_order(text: str, expected: Drift) -> None:
    assert parse_drift(text, NEW, 30) == expected


@pytest.mark.parametrize(
    "text",
    ["", ",", "x", "0.2:", ":0.2", "0.2:1.1", "-0.1", "nan", "inf:0", "0.1:0.2:0.3", "0.1,0.2", "cycle@0",
     "cycle@31", "cycle@", "cycle@x", "cycle@1.5", "cycle@٣", "@3", "tiers@3", "cycle@3,cycle@4",
     "cycle@" + "9" * 5000],
)  # fmt: skip
def test_an_invalid_drift_is_rejected_in_one_line(text: str) -> None:
    with pytest.raises(InputError) as refused:
        parse_drift(text, NEW, 30)
    assert "--drift" in str(refused.value) and "\n" not in str(refused.value)


def test_the_share_is_interpolated_linearly() -> None:
    drift = Drift(0.2, 0.6)
    assert [round(drift.get_share(day, 5), 6) for day in (1, 3, 5)] == [0.2, 0.4, 0.6]
    assert drift.get_share(1, 1) == 0.2


def test_one_week_does_not_drift_and_in_three_a_third_of_the_domains_appears_later() -> None:
    assert make_weekly_drift(NEW, 1) == Drift()
    drift = make_weekly_drift(NEW, 3)
    assert drift.start < drift.end
    assert [len(drift.list_present(day, NEW)) for day in (1, 7, 8, 14, 15, 21)] == [2, 2, 3, 3, 3, 3]
    drift = make_weekly_drift(NEW_FAMILIES, 3)
    assert [len(drift.list_present(day, NEW_FAMILIES)) for day in (1, 7, 8, 14, 15, 21)] == [4, 4, 5, 5, 6, 6]
