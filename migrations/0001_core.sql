-- The metering core. Every table carries its environment (0 test, 1 live), first in its key.
-- Constraint names are chosen: the program recognises conflicts by them.

-- one row per environment; config_version rises with every change of catalog, tree or customers
create table environments (
    environment smallint constraint environments_pk primary key check (environment in (0, 1)),
    config_version bigint not null default 1
);
insert into environments (environment) values (0), (1);

create table api_keys (
    id text constraint api_keys_pk primary key,
    environment smallint not null references environments,
    kind text not null check (kind in ('secret', 'publishable')),
    name text not null default '',
    -- BLAKE3 of the whole key; the key itself is shown once and kept nowhere
    digest bytea not null,
    created_at timestamptz not null default now(),
    revoked_at timestamptz
);

-- every applied catalog, the highest version in force
create table catalogs (
    environment smallint not null references environments,
    version bigint not null,
    document jsonb not null,
    applied_at timestamptz not null default now(),
    constraint catalogs_pk primary key (environment, version)
);

create table event_names (
    id int generated always as identity constraint event_names_pk primary key,
    environment smallint not null references environments,
    name text not null,
    constraint event_names_name unique (environment, name)
);

create table meters (
    id int generated always as identity constraint meters_pk primary key,
    environment smallint not null references environments,
    key text not null,
    event_name_id int not null references event_names,
    definition jsonb not null,
    created_at timestamptz not null default now(),
    constraint meters_key unique (environment, key)
);

create table customers (
    id bigint generated always as identity constraint customers_pk primary key,
    environment smallint not null references environments,
    stripe_customer_id text not null,
    constraint customers_stripe_customer_id unique (environment, stripe_customer_id)
);

-- a subject's first path has the subject's own id
create sequence subject_ids;
create table subjects (
    id bigint not null default nextval('subject_ids') constraint subjects_pk primary key,
    environment smallint not null references environments,
    subject text not null,
    parent_id bigint references subjects,
    path_id bigint not null,
    customer_id bigint references customers constraint subjects_customer unique,
    metadata jsonb not null default '{}',
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now(),
    constraint subjects_subject unique (environment, subject)
);
create index subjects_parent on subjects (parent_id) where parent_id is not null;

-- a subject and its ancestors, nearest first, as they stood when something was recorded
create table paths (
    id bigint constraint paths_pk primary key,
    environment smallint not null references environments,
    subject_id bigint not null references subjects,
    ancestors bigint[] not null,
    constraint paths_ancestors unique (environment, ancestors)
);
create index paths_subject on paths (subject_id);
create index paths_members on paths using gin (ancestors);

-- batches are numbered by their transactions; within one, events are numbered by arrival
create sequence batch_ids;

-- what has been recorded once, for ever: the guard of (environment, source, id)
create table event_keys (
    environment smallint not null,
    key uuid not null,
    -- BLAKE3 of what the event says
    content uuid not null,
    occurred_at timestamptz not null,
    timestamp_given boolean not null,
    batch_id bigint not null,
    constraint event_keys_pk primary key (environment, key)
);

-- the truth; a void is a row with sign -1 at the original time
create table events (
    path_id bigint not null,
    occurred_at timestamptz not null,
    batch_id bigint not null,
    customer_id bigint,
    key uuid not null,
    ordinal int not null,
    event_name_id int not null,
    environment smallint not null,
    sign smallint not null,
    value numeric not null,
    properties jsonb,
    -- null: the key is the id
    id text,
    -- null: none
    source text
) partition by range (occurred_at);
-- a path belongs to one environment
create index events_path on events (path_id, occurred_at);
create index events_batch on events (batch_id, path_id);
create index events_time on events (environment, occurred_at);
-- months are added as they are needed; all that is older shares one
create table events_before_2020 partition of events for values from (minvalue) to ('2020-01-01T00:00:00Z');

create table voids (
    environment smallint not null,
    key uuid not null,
    batch_id bigint not null,
    reason text,
    voided_at timestamptz not null,
    constraint voids_pk primary key (environment, key)
);

-- batches whose events are not in the rollups yet; a read adds them
create table unfolded (
    batch_id bigint constraint unfolded_pk primary key,
    environment smallint not null,
    first_at timestamptz not null,
    last_at timestamptz not null,
    event_count int not null,
    event_name_ids int[] not null
) with (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000,
        autovacuum_vacuum_insert_scale_factor = 0, autovacuum_vacuum_insert_threshold = 100000);

-- combinations of a meter's dimension values, in the order of its dimensions
create table dimension_sets (
    id bigint generated always as identity constraint dimension_sets_pk primary key,
    environment smallint not null,
    meter_id int not null references meters on delete cascade,
    digest uuid not null,
    members text[] not null,
    constraint dimension_sets_digest unique (meter_id, digest)
);

-- per UTC hour; a column holds what the meter's aggregation needs, the others are null
create table rollups (
    hour timestamptz not null,
    path_id bigint not null,
    dimension_set_id bigint not null,
    count bigint not null,
    meter_id int not null references meters on delete cascade,
    environment smallint not null,
    sum numeric,
    min numeric,
    max numeric,
    -- {epoch seconds, batch, ordinal, value}: arrays compare from the left, so the greatest is the last
    last numeric[],
    constraint rollups_pk primary key (environment, meter_id, path_id, hour, dimension_set_id)
) with (fillfactor = 80, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 50000);
create index rollups_hour on rollups (environment, meter_id, hour);

-- for unique_count: which members an hour saw, and how often
create table rollup_members (
    hour timestamptz not null,
    path_id bigint not null,
    dimension_set_id bigint not null,
    member uuid not null,
    refs bigint not null,
    meter_id int not null references meters on delete cascade,
    environment smallint not null,
    constraint rollup_members_pk primary key (environment, meter_id, path_id, hour, dimension_set_id, member)
) with (fillfactor = 80, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 50000);
create index rollup_members_hour on rollup_members (environment, meter_id, hour);

-- hours whose rollups are not what the events say: reads take the events there, a job builds them
create table rollup_gaps (
    id bigint generated always as identity constraint rollup_gaps_pk primary key,
    environment smallint not null,
    meter_id int not null references meters on delete cascade,
    from_hour timestamptz not null,
    to_hour timestamptz not null,
    -- too many combinations of dimension values to keep apart: not to be built
    permanent boolean not null default false
);
create index rollup_gaps_meter on rollup_gaps (environment, meter_id);

-- Null where a number has more than 19 integer or 9 fractional digits.
create function bounded_quantity(n numeric) returns numeric
language sql immutable parallel safe as $$
    select case when abs(n) < 1e19 and scale(trim_scale(n)) <= 9 then n end
$$;

-- A number, or a decimal string, within those digits; else null. `Quantity::from_json` says the
-- same. These functions are single expressions, so that they are inlined into the statement.
create function quantity_value(given jsonb) returns numeric
language sql immutable parallel safe as $$
    select case jsonb_typeof(given)
        when 'number' then bounded_quantity(given::numeric)
        when 'string' then case when given #>> '{}' ~ '^-?[0-9]+(\.[0-9]+)?$'
            then bounded_quantity((given #>> '{}')::numeric) end
    end
$$;

-- Text as it is, numbers and booleans as text; else null. `dimension_value` in Rust says the same.
create function dimension_value(given jsonb) returns text
language sql immutable parallel safe as $$
    select case jsonb_typeof(given)
        when 'string' then given #>> '{}'
        when 'boolean' then given #>> '{}'
        when 'number' then trim_scale(quantity_value(given))::text
    end
$$;

-- 128 bits of SHA-256: nobody can make another text that passes for this one
create function text_digest(given text) returns uuid
language sql immutable parallel safe as $$
    select encode(substring(sha256(convert_to(given, 'UTF8')) for 16), 'hex')::uuid
$$;
