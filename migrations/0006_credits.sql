-- Credits. A grant is a fact; the ledger says what became of it. Balances are kept beside, as counters
-- are: derived, under a lock, and recounted by `metergate verify`.

-- one row per subject that has, or had, credits: the lock on all of them
create table credit_wallets (
    subject_id bigint constraint credit_wallets_pk primary key references subjects,
    environment smallint not null,
    -- no line of what is held lapses before then
    next_line timestamptz,
    -- when time is the next to change it
    next_due timestamptz
) with (fillfactor = 70);
create index credit_wallets_due on credit_wallets (environment, next_due) where next_due is not null;

create table credit_grants (
    id uuid constraint credit_grants_pk primary key,
    environment smallint not null,
    subject_id bigint not null references credit_wallets,
    -- meter, credit_unit or currency, and which
    unit text not null check (unit in ('meter', 'credit_unit', 'currency')),
    unit_key text not null,
    -- without what was carried into it
    amount numeric not null check (amount >= 0),
    priority int not null,
    effective_at timestamptz not null,
    expires_at timestamptz,
    source text not null,
    external_ref text,
    -- a fingerprint of what was asked for
    content uuid,
    -- of grants that go on from period to period: which of them, and the period by which it is one
    series text,
    recurrence jsonb,
    rollover_min numeric not null,
    rollover_max numeric not null,
    -- the spend, in the ledger, that it makes good
    refund_of bigint,
    reason text,
    created_at timestamptz not null,
    -- the one thing that is noted later
    voided_at timestamptz,
    constraint credit_grants_external_ref unique (environment, external_ref)
);
create unique index credit_grants_series on credit_grants (subject_id, series, effective_at)
    where series is not null;
create index credit_grants_subject on credit_grants (subject_id, created_at, id);

-- what is left of each grant
create table credit_balances (
    subject_id bigint not null,
    grant_id uuid not null,
    environment smallint not null,
    available numeric not null check (available >= 0),
    held numeric not null check (held >= 0),
    -- 0 upcoming, 1 open, 2 ended
    state smallint not null,
    -- the latest of its series
    head boolean not null,
    constraint credit_balances_pk primary key (subject_id, grant_id)
) with (fillfactor = 50);
-- whatever may still change
create index credit_balances_live on credit_balances (subject_id) where state < 2 or held > 0 or head;

-- what an open reservation holds of a grant; gone with its settlement, or with its lapse
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

-- Every movement, from one account to another: append-only.
create table credit_ledger (
    id bigint generated always as identity constraint credit_ledger_pk primary key,
    environment smallint not null,
    subject_id bigint not null,
    -- null: of no grant
    grant_id uuid,
    kind text not null,
    debit text not null,
    credit text not null check (credit <> debit),
    unit text not null,
    unit_key text not null,
    amount numeric not null check (amount > 0),
    at timestamptz not null,
    -- what is available of the unit after it
    balance numeric not null check (balance >= 0),
    event_key uuid,
    reservation uuid,
    -- what it is for, in units of the meter
    meter text,
    quantity numeric,
    -- the movement that it takes back
    refunds bigint,
    reason text
);
create index credit_ledger_subject on credit_ledger (subject_id, id);
create index credit_ledger_grant on credit_ledger (grant_id, id) where grant_id is not null;
create index credit_ledger_event on credit_ledger (environment, event_key) where event_key is not null;

-- How much of the usage that a limit counts credits have paid for, by the event; append-only. A void takes
-- it back with another row.
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

-- of what is used and held of a counter, the part that credits bear
alter table counters add column covered numeric not null default 0;
alter table hold_lines add column covered numeric not null default 0;

-- what somebody may want to act on
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
