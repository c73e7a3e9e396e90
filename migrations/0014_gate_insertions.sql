-- Holding what fits, as `hold_at_once` of 0009 does, with plain insertions: an id that is taken is met by the
-- index that refuses it, and nothing is looked for beforehand, row by row, as `on conflict` does. Under a name
-- of its own: replicas of the version before call theirs, and know its errors, while this one comes up.
create function hold_what_fits(
    given_environment smallint,
    -- of the lock of the configuration, and the version under which the writer knows it
    given_lock int,
    given_version bigint,
    given_batch bigint,
    -- the clock: where it stands still, else how far it is shifted
    given_now timestamptz,
    given_shift interval,
    -- when what is asked means what the writer took it to mean
    given_from timestamptz,
    given_until timestamptz,
    -- counters, by their primary key, which ascends: what is added, and what used and held may come to
    given_subjects bigint[],
    given_definitions uuid[],
    given_periods timestamptz[],
    given_added numeric[],
    given_rooms numeric[],
    given_counter_ttls int[],
    -- lines; counters as places in the arrays above
    given_line_counters int[],
    given_line_keys uuid[],
    given_line_ttls int[],
    given_line_expiries smallint[],
    given_line_quantities numeric[],
    -- reservations, whose keys ascend
    given_keys uuid[],
    given_ids text[],
    given_paths bigint[],
    given_contents uuid[],
    given_ttls int[],
    given_expiries smallint[],
    given_holds text[],
    -- when it was done, null where it was not
    out done_at timestamptz,
    -- a batch that may be next
    out next_batch bigint,
    -- of each counter, before it
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
