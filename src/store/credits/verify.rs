//! Verification of credits against their ledger: the balance of each grant, its held amount, and the balance
//! after each movement.

use sqlx::Row;

use crate::store::StoreError;
use crate::store::scope::Scope;
use crate::store::usage::verify::Differences;

/// The number of differences that are shown; all are counted.
const SHOWN: i64 = 20;

/// Queries with the meaning of a difference. Each returns a row per comparison, with its description.
const QUESTIONS: [(&str, &str); 5] = [
    (
        "grants with a balance that is not the sum of their movements",
        "with summed as (
             select grant_id,
                    sum(case when credit = 'available' then amount when debit = 'available' then -amount else 0 end) as available,
                    sum(case when credit = 'held' then amount when debit = 'held' then -amount else 0 end) as held
             from credit_ledger where environment = $1 and grant_id is not null group by grant_id)
         select format('grant %s: %s and %s by the ledger, %s and %s kept', b.grant_id, s.available, s.held,
                       b.available, b.held) as shown,
                b.available = coalesce(s.available, 0) and b.held = coalesce(s.held, 0) as same
         from credit_balances b left join summed s on s.grant_id = b.grant_id where b.environment = $1",
    ),
    (
        "grants with a held amount that is not the sum of their hold lines",
        "with lines as (select grant_id, sum(amount) as amount from credit_lines where environment = $1 group by grant_id)
         select format('grant %s: %s by lines, %s held', b.grant_id, l.amount, b.held) as shown,
                b.held = coalesce(l.amount, 0) as same
         from credit_balances b left join lines l on l.grant_id = b.grant_id where b.environment = $1",
    ),
    (
        "lines of held credits that differ from an open reservation",
        "with held as (
             select r.key, (part ->> 0)::uuid as grant_id, r.expires_at, sum((part ->> 2)::numeric) as amount
             from reservations r cross join jsonb_array_elements(r.holds) h
             cross join jsonb_array_elements(coalesce(h -> 'covers', '[]')) cover
             cross join jsonb_array_elements(cover -> 'parts') part
             where r.environment = $1 and r.status = 0 group by 1, 2, 3)
         select format('grant %s, reservation %s: %s by the line, %s by the reservation', l.grant_id, l.reservation,
                       l.amount, h.amount) as shown,
                l.amount = h.amount as same
         from credit_lines l
         left join held h on h.key = l.reservation and h.grant_id = l.grant_id and h.expires_at = l.expires_at
         where l.environment = $1",
    ),
    (
        "movements with a balance that does not follow from the previous one",
        "select format('movement %s: balance %s after %s', id, balance, before) as shown,
                balance = before + change as same
         from (select id, balance,
                      case when credit = 'available' then amount when debit = 'available' then -amount else 0 end as change,
                      lag(balance, 1, 0) over (partition by subject_id, unit, unit_key order by id) as before
               from credit_ledger where environment = $1) running",
    ),
    (
        "counters with a covered quantity that differs from the coverage by credits",
        "select format('counter %s: %s covered, %s by what was paid, %s by what is held', c.id, c.covered, p.paid, l.kept) as shown,
                c.covered = p.paid + l.kept as same
         from counters c
         cross join lateral (
             select coalesce(sum(quantity), 0) as paid from credit_covers p
             where p.subject_id = c.subject_id and p.definition = c.definition and p.at >= c.since and p.at < c.period_end) p
         cross join lateral (
             select coalesce(sum(l.covered), 0) as kept from hold_lines l where l.counter_id = c.id and l.covered <> 0) l
         where c.environment = $1 and (c.covered <> 0 or p.paid <> 0 or l.kept <> 0)",
    ),
];

/// Compares all credits and returns the number of compared rows.
pub async fn credits(scope: &mut Scope<'_>, differences: &mut Differences) -> Result<i64, StoreError> {
    let environment = scope.environment;
    let mut compared = 0;
    for (meaning, meter_query) in QUESTIONS {
        let sql = format!(
            "with judged as materialized ({meter_query})
             select (select count(*) from judged) as compared,
                    (select count(*) from judged where same is not true) as wrong,
                    array(select shown from judged where same is not true limit {SHOWN}) as shown"
        );
        let row = sqlx::query(sqlx::AssertSqlSafe(sql))
            .bind(environment.code())
            .fetch_one(&mut *scope.connection)
            .await?;
        let (count, wrong): (i64, i64) = (row.try_get("compared")?, row.try_get("wrong")?);
        let shown: Vec<String> = row.try_get("shown")?;
        compared += count;
        if wrong > 0 {
            differences.note(wrong, format!("{environment}: {wrong} {meaning}: {}", shown.join("; ")));
        }
    }
    // credits carried out of a grant must equal those carried into its successor
    let unbalanced: i64 = sqlx::query_scalar(
        "select count(*) from (
             select unit, unit_key from credit_ledger where environment = $1 group by unit, unit_key
             having sum(case when credit = 'carried' then amount when debit = 'carried' then -amount else 0 end) <> 0) c",
    )
    .bind(environment.code())
    .fetch_one(&mut *scope.connection)
    .await?;
    if unbalanced > 0 {
        let what = "units in which the credits carried into grants differ from those carried out";
        differences.note(unbalanced, format!("{environment}: {unbalanced} {what}"));
    }
    Ok(compared)
}
