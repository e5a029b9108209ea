"""Plain names for columns, constraints, triggers and functions; table comments without contract ids.

Revision ID: 0008
Revises: 0007
"""

from alembic import op

revision = "0008"
down_revision = "0007"

# (statement, old name, new name)
_RENAMES = (
    ("alter table iccm.rollout_samples rename column {} to {}", "left_out", "exclusion_reason"),
    ("alter table iccm.requests rename column {} to {}", "stored_in", "stored_xid"),
    ("alter table iccm.pool_days rename column {} to {}", "folded_at", "rebuilt_at"),
    ("alter table iccm.alert_deliveries rename column {} to {}", "tried_at", "last_attempt_at"),
    ("alter table iccm.erasures rename column {} to {}", "scrubbed_at", "physically_erased_at"),
    ("alter table iccm.erasures rename column {} to {}", "scrub", "physical_erasure"),
    (
        "alter index iccm.{} rename to {}",
        "requests_rollout_id_stored_in_idx",
        "requests_rollout_id_stored_xid_idx",
    ),
    (
        "alter table iccm.canary_results rename constraint {} to {}",
        "canary_results_once",
        "canary_results_cache_key",
    ),
    (
        "alter table iccm.rollouts rename constraint {} to {}",
        "rollouts_two_models_check",
        "rollouts_different_versions_check",
    ),
    (
        "alter trigger {} on iccm.filtered_conversations rename to {}",
        "filtered_conversations_leave_out_erased",
        "filtered_conversations_skip_erased",
    ),
    (
        "alter trigger {} on iccm.phase4_training_data rename to {}",
        "phase4_training_data_leave_out_erased",
        "phase4_training_data_skip_erased",
    ),
    (
        "alter trigger {} on iccm.canary_results rename to {}",
        "canary_results_leave_out_erased",
        "canary_results_skip_erased",
    ),
    (
        "alter trigger {} on iccm.training_run_examples rename to {}",
        "training_run_examples_refuse_erased",
        "training_run_examples_reject_erased",
    ),
    ("alter function iccm.{}() rename to {}", "leave_out_erased", "skip_erased_conversation"),
    ("alter function iccm.{}() rename to {}", "leave_out_erased_item", "skip_erased_holdout_item"),
    ("alter function iccm.{}() rename to {}", "refuse_erased_example", "reject_erased_example"),
    ("alter function iccm.{}() rename to {}", "refuse_change", "reject_modification"),
)

_COMMENTS = {
    "alert_deliveries": "Delivery of one alert to one channel: locked, sent and marked in one transaction.",
    "alerts": "Alert outbox, one row per key; every alert is delivered at least once.",
    "canary_results": "Score of one item, reconstructor and model version, with provenance.",
    "conversations": "Conversation of one session.",
    "deployment_events": "Append-only log of state transitions and traffic changes.",
    "embeddings": "Embedding of a text, by content hash and embedder digest.",
    "erasures": "Erasure: ids, counts and times, without the erased content.",
    "feedback": "Thumbs up or down.",
    "filtered_conversations": "Conversation that passed the filter.",
    "filtered_days": "Day that the filter has processed.",
    "gate_verdicts": "Verdict of the quality gate, with its evidence.",
    "gateway_replicas": "Gateway process.",
    "model_versions": "Model version.",
    "phase4_rejections": "Rejected conversation, with the reason.",
    "phase4_training_data": "Example in the training pool.",
    "phase4_training_runs": "Retraining, from request to outcome.",
    "platform": "Facts about this platform, such as its clock settings.",
    "pool_days": "Day that is part of the training pool.",
    "quality_measurements": "Measurement of production quality.",
    "reconstructions": "Re-implementation of a requirements text, with its test results.",
    "requests": "Gateway request.",
    "requirements": "Requirements text: the model''s response, or the text the developer accepted.",
    "rollback_events": "Rollback to an earlier version.",
    "rollout_pairs": "Production-holdout item scored for both versions and counted by a rollout.",
    "rollout_samples": "Scored response in a rollout: its session''s score, or excluded with a reason.",
    "rollouts": "Progressive deployment of a candidate.",
    "training_run_examples": "Conversation used by a training run, with its role.",
}

_REJECT_ERASED_EXAMPLE = """
    create or replace function iccm.reject_erased_example() returns trigger
        language plpgsql
    as $$
    declare
        erased timestamptz;
    begin
        select c.erased_at into erased from iccm.conversations c
        where c.id = new.conversation_id
        for key share;
        if erased is not null then
            raise exception 'conversation % was erased; a training run cannot use it', new.conversation_id
                using errcode = 'integrity_constraint_violation';
        end if;
        return new;
    end
    $$
"""


def upgrade() -> None:
    for statement, old, new in _RENAMES:
        op.execute(statement.format(old, new))
    op.execute(_REJECT_ERASED_EXAMPLE)
    for table, comment in _COMMENTS.items():
        op.execute(f"comment on table iccm.{table} is '{comment}'")
    op.execute(
        "comment on function iccm.now() is"
        " 'Platform clock: the server''s clock, shifted and scaled by the row clock of iccm.platform.'"
    )


def downgrade() -> None:
    """Restore the names; comments and the message about an erased example stay."""
    for statement, old, new in reversed(_RENAMES):
        op.execute(statement.format(new, old))
