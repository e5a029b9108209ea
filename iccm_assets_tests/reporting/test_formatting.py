"""Durations and counts as people write them."""

from __future__ import annotations

import pytest

from iccm_assets.reporting.formatting import format_duration


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (60.8, "61 s"),
        (180, "3 min"),
        (7199, "120 min"),
        (9000, "2.5 h"),
        (86_400, "24 h"),
        (250_000, "2.9 days"),
        (-30, "-30 s"),
    ],
)
def test_a_duration_has_the_unit_that_suits_its_length(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text
