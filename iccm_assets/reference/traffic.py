"""Simulated traffic: developers ask, the production model answers, the conversations are captured (X4).

In process: the model is asked directly and conversations go through the capture module, the same one every
other entrance uses. The seed makes the sessions; asking the same model again gives the same conversations.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import date

import sqlalchemy as sa

from iccm_assets.capture.conversations import Answer, Conversation, record
from iccm_assets.learning.versions import ModelVersion
from iccm_assets.reference.developers import FinishedConversation, PlannedSession, finish, plan_conversations
from iccm_assets.settings import Settings

BATCH = 32


@dataclass(frozen=True)
class Traffic:
    """What a simulation brought: sessions and their users, and how the developers took the answers."""

    version: str
    conversations: int
    users: int
    new_domain: int
    accepted_as_is: int
    corrected: int
    thumbs_up: int
    thumbs_down: int


def simulate(
    engine: sa.Engine,
    settings: Settings,
    version: ModelVersion,
    *,
    conversations: int,
    days: int,
    end: date,
    seed: int,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> Traffic:
    """Let developers hold `conversations` sessions with a version on the `days` days up to `end` (UTC).

    Raises ``ModelNotFound`` or ``DamagedCheckpoint``; every batch of conversations is one transaction.
    """
    from iccm_assets.models.seq import generate, load_model, set_threads

    plan = plan_conversations(seed, n=conversations, days=days, end=end)
    set_threads(settings.training.threads)
    loaded = load_model(version.path)
    finished: list[FinishedConversation] = []
    for start in range(0, len(plan), BATCH):
        batch = plan[start : start + BATCH]
        answers = generate(
            loaded,
            [session.source_code for session in batch],
            max_new_tokens=settings.evaluation.max_new_tokens,
            batch_size=BATCH,
        )
        done = [finish(session, answer.text) for session, answer in zip(batch, answers, strict=True)]
        with engine.begin() as conn:
            for conversation in done:
                record(conn, _captured(conversation, version.version), settings=settings)
        finished += done
        progress("conversations", len(finished), len(plan))
    return _summary(version.version, plan, finished)


def _captured(conversation: FinishedConversation, version: str) -> Conversation:
    answer = Answer(
        request_id=f"{conversation.session_id}/1",
        text=conversation.answer,
        model_version=version,
        arm="production",
    )
    return Conversation(
        session_id=conversation.session_id,
        messages=list(conversation.messages),
        user_id=conversation.user_id,
        timestamp=conversation.timestamp,
        metadata=conversation.metadata,
        origin="simulated",
        requirements=conversation.requirements,
        source_code=conversation.source_code,
        test_suite=conversation.test_suite,
        answers=(answer,),
        rating=conversation.rating,
    )


def _summary(version: str, plan: list[PlannedSession], finished: list[FinishedConversation]) -> Traffic:
    as_is = sum(one.requirements == one.answer for one in finished)
    return Traffic(
        version=version,
        conversations=len(finished),
        users=len({one.user_id for one in finished}),
        new_domain=sum(session.new_domain for session in plan),
        accepted_as_is=as_is,
        corrected=len(finished) - as_is,
        thumbs_up=sum(one.rating == 1 for one in finished),
        thumbs_down=sum(one.rating == -1 for one in finished),
    )
