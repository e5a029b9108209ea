-- The transaction that stored a request. Ids of transactions that have ended are below the oldest running
-- one's, so a reader who counts up to that one misses nothing, however late a spool delivers. Rows from
-- before the migration have 0: a constant keeps the table from being rewritten.
alter table iccm.requests add column stored_in bigint default 0 not null;
alter table iccm.requests alter column stored_in set default (pg_current_xact_id())::text::bigint;
create index requests_rollout_id_stored_in_idx on iccm.requests (rollout_id, stored_in);
create index requests_rollout_id_assigned_arm_created_at_idx
    on iccm.requests (rollout_id, assigned_arm, created_at);

create table iccm.rollout_samples (
    rollout_id bigint not null,
    requirement_id bigint not null,
    session_key text not null,
    arm text not null,
    stage smallint not null,
    pass_rate double precision not null,
    variance double precision,
    served_at timestamptz not null,
    left_out text,
    revision bigint not null,
    constraint rollout_samples_pkey primary key (rollout_id, requirement_id),
    constraint rollout_samples_rollout_id_fkey foreign key (rollout_id) references iccm.rollouts (id),
    constraint rollout_samples_arm_check check (arm in ('production', 'canary')),
    constraint rollout_samples_pass_rate_check check (pass_rate >= 0 and pass_rate <= 1)
);
create unique index rollout_samples_one_per_session on iccm.rollout_samples (rollout_id, session_key)
    where left_out is null;
create index rollout_samples_rollout_id_served_at_idx on iccm.rollout_samples (rollout_id, served_at);
comment on table iccm.rollout_samples is
    'One scored answer of a rollout: counted as its session''s score, or left out, and why (R11).';

create table iccm.rollout_pairs (
    rollout_id bigint not null,
    item text not null,
    canary double precision not null,
    production double precision not null,
    revision bigint not null,
    constraint rollout_pairs_pkey primary key (rollout_id, item),
    constraint rollout_pairs_rollout_id_fkey foreign key (rollout_id) references iccm.rollouts (id),
    constraint rollout_pairs_canary_check check (canary >= 0 and canary <= 1),
    constraint rollout_pairs_production_check check (production >= 0 and production <= 1)
);
comment on table iccm.rollout_pairs is
    'One production-holdout item measured for both versions that a rollout has counted (R11).';

-- Scored responses only: most responses have no tests.
create index requirements_scored_answers_idx on iccm.requirements (id)
    where kind = 'model' and scored_at is not null;
