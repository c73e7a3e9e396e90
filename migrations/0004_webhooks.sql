-- What the biller tells: its webhooks word for word, and what is known of its objects from them.

create table webhook_events (
    -- by arrival
    seq bigint generated always as identity constraint webhook_events_pk primary key,
    environment smallint not null,
    id text not null,
    type text not null,
    -- by the biller's clock, to the second
    created timestamptz not null,
    api_version text,
    -- what it is about, and whose that is
    object_id text,
    customer text,
    -- not jsonb, which would refuse what the biller may send
    payload json not null,
    status text not null check (status in ('pending', 'applied', 'ignored', 'unmapped', 'failed')),
    -- why it is where it is
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

-- each subscription of the biller as it said last
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
    -- a fingerprint of the above
    says uuid not null,
    -- of the last event that was heard, and when a fetch began that was applied
    event_created timestamptz not null,
    fetched_at timestamptz,
    -- whose it is, and the plan of its prices as far as the catalog knew them
    subject_id bigint references subjects,
    plan text,
    unmapped text check (unmapped in ('no_subject', 'no_plan')),
    -- false: a mapping changed since it was looked at
    settled boolean not null,
    -- whether its subject's own subscription follows it: what was said there last, and of which plan
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

-- which subject a customer is, where the biller was told: by the customer's metadata, or by a checkout
create table stripe_customers (
    environment smallint not null,
    id text not null,
    subject text,
    reference text,
    deleted boolean not null default false,
    event_created timestamptz not null,
    constraint stripe_customers_pk primary key (environment, id)
);

-- invoices as the biller said last; amounts in the currency's minor unit
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
