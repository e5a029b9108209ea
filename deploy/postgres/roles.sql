-- Roles for an external PostgreSQL (15 or newer, with pgvector), one for each kind of process. A superuser runs it once,
-- with psql 15 or newer; running it again changes the passwords and nothing else:
--
--   export OWNER_PASSWORD=… PLATFORM_PASSWORD=… GATEWAY_PASSWORD=… READ_ONLY_PASSWORD=…
--   psql -f deploy/postgres/roles.sql postgres
--
-- iccm_owner      owns the database and the schema: `iccm db upgrade`, `iccm restore`
-- iccm_platform   reads and writes all rows, owns Dagster's database: code locations, runs, commands of people
-- iccm_gateway    stores what `iccm serve` records
-- iccm_read_only  reads
--
-- The rights on tables are granted by each `iccm db upgrade` (iccm_assets/db/roles.py).
\set ON_ERROR_STOP on
\getenv owner_password OWNER_PASSWORD
\getenv platform_password PLATFORM_PASSWORD
\getenv gateway_password GATEWAY_PASSWORD
\getenv read_only_password READ_ONLY_PASSWORD

select format('create role %I', name)
from unnest(array['iccm_owner', 'iccm_platform', 'iccm_gateway', 'iccm_read_only']) as name
where not exists (select from pg_roles where rolname = name) \gexec

alter role iccm_owner login password :'owner_password';
alter role iccm_platform login password :'platform_password';
alter role iccm_gateway login password :'gateway_password';
alter role iccm_read_only login password :'read_only_password';
alter role iccm_read_only set default_transaction_read_only = on;
-- Erasure waits for every transaction that may still read what was erased, and restore for none to be connected.
grant pg_read_all_stats to iccm_owner, iccm_platform;

select format('create database %I owner %I', name, owner)
from (values ('iccm', 'iccm_owner'), ('iccm_dagster', 'iccm_platform')) as wanted (name, owner)
where not exists (select from pg_database where datname = name) \gexec

alter database iccm owner to iccm_owner;
alter database iccm_dagster owner to iccm_platform;
revoke all on database iccm, iccm_dagster from public;
grant connect on database iccm to iccm_platform, iccm_gateway, iccm_read_only;
grant temporary on database iccm to iccm_platform, iccm_gateway;

\connect iccm
create extension if not exists vector with schema public;
