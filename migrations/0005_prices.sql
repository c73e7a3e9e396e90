-- Money: exchange rates as they were set, and prices of a subscription's own.

create table exchange_rates (
    environment smallint not null references environments,
    from_currency text not null,
    to_currency text not null,
    -- since when it holds; the latest that is not ahead is in force
    as_of timestamptz not null,
    -- major units of the one for one of the other
    rate numeric not null check (rate > 0),
    set_at timestamptz not null default now(),
    constraint exchange_rates_pk primary key (environment, from_currency, to_currency, as_of)
);

-- in place of the plan's of the same keys, or beside them
alter table subscriptions add column prices jsonb not null default '[]';
alter table subscription_history add column prices jsonb not null default '[]';
