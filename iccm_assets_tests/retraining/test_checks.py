"""The check of the cap on a user's share: yellow only where the cap stops a retrain."""

from __future__ import annotations

import pytest

from iccm_assets.retraining.checks import check_user_cap
from iccm_assets.retraining.example_selection import max_fair_selection
from iccm_assets.settings import SelectionSettings


@pytest.mark.parametrize(
    ("examples_by_user", "passed"),
    [
        ([], True),  # nothing has arrived yet
        ([49], True),  # too few without the cap, too
        ([5] * 20, True),
        ([9] * 9 + [30], True),  # the cap binds and leaves enough
        ([60, 1, 1, 1, 1], False),
        ([500] + [1] * 20, False),
    ],
)
def test_the_cap_is_reported_only_where_it_leaves_too_few(examples_by_user: list[int], passed: bool) -> None:
    share = max_fair_selection(examples_by_user, None, SelectionSettings())
    result = check_user_cap(share, 50)
    assert result.passed == passed, result.description
    assert f"{share.size} of {sum(examples_by_user)} new examples" in result.description
    assert passed or ("cap" in result.description and "MAX_USER_SHARE" in result.recovery)
    assert result.severity == "warning"
