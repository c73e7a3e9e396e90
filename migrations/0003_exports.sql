-- Exports: usage on its way to a billing provider.

-- What was recorded for a customer on a meter in an hour, or in the part of it that lies in one billing
-- period; in the provider's units (scaled), before anything is cut to whole ones.
create table export_sums (
    customer_id bigint not null references customers,
    meter_id int not null references meters on delete cascade,
    bucket_from timestamptz not null,
    bucket_to timestamptz not null,
    environment smallint not null,
    -- the billing period as known when it was first recorded; null: no subscription
    period_from timestamptz,
    period_to timestamptz,
    -- the latest instant that something was recorded for: periods may turn out to part it elsewhere
    last_at timestamptz not null,
    recorded numeric not null,
    -- how much of it was handed on: to exports, or to the remainder
    exported numeric not null default 0,
    -- a column of its own: the fold changes `recorded` alone, and no index has to follow it
    is_due boolean not null generated always as (recorded <> exported) stored,
    constraint export_sums_pk primary key (customer_id, meter_id, bucket_from)
) with (fillfactor = 80, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 20000);
create index export_sums_due on export_sums (environment, bucket_to) where is_due;

-- What is left of a customer's usage of a meter: fractions of a unit, and what was taken back too late
-- to be canceled. Its row lock is the right to make exports of the two.
create table export_remainders (
    customer_id bigint not null references customers,
    meter_id int not null references meters on delete cascade,
    environment smallint not null,
    remainder numeric not null default 0,
    constraint export_remainders_pk primary key (customer_id, meter_id)
);

create table exports (
    id uuid constraint exports_pk primary key,
    environment smallint not null,
    provider text not null,
    customer_id bigint not null references customers,
    meter_id int not null references meters on delete cascade,
    -- the bucket it came from
    bucket_from timestamptz not null,
    event_name text not null,
    customer_key text not null,
    value_key text not null,
    value bigint not null check (value >= 0),
    occurred_at timestamptz not null,
    -- changes only where the provider refused what it had taken at first
    identifier text not null constraint exports_identifier unique,
    carried_from timestamptz,
    -- pending, delivered, canceled, dead
    status text not null,
    attempts int not null default 0,
    last_error text,
    next_attempt_at timestamptz not null,
    -- since when it may have been taken without an answer that says so; kept where it is dead in doubt
    unknown_since timestamptz,
    -- whether it is to be taken back; false: the provider would not
    cancel_wanted boolean,
    created_at timestamptz not null,
    delivered_at timestamptz
);
create index exports_due on exports (environment, customer_id, event_name, id)
    where status = 'pending' or (cancel_wanted and status = 'delivered');
create index exports_bucket on exports (customer_id, meter_id, bucket_from);
create index exports_taking_back on exports (customer_id, meter_id, bucket_from)
    where cancel_wanted and status in ('pending', 'delivered');
create index exports_list on exports (environment, created_at, id);
create index exports_dead on exports (environment, meter_id) where status = 'dead';

-- What the daily comparison with the provider found last.
create table export_checks (
    customer_id bigint not null references customers,
    meter_id int not null references meters on delete cascade,
    environment smallint not null,
    day timestamptz not null,
    exported bigint not null,
    provider numeric not null,
    checked_at timestamptz not null,
    constraint export_checks_pk primary key (customer_id, meter_id)
);

-- The level of a customer's meter in an hour, or in the part of it within one billing period, for meters
-- that are exported by their last or greatest value.
create table export_levels (
    customer_id bigint not null references customers,
    meter_id int not null references meters on delete cascade,
    bucket_from timestamptz not null,
    bucket_to timestamptz not null,
    environment smallint not null,
    period_from timestamptz,
    period_to timestamptz,
    -- last: {epoch seconds, batch, ordinal, level}, of which the greatest is the last; max: {level}.
    -- null: all was taken back
    mark numeric[],
    -- whether it has to be looked at whether an export follows
    changed boolean not null default true,
    constraint export_levels_pk primary key (customer_id, meter_id, bucket_from)
) with (fillfactor = 80, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 20000);
create index export_levels_due on export_levels (environment, bucket_to) where changed;
