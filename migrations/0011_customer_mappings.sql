-- Whom each subject was mapped to, and when: what was recorded for a customer lies on paths through its
-- subjects, and what a period costs whether anything is used or not is owed by the last of them.
create table customer_mappings (
    -- in the order in which they were made
    id bigint generated always as identity constraint customer_mappings_pk primary key,
    subject_id bigint not null references subjects,
    customer_id bigint not null references customers,
    mapped_from timestamptz not null,
    -- null: still
    mapped_until timestamptz
);
create unique index customer_mappings_present on customer_mappings (subject_id) where mapped_until is null;
create index customer_mappings_subject on customer_mappings (subject_id, id);
create index customer_mappings_customer on customer_mappings (customer_id, subject_id);

-- when those before began was not kept: as early as may be
insert into customer_mappings (subject_id, customer_id, mapped_from, mapped_until)
    select known.subject_id, known.customer_id, began.at,
           case when s.customer_id is distinct from known.customer_id then greatest(s.updated_at, began.at) end
    from customer_subjects known
    join subjects s on s.id = known.subject_id
    cross join lateral (
        select least(s.created_at, (select min(h.at) from subscription_history h where h.subject_id = s.id)) as at
    ) began
    order by s.customer_id is not distinct from known.customer_id, known.customer_id;
drop table customer_subjects;

-- a customer that becomes another subject's has invoices of both
alter table invoices drop constraint invoices_period;
alter table invoices add constraint invoices_period unique (customer_id, subject_id, period_from, currency);
