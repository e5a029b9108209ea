"""Erasure on a platform in use (V2)."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from iccm_assets_tests.factories.demo_platforms import Platform
from iccm_assets_tests.factories.erasure_worlds import traces

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.xdist_group("loop"),
]

TEXTS = """
    select c.id, m.text from iccm.conversations c cross join lateral (
        select jsonb_array_elements(c.content) ->> 'content' as text
        union all select c.metadata ->> 'source_code' union all select c.session_id
        union all select r.text from iccm.requirements r where r.conversation_id = c.id
        union all select n.implementation_code from iccm.reconstructions n
            join iccm.requirements r on r.id = n.requirement_id where r.conversation_id = c.id
    ) m where c.user_id {} :user and m.text is not null
    union all select 0, requirements from iccm.canary_results where {}
"""


def own_lines(platform: Platform, user: str) -> list[str]:
    """Lines that only this user's conversations hold, some of each."""
    others = "\n".join(
        text for _, text in platform.rows(TEXTS.format("is distinct from", "set = 'canary_set'"), user=user)
    )
    lines: dict[int, list[str]] = {}
    for number, text in platform.rows(TEXTS.format("=", "false"), user=user):
        for line in text.splitlines():
            if len(line.strip()) >= 12 and line not in others and line not in lines.setdefault(number, []):
                lines[number].append(line)
    return [line for own in lines.values() for line in own[:12]]


def test_an_erased_user_leaves_no_trace_and_the_replacement_is_trained_without_them(
    platform_copy: Platform,
) -> None:
    platform = platform_copy
    [[candidate, base, user]] = platform.rows(
        """
        select r.candidate_version, r.base_version, c.user_id from iccm.phase4_training_runs r
        join iccm.training_run_examples e on e.training_run_id = r.id
        join iccm.conversations c on c.id = e.conversation_id
        where r.candidate_version is not null and r.requested_base is null
        group by 1, 2, 3 order by min(r.id), count(*) desc limit 1
        """
    )
    sought = [*own_lines(platform, user), user]
    engine = platform.engine
    before = traces(platform.home, engine, *sought)
    dagster = [place for place in before if place.startswith(("dagster/", "iccm_dagster."))]
    assert len(sought) > 10 and "iccm.iccm.conversations" in before
    assert dagster == []  # ids and numbers only, from the start

    preview = platform.json("erase", "--user", user, "--dry-run")
    assert traces(platform.home, engine, user) != []
    done = platform.json("erase", "--user", user, "--yes")

    assert traces(platform.home, engine, *sought) == []
    engine.dispose()
    assert (preview["conversations"], preview["rows"]) == (done["conversations"], done["rows"])
    assert candidate in [row["version"] for row in done["versions"]]
    serving = platform.production()
    if serving == candidate:
        assert [(row["version"], row["base"]) for row in done["replacements"]] == [(candidate, base)]
    platform.iccm("retrain", "--base", base, "--reason", "replacement")  # the gate may well refuse it
    [[replacement, parent, status]] = platform.rows(
        """
        select candidate_version, base_version, status from iccm.phase4_training_runs
        where requested_base is not null order by id desc limit 1
        """
    )
    assert replacement is not None and parent == base, status
    lineage = platform.json("lineage", replacement)
    used = {row["conversation_id"] for row in lineage["conversations"]}
    assert used and not used & set(done["conversations"])
    assert [row["version"] for row in lineage["ancestry"]] == [replacement, base]
    again = platform.iccm("erase", "--user", user, "--yes")
    assert again.returncode == 0 and "Erased before" in again.stdout
    unknown = platform.iccm("erase", "--user", "nobody'; drop table iccm.conversations; --", "--yes")
    assert unknown.returncode == 1 and "there is no user" in unknown.stderr
    with platform.engine.connect() as conn:
        assert conn.execute(sa.text("select count(*) from iccm.conversations")).scalar_one() > 0
