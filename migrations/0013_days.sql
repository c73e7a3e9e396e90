-- The same as rollups per UTC day: what asks for weeks or months reads a day instead of its hours. Days
-- are summed up from their hours once they are over; what is late is added to both.

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

-- until when the days of a meter are summed up: where an hour before it is in a gap, its day is too
create table summed_days (
    meter_id int constraint summed_days_pk primary key references meters on delete cascade,
    environment smallint not null,
    until timestamptz not null
);
