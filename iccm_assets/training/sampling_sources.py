"""The sources that a model answers for itself: recent ones with a suite that is evidence (L12)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from iccm_assets.capture.extraction import find_source
from iccm_assets.curation.code_fingerprints import content_sha256
from iccm_assets.curation.filter_policy import is_in_holdout
from iccm_assets.errors import TestSuiteError
from iccm_assets.settings import CurationSettings
from iccm_assets.suites.test_suites import Suite, parse_suite


@dataclass(frozen=True)
class AnsweredSource:
    """A conversation's source with the suite that its texts were scored on, and who owns it."""

    conversation_id: int
    user_id: str | None
    token_name: str | None
    is_simulated: bool
    source_code: str
    source_sha256: str
    suite: Suite
    suite_sha256: str


# A score says that its suite was measured and is usable. The accepted text's suite comes first.
_SOURCES = sa.text(
    """
    select distinct on (c.id) c.id, c.session_id, c.user_id, c.token_name, c.content, c.metadata,
        c.origin = 'simulated' or c.metadata -> 'simulated' is not distinct from 'true'::jsonb as simulated,
        r.source_sha256, r.test_suite, r.test_suite ->> 'kind' as evidence, r.test_suite_origin
    from iccm.conversations c join iccm.requirements r on r.session_id = c.session_id
    where c.id = any(:ids) and c.erased_at is null and r.test_suite is not null
        and r.test_pass_rate is not null and r.source_sha256 is not null
    order by c.id, r.kind = 'accepted' desc, r.id desc
    """
)


def load_sources(
    conn: sa.Connection, conversation_ids: Sequence[int], curation: CurationSettings
) -> list[AnsweredSource]:
    """Load the sources of these conversations that may teach, in the order of the ids.

    Left out are conversations that are erased or held out, and those whose suite is not scored yet, or of a
    kind or an origin that may not teach.
    """
    rows = {row.id: row for row in conn.execute(_SOURCES, {"ids": list(conversation_ids)})}
    sources = []
    for row in (rows[number] for number in conversation_ids if number in rows):
        is_allowed = (
            row.evidence in curation.allowed_evidence
            and row.test_suite_origin in curation.allowed_suite_origins
            and not is_in_holdout(row.session_id, curation.holdout_fraction)
        )
        if is_allowed and (source := _build_source(row)) is not None:
            sources.append(source)
    return sources


def _build_source(row: sa.Row) -> AnsweredSource | None:  # type: ignore[type-arg]
    source = find_source(row.content, row.metadata, row.source_sha256)
    try:
        suite = parse_suite(row.test_suite)
    except TestSuiteError:
        return None  # the reconstructions asset reports it
    if source is None:
        return None
    document = json.dumps(row.test_suite, sort_keys=True)
    return AnsweredSource(
        row.id,
        row.user_id,
        row.token_name,
        bool(row.simulated),
        source,
        row.source_sha256,
        suite,
        content_sha256(document),
    )
