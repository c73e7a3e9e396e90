-- What is final is not emptied as a whole either, and the ledger of credits is only ever added to.

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
