-- The counters of spend caps are named by since when everybody between the capped and whoever has the prices is on
-- their subscription, too. Where caps have counted under other names, periods that began before now are counted from
-- their events; null: there were none.
alter table environments add column caps_renamed_at timestamptz;
update environments e set caps_renamed_at = now()
where exists (select from counters c where c.environment = e.environment and c.of_price);
