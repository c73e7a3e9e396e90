-- The gate: plans, subscriptions, counters, reservations.

-- rises with the catalog alone, which is far rarer than changes of the tree and of subscriptions
alter table environments add column catalog_version bigint not null default 0;
update environments e set catalog_version =
    coalesce((select max(version) from catalogs c where c.environment = e.environment), 0);

-- since when a plan has had a limit of some definition (meter, filter, period, anchor, zone)
create table plan_limits (
    environment smallint not null,
    plan text not null,
    definition uuid not null,
    since timestamptz not null,
    -- the version of the configuration that brought it
    version bigint not null,
    constraint plan_limits_pk primary key (environment, plan, definition)
);

create table subscriptions (
    subject_id bigint constraint subscriptions_pk primary key references subjects,
    environment smallint not null,
    plan text not null,
    status text not null,
    cycle_anchor timestamptz not null,
    -- as the biller set it; null: monthly from the anchor
    period_start timestamptz,
    period_end timestamptz,
    ends_at timestamptz,
    fallback_plan text,
    -- by key of a limit; null is unlimited
    overrides jsonb not null default '{}',
    -- since when its plan and its periods are what they are
    terms_since timestamptz not null,
    -- the version of the configuration under which it began, if nothing was recorded before for the subject
    pristine_version bigint,
    -- by definition of a limit: use before then is not counted
    resets jsonb not null default '{}',
    created_at timestamptz not null,
    updated_at timestamptz not null
);
create index subscriptions_plan on subscriptions (environment, plan);
create index subscriptions_ends on subscriptions (environment, ends_at)
    where ends_at is not null and status <> 'canceled';

-- every change of a subscription: what it was changed to
create table subscription_history (
    id bigint generated always as identity constraint subscription_history_pk primary key,
    subject_id bigint not null references subjects,
    at timestamptz not null,
    change text not null,
    plan text not null,
    status text not null,
    cycle_anchor timestamptz not null,
    period_start timestamptz,
    period_end timestamptz,
    ends_at timestamptz,
    fallback_plan text,
    overrides jsonb not null
);
create index subscription_history_subject on subscription_history (subject_id, id);

-- What is used and held of one definite thing. There is one only while its limit is assigned to its
-- subject, and while there is one every record keeps it; no column that changes is indexed.
create table counters (
    subject_id bigint not null,
    definition uuid not null,
    period_start timestamptz not null,
    id bigint generated always as identity,
    environment smallint not null,
    meter_id int not null references meters on delete cascade,
    period_end timestamptz not null,
    -- what was used before is not counted
    since timestamptz not null,
    used numeric not null,
    held numeric not null,
    -- no line lapses before then
    next_expiry timestamptz,
    constraint counters_pk primary key (subject_id, definition, period_start)
) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 20000,
        autovacuum_vacuum_insert_scale_factor = 0, autovacuum_vacuum_insert_threshold = 200000);

create table reservations (
    environment smallint not null,
    key uuid not null,
    -- of paths, which are never deleted: no foreign key, which would be looked up for each row
    path_id bigint not null,
    content uuid not null,
    created_at timestamptz not null,
    expires_at timestamptz not null,
    -- 0 held, 1 committed, 2 released, 3 expired; one that is held may have expired since
    status smallint not null,
    -- 0 release, 1 commit
    on_expiry smallint not null,
    over_hold boolean not null default false,
    late boolean not null default false,
    -- null: the key is the id
    id text,
    -- [{meter, value, committed, properties, records}]
    holds jsonb not null,
    reason text,
    settled_at timestamptz,
    -- the last call that recorded or settled: what it said, and its events
    call_content uuid,
    call_events uuid[],
    constraint reservations_pk primary key (environment, key)
) with (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.02);
-- nobody asks by what is in it
alter table reservations alter column holds set statistics 0;
create index reservations_created on reservations (environment, created_at, key);
create index reservations_path on reservations (path_id, created_at);
create index reservations_open on reservations (environment, on_expiry, expires_at) where status = 0;

-- Batches of the gate: tells, after a commit that was not answered, whether it happened. Who asks
-- leaves a row that keeps it from happening later.
create table gate_batches (
    batch_id bigint constraint gate_batches_pk primary key,
    settled boolean not null,
    at timestamptz not null default now()
) with (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 10000);

-- what an open reservation holds on a counter; gone with its settlement, or with its lapse
create table hold_lines (
    counter_id bigint not null,
    expires_at timestamptz not null,
    reservation uuid not null,
    environment smallint not null,
    on_expiry smallint not null,
    quantity numeric not null,
    constraint hold_lines_pk primary key (counter_id, expires_at, reservation)
) with (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 20000,
        autovacuum_vacuum_insert_scale_factor = 0, autovacuum_vacuum_insert_threshold = 200000);

-- An event that a commit recorded counts for the meter of its hold alone, with its value; null for
-- any other.
alter table events add column meter_id int;

-- so a count is no longer a number of events
update rollups r set sum = r.count from meters m
where m.id = r.meter_id and m.definition ->> 'aggregation' = 'count';
