"""Who may write to a session, as a table (C1)."""

from __future__ import annotations

import pytest

from iccm_assets.capture.session_ownership import SessionOwner, may_write, merge_owner

ANN, BOB, NOBODY = SessionOwner("ann", "t1"), SessionOwner("bob", "t1"), SessionOwner()
TOKEN, OTHER_TOKEN = SessionOwner(None, "t1"), SessionOwner(None, "t2")


@pytest.mark.parametrize(
    ("owner", "writer", "allowed"),
    [
        (ANN, ANN, True),
        (ANN, SessionOwner("ann", "t2"), True),  # a user may have several tokens
        (ANN, BOB, False),  # of the same token
        (ANN, TOKEN, True),
        (ANN, OTHER_TOKEN, False),
        (ANN, NOBODY, False),
        (TOKEN, ANN, True),
        (TOKEN, SessionOwner("ann", "t2"), False),
        (TOKEN, TOKEN, True),
        (TOKEN, OTHER_TOKEN, False),
        (TOKEN, NOBODY, False),
        (SessionOwner("ann"), NOBODY, True),  # neither has a token
        (SessionOwner("ann"), TOKEN, False),
        (SessionOwner("ann"), SessionOwner("bob"), False),
        (NOBODY, NOBODY, True),
        (NOBODY, TOKEN, True),
        (NOBODY, ANN, True),
    ],
)
def test_users_are_compared_and_without_them_tokens(owner, writer, allowed):
    assert may_write(owner, writer) == allowed


@pytest.mark.parametrize(
    ("owner", "writer", "merged"),
    [
        (NOBODY, NOBODY, NOBODY),
        (NOBODY, ANN, ANN),
        (NOBODY, TOKEN, TOKEN),
        (ANN, SessionOwner("ann", "t2"), ANN),
        (ANN, TOKEN, ANN),
        (TOKEN, ANN, ANN),
        (SessionOwner("ann"), SessionOwner("ann", "t2"), SessionOwner("ann")),
        (SessionOwner(None, "t1"), SessionOwner("bob", "t1"), SessionOwner("bob", "t1")),
    ],
)
def test_the_first_user_and_the_token_that_opened_the_session_stay(owner, writer, merged):
    assert merge_owner(owner, writer) == merged


@pytest.mark.parametrize("owner", [ANN, TOKEN, SessionOwner("ann"), NOBODY])
@pytest.mark.parametrize("writer", [ANN, BOB, TOKEN, OTHER_TOKEN, NOBODY])
def test_who_wrote_once_may_write_again(owner, writer):
    if may_write(owner, writer):
        assert may_write(merge_owner(owner, writer), writer)
