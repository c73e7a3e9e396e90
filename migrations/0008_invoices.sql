-- Invoices: what each customer's usage of a billing period comes to.

-- the subjects that a customer was ever mapped to: what was recorded for it lies on paths through them
create table customer_subjects (
    customer_id bigint not null references customers,
    subject_id bigint not null references subjects,
    constraint customer_subjects_pk primary key (customer_id, subject_id)
);
insert into customer_subjects (customer_id, subject_id)
    select customer_id, id from subjects where customer_id is not null;

-- the last number given in an environment: under its row lock, and rolled back with what it was given to,
-- so that none is left out
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
    -- of a draft: as was known when it was last looked at
    period_to timestamptz not null,
    status text not null check (status in ('draft', 'final')),
    created_at timestamptz not null,
    -- when a draft was last compared with the subscription
    looked_at timestamptz not null,
    -- of a final one alone; a draft is computed whenever it is read
    number bigint,
    -- which plan was in force when, with the prices by which it was rated
    terms jsonb,
    lines jsonb,
    total numeric,
    finalized_at timestamptz,
    constraint invoices_period unique (customer_id, period_from, currency),
    constraint invoices_number unique (environment, number),
    constraint invoices_final check ((status = 'final') = (number is not null and terms is not null
        and lines is not null and total is not null and finalized_at is not null))
);
create index invoices_list on invoices (environment, created_at, id);
create index invoices_due on invoices (environment, period_to) where status = 'draft';

-- what was numbered stays as it is, whoever asks
create function refuse_change_of_invoice() returns trigger language plpgsql as $$
begin
    raise exception 'invoice % is final', old.number using errcode = 'MG002';
end
$$;
create trigger invoices_immutable before update or delete on invoices
    for each row when (old.status = 'final') execute function refuse_change_of_invoice();

-- what was taken back since a time: it may lie in a period of long ago
create index voids_voided on voids (environment, voided_at);
create index stripe_invoices_period on stripe_invoices (environment, customer, period_end);
