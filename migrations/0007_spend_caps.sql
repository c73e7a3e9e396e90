-- Spend caps: what subjects may spend in a period. Those of plans stand in the catalog.

create table spend_caps (
    subject_id bigint not null references subjects,
    key text not null,
    environment smallint not null,
    cap jsonb not null,
    -- since when its counters have been kept
    since timestamptz not null,
    constraint spend_caps_pk primary key (subject_id, key)
);

-- since when a subject has stood under its parent: what rates its usage may come from there
alter table subjects add column moved_at timestamptz;

-- Counters of what prices rate, for caps. Their definition names everything that it depends on, since
-- when: another plan, parent or cap makes other counters, and these are left behind.
alter table counters add column of_price boolean not null default false;

-- When the configuration was changed last: no two changes have the same time, so that it tells what was
-- counted under one from what was counted under another.
alter table environments add column changed_at timestamptz;
