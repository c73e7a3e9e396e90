-- The whole schema, arranged by subject:
--   1. environments, API keys      5. subscriptions, plan limits, spend caps    9. exports
--   2. catalog                     6. gate: counters, reservations, holds      10. Stripe mirror
--   3. customers, subjects, paths  7. gate fast path (function)                11. prices, invoices
--   4. events and their rollups    8. credits, notices                         12. append-only rules
--
-- Conventions. Every table has the environment (0 test, 1 live), directly or through its parent. Constraint
-- names are chosen, because the program recognises conflicts by them. Every column that names a time is a
-- timestamptz; the program works in UTC. Storage parameters are set where a table changes so often that
-- PostgreSQL's defaults would vacuum it too late or too often. Rules for later files: README.md in this folder.

-- ---------------------------------------------------------------------------------------------------------
-- 1. Environments and API keys
-- ---------------------------------------------------------------------------------------------------------

-- One row per environment. `config_version` rises with every change of the catalog, the subject tree or the
-- customers; `catalog_version` rises with the catalog and the exchange rates alone, which is far rarer.
create table environments (
    environment smallint constraint environments_pk primary key check (environment in (0, 1)),
    config_version bigint not null default 1,
    catalog_version bigint not null default 0,
    -- time of the latest change of the configuration; no two changes share one, so that it separates usage
    -- counted under one configuration from usage counted under another
    changed_at timestamptz
);
insert into environments (environment) values (0), (1);

create table api_keys (
    id text constraint api_keys_pk primary key,
    environment smallint not null references environments,
    kind text not null check (kind in ('secret', 'publishable')),
    name text not null default '',
    -- BLAKE3 of the whole key; the key itself is shown once and stored nowhere
    digest bytea not null,
    created_at timestamptz not null default now(),
    revoked_at timestamptz
);

-- ---------------------------------------------------------------------------------------------------------
-- 2. Catalog
-- ---------------------------------------------------------------------------------------------------------

-- Every applied catalog; the highest version is in force.
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

-- ---------------------------------------------------------------------------------------------------------
-- 3. Customers, subjects and paths
-- ---------------------------------------------------------------------------------------------------------

create table customers (
    id bigint generated always as identity constraint customers_pk primary key,
    environment smallint not null references environments,
    stripe_customer_id text not null,
    constraint customers_stripe_customer_id unique (environment, stripe_customer_id)
);

-- The first path of a subject has the subject's own id.
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
    -- when the subject moved to its present parent, because prices of the parent may rate its usage;
    -- null: at its creation
    moved_at timestamptz,
    constraint subjects_subject unique (environment, subject)
);
create index subjects_parent on subjects (parent_id) where parent_id is not null;

-- Which customer each subject was mapped to, and when. A customer's usage lies on the paths through its
-- subjects; fixed fees of a period are owed by the last customer of the subject in that period.
create table customer_mappings (
    -- ascends in the order of the mappings
    id bigint generated always as identity constraint customer_mappings_pk primary key,
    subject_id bigint not null references subjects,
    customer_id bigint not null references customers,
    mapped_from timestamptz not null,
    -- null: the mapping still holds
    mapped_until timestamptz
);
create unique index customer_mappings_present on customer_mappings (subject_id) where mapped_until is null;
create index customer_mappings_subject on customer_mappings (subject_id, id);
create index customer_mappings_customer on customer_mappings (customer_id, subject_id);

-- A subject and its ancestors, nearest first, at the time when something was recorded. Paths are never
-- changed and never deleted.
create table paths (
    id bigint constraint paths_pk primary key,
    environment smallint not null references environments,
    subject_id bigint not null references subjects,
    ancestors bigint[] not null,
    constraint paths_ancestors unique (environment, ancestors)
);
create index paths_subject on paths (subject_id);
create index paths_members on paths using gin (ancestors);

-- ---------------------------------------------------------------------------------------------------------
-- 4. Events and their rollups
-- ---------------------------------------------------------------------------------------------------------

-- Each transaction that records takes one number; within it, events are numbered by arrival.
create sequence batch_ids;

-- Keys of all recorded events, kept for ever: they make (environment, source, id) unique.
create table event_keys (
    environment smallint not null,
    key uuid not null,
    -- BLAKE3 of the event's content
    content uuid not null,
    occurred_at timestamptz not null,
    timestamp_given boolean not null,
    batch_id bigint not null,
    constraint event_keys_pk primary key (environment, key)
);

-- The source of truth. A void is another row with sign -1 at the original time.
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
    -- null: the event has no source
    source text,
    -- set on an event that a commit recorded: it counts for this meter alone, with its value
    meter_id int
) partition by range (occurred_at);
-- a path belongs to one environment, so this index needs no environment
create index events_path on events (path_id, occurred_at);
create index events_batch on events (batch_id, path_id);
create index events_time on events (environment, occurred_at);
-- the program adds a partition per month when it is needed; all older events share this one
create table events_before_2020 partition of events for values from (minvalue) to ('2020-01-01T00:00:00Z');

create table voids (
    environment smallint not null,
    key uuid not null,
    batch_id bigint not null,
    reason text,
    voided_at timestamptz not null,
    constraint voids_pk primary key (environment, key)
);
-- finds what was voided since a time, whenever the event itself occurred
create index voids_voided on voids (environment, voided_at);

-- Batches with events that are in no rollup yet. Reads add up these events.
create table unfolded (
    batch_id bigint constraint unfolded_pk primary key,
    environment smallint not null,
    first_at timestamptz not null,
    last_at timestamptz not null,
    event_count int not null,
    event_name_ids int[] not null
) with (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000,
        autovacuum_vacuum_insert_scale_factor = 0, autovacuum_vacuum_insert_threshold = 100000);

-- Combinations of a meter's dimension values, in the order of its dimensions.
create table dimension_sets (
    id bigint generated always as identity constraint dimension_sets_pk primary key,
    environment smallint not null,
    meter_id int not null references meters on delete cascade,
    digest uuid not null,
    members text[] not null,
    constraint dimension_sets_digest unique (meter_id, digest)
);

-- Usage per UTC hour. A column is filled where the meter's aggregation needs it, else null.
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
    -- {epoch seconds, batch, ordinal, value}: arrays compare from the left, so the greatest is the last value
    last numeric[],
    constraint rollups_pk primary key (environment, meter_id, path_id, hour, dimension_set_id)
) with (fillfactor = 80, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 50000);
create index rollups_hour on rollups (environment, meter_id, hour);

-- For unique_count: the members that occurred in an hour, and how often.
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

-- Hours with incomplete rollups: reads use the events there, and a job builds the rollups.
create table rollup_gaps (
    id bigint generated always as identity constraint rollup_gaps_pk primary key,
    environment smallint not null,
    meter_id int not null references meters on delete cascade,
    from_hour timestamptz not null,
    to_hour timestamptz not null,
    -- true: too many combinations of dimension values to keep apart; the job does not build these hours
    permanent boolean not null default false
);
create index rollup_gaps_meter on rollup_gaps (environment, meter_id);

-- Usage per UTC day: a query for weeks or months reads one row instead of 24. A job sums up each day once it
-- is over; late events are added to both the hour and the day.
create table day_rollups (
    day timestamptz not null,
    path_id bigint not null,
    dimension_set_id bigint not null,
    count bigint not null,
    meter_id int not null references meters on delete cascade,
    environment smallint not null,
    sum numeric,
    min numeric,
    max numeric,
    last numeric[],
    constraint day_rollups_pk primary key (environment, meter_id, path_id, day, dimension_set_id)
) with (fillfactor = 90, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 50000);
create index day_rollups_day on day_rollups (environment, meter_id, day);

create table day_rollup_members (
    day timestamptz not null,
    path_id bigint not null,
    dimension_set_id bigint not null,
    member uuid not null,
    refs bigint not null,
    meter_id int not null references meters on delete cascade,
    environment smallint not null,
    constraint day_rollup_members_pk primary key (environment, meter_id, path_id, day, dimension_set_id, member)
) with (fillfactor = 90, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 50000);
create index day_rollup_members_day on day_rollup_members (environment, meter_id, day);

-- The time before which a meter's days are summed up. A day with an hour in a gap is in the gap as a whole.
create table summed_days (
    meter_id int constraint summed_days_pk primary key references meters on delete cascade,
    environment smallint not null,
    until timestamptz not null
);

-- Returns the number, or null where it has more than 19 integer or 9 fractional digits.
create function bounded_quantity(n numeric) returns numeric
language sql immutable parallel safe as $$
    select case when abs(n) < 1e19 and scale(trim_scale(n)) <= 9 then n end
$$;

-- Returns a JSON number, or a decimal string, within those digits; else null. `Quantity::from_json` in Rust
-- implements the same rule. These functions are single expressions, so that PostgreSQL inlines them.
create function quantity_value(given jsonb) returns numeric
language sql immutable parallel safe as $$
    select case jsonb_typeof(given)
        when 'number' then bounded_quantity(given::numeric)
        when 'string' then case when given #>> '{}' ~ '^-?[0-9]+(\.[0-9]+)?$'
            then bounded_quantity((given #>> '{}')::numeric) end
    end
$$;

-- Returns text unchanged, numbers and booleans as text; else null. `dimension_value` in Rust implements the
-- same rule.
create function dimension_value(given jsonb) returns text
language sql immutable parallel safe as $$
    select case jsonb_typeof(given)
        when 'string' then given #>> '{}'
        when 'boolean' then given #>> '{}'
        when 'number' then trim_scale(quantity_value(given))::text
    end
$$;

-- Returns 128 bits of SHA-256: collision-resistant, so that it can stand for the text.
create function text_digest(given text) returns uuid
language sql immutable parallel safe as $$
    select encode(substring(sha256(convert_to(given, 'UTF8')) for 16), 'hex')::uuid
$$;

-- ---------------------------------------------------------------------------------------------------------
-- 5. Subscriptions, plan limits and spend caps
-- ---------------------------------------------------------------------------------------------------------

-- The time since which a plan has a limit with a given definition (meter, filter, period, anchor, zone).
create table plan_limits (
    environment smallint not null,
    plan text not null,
    definition uuid not null,
    since timestamptz not null,
    -- the version of the configuration that introduced it
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
    -- since when its plan and its periods are as they are now
    terms_since timestamptz not null,
    -- the version of the configuration in which it began, if the subject had no usage before
    pristine_version bigint,
    -- by definition of a limit: a time before which usage is not counted
    resets jsonb not null default '{}',
    created_at timestamptz not null,
    updated_at timestamptz not null,
    -- prices that replace the plan's prices of the same keys, or add to them
    prices jsonb not null default '[]',
    -- minimum and maximum of its bills, in place of the plan's
    commitments jsonb not null default '[]'
);
create index subscriptions_plan on subscriptions (environment, plan);
create index subscriptions_ends on subscriptions (environment, ends_at)
    where ends_at is not null and status <> 'canceled';

-- Every change of a subscription, with the state after it.
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
    overrides jsonb not null,
    prices jsonb not null default '[]',
    commitments jsonb not null default '[]'
);
create index subscription_history_subject on subscription_history (subject_id, id);

-- Spend caps of subjects: how much each may spend in a period. Caps of plans are in the catalog.
create table spend_caps (
    subject_id bigint not null references subjects,
    key text not null,
    environment smallint not null,
    cap jsonb not null,
    -- since when its counters are kept
    since timestamptz not null,
    constraint spend_caps_pk primary key (subject_id, key)
);

-- ---------------------------------------------------------------------------------------------------------
-- 6. Gate: counters, reservations and holds
-- ---------------------------------------------------------------------------------------------------------

-- Used and held quantity of one limit in one period. A counter exists while its limit is assigned to its
-- subject, and every transaction that records updates it. No index contains a column that changes.
create table counters (
    subject_id bigint not null,
    definition uuid not null,
    -- with the subject and the definition, the name of the counter
    period_start timestamptz not null,
    id bigint generated always as identity,
    environment smallint not null,
    meter_id int not null references meters on delete cascade,
    period_end timestamptz not null,
    -- earlier usage is not counted
    since timestamptz not null,
    used numeric not null,
    held numeric not null,
    -- no hold expires before this time
    next_expiry timestamptz,
    -- the part of used and held that credits pay for
    covered numeric not null default 0,
    -- true: counts the usage that a price rates, for spend caps. Its definition includes the plan, the parent
    -- and the cap with their start times; a change of any makes another counter, and this one is abandoned
    of_price boolean not null default false,
    constraint counters_pk primary key (subject_id, definition, period_start)
) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 20000,
        autovacuum_vacuum_insert_scale_factor = 0, autovacuum_vacuum_insert_threshold = 200000);

create table reservations (
    environment smallint not null,
    key uuid not null,
    -- no foreign key, which would be checked for each row: paths are never deleted
    path_id bigint not null,
    content uuid not null,
    created_at timestamptz not null,
    expires_at timestamptz not null,
    -- 0 held, 1 committed, 2 released, 3 expired; a held reservation may be past `expires_at`
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
    -- the last call that recorded or settled: a digest of its content, and the keys of its events
    call_content uuid,
    call_events uuid[],
    constraint reservations_pk primary key (environment, key)
) with (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.02);
-- no query filters by its content
alter table reservations alter column holds set statistics 0;
create index reservations_created on reservations (environment, created_at, key);
create index reservations_path on reservations (path_id, created_at);
create index reservations_open on reservations (environment, on_expiry, expires_at) where status = 0;

-- Batches of the gate. After a commit that got no answer, a row tells whether it took place. A writer that
-- asks inserts a row with `settled = false`, which prevents a later commit of that batch.
create table gate_batches (
    batch_id bigint constraint gate_batches_pk primary key,
    settled boolean not null,
    at timestamptz not null default now()
) with (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 10000);

-- The quantity that an open reservation holds on a counter. Settlement or expiry deletes the row.
create table hold_lines (
    counter_id bigint not null,
    expires_at timestamptz not null,
    reservation uuid not null,
    environment smallint not null,
    on_expiry smallint not null,
    quantity numeric not null,
    -- the part of the quantity that credits pay for
    covered numeric not null default 0,
    constraint hold_lines_pk primary key (counter_id, expires_at, reservation)
) with (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 20000,
        autovacuum_vacuum_insert_scale_factor = 0, autovacuum_vacuum_insert_threshold = 200000);

-- ---------------------------------------------------------------------------------------------------------
-- 7. Gate fast path
-- ---------------------------------------------------------------------------------------------------------

-- Makes a batch of reservations in one message, if all of it fits. Most batches of the gate ask for new
-- reservations of known subjects, and all fit. The function takes the same locks in the same order as a
-- writer's transaction of four messages. If anything differs from what the writer expects, it changes
-- nothing and returns nulls, and the writer takes the long way; so it does where credits pay for a part.
-- Counters with nothing to add, which only caps compare, are locked and not written.
--
-- Insertions are plain, without `on conflict`: the unique index refuses a taken id, and nothing is looked up
-- beforehand. Each statement of a volatile function has its own snapshot: a statement after a lock sees
-- everything that was committed while it waited.
create function hold_what_fits(
    given_environment smallint,
    -- first half of the key of the configuration lock, and the version that the writer knows
    given_lock int,
    given_version bigint,
    given_batch bigint,
    -- the clock: a fixed time, else a shift of PostgreSQL's clock
    given_now timestamptz,
    given_shift interval,
    -- the time span in which the request means what the writer assumed
    given_from timestamptz,
    given_until timestamptz,
    -- counters in ascending order of their primary key: quantity to add, and bound of used plus held
    given_subjects bigint[],
    given_definitions uuid[],
    given_periods timestamptz[],
    given_added numeric[],
    given_rooms numeric[],
    given_counter_ttls int[],
    -- hold lines; counters as positions in the arrays above
    given_line_counters int[],
    given_line_keys uuid[],
    given_line_ttls int[],
    given_line_expiries smallint[],
    given_line_quantities numeric[],
    -- reservations in ascending order of their keys
    given_keys uuid[],
    given_ids text[],
    given_paths bigint[],
    given_contents uuid[],
    given_ttls int[],
    given_expiries smallint[],
    given_holds text[],
    -- the time at which it was done; null: nothing was done
    out done_at timestamptz,
    -- a batch number for the next call
    out next_batch bigint,
    -- used and held of each counter before the change
    out levels_used numeric[],
    out levels_held numeric[]
) language plpgsql volatile as $$
declare
    counter_ids bigint[];
    all_fit boolean;
    first_expiry timestamptz;
    at timestamptz;
begin
    perform pg_advisory_xact_lock_shared(given_lock, given_environment);
    if not exists (select from environments e
                   where e.environment = given_environment and e.config_version = given_version) then
        return;
    end if;

    select array_agg(l.id), array_agg(l.used), array_agg(l.held), bool_and(l.fits), min(l.next_expiry)
    into counter_ids, levels_used, levels_held, all_fit, first_expiry
    from (select c.id, c.used, c.held, c.next_expiry,
                 c.covered = 0 and (given.room is null or c.used + c.held + given.added <= given.room) as fits
          from unnest(given_subjects, given_definitions, given_periods, given_added, given_rooms)
              as given (subject_id, definition, period_start, added, room)
          join counters c on c.subject_id = given.subject_id and c.definition = given.definition
                         and c.period_start = given.period_start
          order by c.subject_id, c.definition, c.period_start
          for no key update of c) l;

    -- read after every lock
    at := coalesce(given_now, clock_timestamp() + given_shift);
    if coalesce(cardinality(counter_ids), 0) <> cardinality(given_subjects) or not coalesce(all_fit, true)
       or first_expiry <= at or at < given_from or at >= given_until then
        return;
    end if;

    with counted as (
        update counters c
        set held = c.held + given.added, next_expiry = least(c.next_expiry, at + given.ttl * interval '1 second')
        from unnest(given_subjects, given_definitions, given_periods, given_added, given_counter_ttls)
            as given (subject_id, definition, period_start, added, ttl)
        where c.subject_id = given.subject_id and c.definition = given.definition
          and c.period_start = given.period_start and given.ttl is not null),
    lined as (
        insert into hold_lines (environment, counter_id, expires_at, reservation, on_expiry, quantity)
        select given_environment, counter_ids[given.place], at + given.ttl * interval '1 second', given.key,
               given.expiry, given.quantity
        from unnest(given_line_counters, given_line_keys, given_line_ttls, given_line_expiries,
                    given_line_quantities)
            as given (place, key, ttl, expiry, quantity)),
    noted as (
        insert into gate_batches (batch_id, settled) values (given_batch, true))
    insert into reservations (environment, key, id, path_id, content, created_at, on_expiry, expires_at, status, holds)
    select given_environment, given.key, given.id, given.path_id, given.content, at, given.expiry,
           at + given.ttl * interval '1 second', 0, given.holds::jsonb
    from unnest(given_keys, given_ids, given_paths, given_contents, given_ttls, given_expiries, given_holds)
        as given (key, id, path_id, content, ttl, expiry, holds);
    done_at := at;
    next_batch := nextval('batch_ids');
end
$$;

-- ---------------------------------------------------------------------------------------------------------
-- 8. Credits and notices
-- ---------------------------------------------------------------------------------------------------------

-- One row per subject that has, or had, credits. Its row lock protects all of them.
create table credit_wallets (
    subject_id bigint constraint credit_wallets_pk primary key references subjects,
    environment smallint not null,
    -- no held credits expire before this time
    next_line timestamptz,
    -- the next time at which a grant starts, ends or recurs
    next_due timestamptz
) with (fillfactor = 70);
create index credit_wallets_due on credit_wallets (environment, next_due) where next_due is not null;

-- Grants as they were made. The ledger has what happened to them; balances are derived from it under the
-- wallet's lock, and `metergate verify` recounts them.
create table credit_grants (
    id uuid constraint credit_grants_pk primary key,
    environment smallint not null,
    subject_id bigint not null references credit_wallets,
    -- meter, credit_unit or currency, and the key of it
    unit text not null check (unit in ('meter', 'credit_unit', 'currency')),
    unit_key text not null,
    -- without the amount that was carried into it
    amount numeric not null check (amount >= 0),
    priority int not null,
    effective_at timestamptz not null,
    expires_at timestamptz,
    source text not null,
    external_ref text,
    -- a digest of the request
    content uuid,
    -- for grants that recur: the series, and the rule of its periods
    series text,
    recurrence jsonb,
    rollover_min numeric not null,
    rollover_max numeric not null,
    -- the ledger id of the spend that this grant refunds
    refund_of bigint,
    reason text,
    created_at timestamptz not null,
    -- the only column that changes later
    voided_at timestamptz,
    constraint credit_grants_external_ref unique (environment, external_ref)
);
create unique index credit_grants_series on credit_grants (subject_id, series, effective_at)
    where series is not null;
create index credit_grants_subject on credit_grants (subject_id, created_at, id);

-- The balance of each grant.
create table credit_balances (
    subject_id bigint not null,
    grant_id uuid not null,
    environment smallint not null,
    available numeric not null check (available >= 0),
    held numeric not null check (held >= 0),
    -- 0 upcoming, 1 open, 2 ended
    state smallint not null,
    -- true: the latest grant of its series
    head boolean not null,
    constraint credit_balances_pk primary key (subject_id, grant_id)
) with (fillfactor = 50);
-- balances that may still change
create index credit_balances_live on credit_balances (subject_id) where state < 2 or held > 0 or head;

-- The amount that an open reservation holds of a grant. Settlement or expiry deletes the row.
create table credit_lines (
    grant_id uuid not null,
    expires_at timestamptz not null,
    reservation uuid not null,
    subject_id bigint not null,
    environment smallint not null,
    on_expiry smallint not null,
    amount numeric not null check (amount > 0),
    constraint credit_lines_pk primary key (grant_id, expires_at, reservation)
);
create index credit_lines_subject on credit_lines (subject_id, expires_at);

-- Every movement of credits from one account to another; append-only.
create table credit_ledger (
    id bigint generated always as identity constraint credit_ledger_pk primary key,
    environment smallint not null,
    subject_id bigint not null,
    -- null: the movement belongs to no grant
    grant_id uuid,
    kind text not null,
    debit text not null,
    credit text not null check (credit <> debit),
    unit text not null,
    unit_key text not null,
    amount numeric not null check (amount > 0),
    at timestamptz not null,
    -- the available amount of the unit after this movement
    balance numeric not null check (balance >= 0),
    event_key uuid,
    reservation uuid,
    -- the usage that it pays for, in units of the meter
    meter text,
    quantity numeric,
    -- the movement that it takes back
    refunds bigint,
    reason text
);
create index credit_ledger_subject on credit_ledger (subject_id, id);
create index credit_ledger_grant on credit_ledger (grant_id, id) where grant_id is not null;
create index credit_ledger_event on credit_ledger (environment, event_key) where event_key is not null;

-- Usage of a limit that credits paid for, per event; append-only. A void adds a row that takes it back.
create table credit_covers (
    subject_id bigint not null,
    definition uuid not null,
    at timestamptz not null,
    environment smallint not null,
    event_key uuid not null,
    quantity numeric not null
);
create index credit_covers_counter on credit_covers (subject_id, definition, at);
create index credit_covers_event on credit_covers (environment, event_key);

-- Notices about balances, for the operator or the subject to act on.
create table notices (
    id bigint generated always as identity constraint notices_pk primary key,
    environment smallint not null,
    subject_id bigint not null,
    kind text not null check (kind in ('low_balance', 'top_up_due')),
    unit text not null,
    unit_key text not null,
    balance numeric not null,
    threshold numeric not null,
    pack text,
    at timestamptz not null
);
create index notices_environment on notices (environment, id);
create index notices_subject on notices (subject_id, id);

-- ---------------------------------------------------------------------------------------------------------
-- 9. Exports: usage on its way to a billing provider
-- ---------------------------------------------------------------------------------------------------------

-- Usage of a customer on a meter in an hour, or in the part of the hour within one billing period; in the
-- provider's units (scaled), before it is rounded down to whole units.
create table export_sums (
    customer_id bigint not null references customers,
    meter_id int not null references meters on delete cascade,
    bucket_from timestamptz not null,
    bucket_to timestamptz not null,
    environment smallint not null,
    -- the billing period that was known at the first event; null: no subscription
    period_from timestamptz,
    period_to timestamptz,
    -- the latest time of its events: if billing periods turn out to divide the hour elsewhere, this tells
    last_at timestamptz not null,
    recorded numeric not null,
    -- the part already given to exports or to the remainder
    exported numeric not null default 0,
    -- a column of its own: the fold changes `recorded` alone, and no index contains that
    is_due boolean not null generated always as (recorded <> exported) stored,
    constraint export_sums_pk primary key (customer_id, meter_id, bucket_from)
) with (fillfactor = 80, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 20000);
create index export_sums_due on export_sums (environment, bucket_to) where is_due;

-- Usage of a customer on a meter that is not exported yet: fractions of a unit, and voids that came too late
-- to be canceled. Its row lock is required to make exports of the pair.
create table export_remainders (
    customer_id bigint not null references customers,
    meter_id int not null references meters on delete cascade,
    environment smallint not null,
    remainder numeric not null default 0,
    constraint export_remainders_pk primary key (customer_id, meter_id)
);

-- The value of a customer's gauge meter in an hour, or in the part of the hour within one billing period.
-- Meters that are exported by their last or greatest value have rows here, not in `export_sums`.
create table export_levels (
    customer_id bigint not null references customers,
    meter_id int not null references meters on delete cascade,
    bucket_from timestamptz not null,
    bucket_to timestamptz not null,
    environment smallint not null,
    period_from timestamptz,
    period_to timestamptz,
    -- last: {epoch seconds, batch, ordinal, value}, of which the greatest is the last; max: {value}.
    -- null: every event was voided
    mark numeric[],
    -- true: the next export run must check whether an export is needed
    changed boolean not null default true,
    constraint export_levels_pk primary key (customer_id, meter_id, bucket_from)
) with (fillfactor = 80, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 20000);
create index export_levels_due on export_levels (environment, bucket_to) where changed;

create table exports (
    id uuid constraint exports_pk primary key,
    environment smallint not null,
    provider text not null,
    customer_id bigint not null references customers,
    meter_id int not null references meters on delete cascade,
    -- the bucket with the usage
    bucket_from timestamptz not null,
    event_name text not null,
    customer_key text not null,
    value_key text not null,
    value bigint not null check (value >= 0),
    occurred_at timestamptz not null,
    -- changes only if the provider rejects a value that it first accepted
    identifier text not null constraint exports_identifier unique,
    carried_from timestamptz,
    -- pending, delivered, canceled, dead
    status text not null,
    attempts int not null default 0,
    last_error text,
    next_attempt_at timestamptz not null,
    -- since when the provider may have accepted it without an answer; kept on a dead export in doubt
    unknown_since timestamptz,
    -- true: to be canceled at the provider; false: the provider refused to cancel
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

-- The latest result of the daily comparison with the provider.
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

-- ---------------------------------------------------------------------------------------------------------
-- 10. Stripe mirror: webhook events, and the objects known from them
-- ---------------------------------------------------------------------------------------------------------

create table webhook_events (
    -- ascends by arrival
    seq bigint generated always as identity constraint webhook_events_pk primary key,
    environment smallint not null,
    id text not null,
    type text not null,
    -- by Stripe's clock, to the second
    created timestamptz not null,
    api_version text,
    -- the object that the event is about, and its customer
    object_id text,
    customer text,
    -- json, not jsonb: jsonb would reject some payloads that Stripe may send
    payload json not null,
    status text not null check (status in ('pending', 'applied', 'ignored', 'unmapped', 'failed')),
    -- why it has this status
    reason text,
    attempts int not null default 0,
    next_attempt_at timestamptz not null,
    received_at timestamptz not null,
    settled_at timestamptz,
    constraint webhook_events_id unique (environment, id)
);
create index webhook_events_due on webhook_events (environment, next_attempt_at) where status = 'pending';
create index webhook_events_status on webhook_events (environment, status, seq);
create index webhook_events_object on webhook_events (environment, object_id, created) where object_id is not null;
create index webhook_events_settled on webhook_events (settled_at) where settled_at is not null;

-- The latest known state of each Stripe subscription.
create table stripe_subscriptions (
    environment smallint not null,
    id text not null,
    customer text not null,
    -- the subject that its metadata names
    subject text,
    status text not null,
    price_ids text[] not null,
    anchor timestamptz not null,
    period_start timestamptz,
    period_end timestamptz,
    ends_at timestamptz,
    ended_at timestamptz,
    created_at timestamptz not null,
    -- a digest of the columns above
    says uuid not null,
    -- time of the latest event received, and start of the latest fetch applied
    event_created timestamptz not null,
    fetched_at timestamptz,
    -- its subject, and the plan of its prices, as far as the catalog knew them
    subject_id bigint references subjects,
    plan text,
    unmapped text check (unmapped in ('no_subject', 'no_plan')),
    -- false: a mapping changed since this row was last applied
    settled boolean not null,
    -- whether the subject's own subscription follows it; the last state applied there, and its plan
    governs boolean not null default false,
    stated uuid,
    stated_plan text,
    constraint stripe_subscriptions_pk primary key (environment, id)
);
create index stripe_subscriptions_customer on stripe_subscriptions (environment, customer);
create index stripe_subscriptions_subject on stripe_subscriptions (subject_id);
create unique index stripe_subscriptions_governs on stripe_subscriptions (subject_id) where governs;
create index stripe_subscriptions_unsettled on stripe_subscriptions (environment) where not settled;
create index stripe_subscriptions_unmapped on stripe_subscriptions (environment, unmapped) where unmapped is not null;

-- The subject of a Stripe customer, from the customer's metadata or from a checkout.
create table stripe_customers (
    environment smallint not null,
    id text not null,
    subject text,
    reference text,
    deleted boolean not null default false,
    event_created timestamptz not null,
    constraint stripe_customers_pk primary key (environment, id)
);

-- The latest known state of each Stripe invoice; amounts in the minor unit of the currency.
create table stripe_invoices (
    environment smallint not null,
    id text not null,
    customer text not null,
    subscription text,
    status text not null,
    billing_reason text,
    currency text,
    total bigint,
    amount_due bigint,
    amount_paid bigint,
    attempt_count int,
    period_start timestamptz,
    period_end timestamptz,
    created_at timestamptz not null,
    event_created timestamptz not null,
    constraint stripe_invoices_pk primary key (environment, id)
);
create index stripe_invoices_customer on stripe_invoices (environment, customer, created_at);
create index stripe_invoices_period on stripe_invoices (environment, customer, period_end);

-- ---------------------------------------------------------------------------------------------------------
-- 11. Exchange rates and invoices
-- ---------------------------------------------------------------------------------------------------------

create table exchange_rates (
    environment smallint not null references environments,
    from_currency text not null,
    to_currency text not null,
    -- start of validity; the latest rate that has started is in force
    as_of timestamptz not null,
    -- major units of `to_currency` for one major unit of `from_currency`
    rate numeric not null check (rate > 0),
    set_at timestamptz not null default now(),
    constraint exchange_rates_pk primary key (environment, from_currency, to_currency, as_of)
);

-- The latest invoice number of each environment. It is taken under the row's lock, and a rollback returns it,
-- so that numbers have no gaps.
create table invoice_numbers (
    environment smallint constraint invoice_numbers_pk primary key references environments,
    last bigint not null default 0
);
insert into invoice_numbers (environment) select environment from environments;

create table invoices (
    id uuid constraint invoices_pk primary key,
    environment smallint not null references environments,
    customer_id bigint not null references customers,
    subject_id bigint not null references subjects,
    currency text not null,
    period_from timestamptz not null,
    -- for a draft: as known at `looked_at`
    period_to timestamptz not null,
    status text not null check (status in ('draft', 'final')),
    created_at timestamptz not null,
    -- when a draft was last compared with the subscription
    looked_at timestamptz not null,
    -- the columns below are filled when the invoice becomes final; a draft is computed at each read
    number bigint,
    -- the plans in force during the period, with their prices
    terms jsonb,
    lines jsonb,
    total numeric,
    finalized_at timestamptz,
    constraint invoices_period unique (customer_id, subject_id, period_from, currency),
    constraint invoices_number unique (environment, number),
    constraint invoices_final check ((status = 'final') = (number is not null and terms is not null
        and lines is not null and total is not null and finalized_at is not null))
);
create index invoices_list on invoices (environment, created_at, id);
create index invoices_due on invoices (environment, period_to) where status = 'draft';

-- ---------------------------------------------------------------------------------------------------------
-- 12. Append-only rules: final invoices and the credit ledger cannot be changed, not even by hand
-- ---------------------------------------------------------------------------------------------------------

create function refuse_change_of_invoice() returns trigger language plpgsql as $$
begin
    raise exception 'invoice % is final', old.number using errcode = 'MG002';
end
$$;
create trigger invoices_immutable before update or delete on invoices
    for each row when (old.status = 'final') execute function refuse_change_of_invoice();

create function refuse_emptying() returns trigger language plpgsql as $$
begin
    raise exception '% is never emptied', tg_table_name using errcode = 'MG002';
end
$$;
create trigger invoices_kept before truncate on invoices
    for each statement execute function refuse_emptying();

create function refuse_change_of_movement() returns trigger language plpgsql as $$
begin
    raise exception '% is append-only', tg_table_name using errcode = 'MG002';
end
$$;
create trigger credit_ledger_append_only before update or delete on credit_ledger
    for each row execute function refuse_change_of_movement();
create trigger credit_ledger_kept before truncate on credit_ledger
    for each statement execute function refuse_emptying();
