//! Rows of exchange rates, each with the time from which it is in effect. Rates are never deleted.

use sqlx::Row;

use crate::store::StoreError;
use crate::store::scope::Scope;
use metergate_domain::base::Timestamp;
use metergate_domain::base::limits::RATES_OF_PAIR_MAX;
use metergate_domain::pricing::{Amount, Currency, ExchangeRate, Rates};

/// Reads the latest rates of each pair of currencies.
pub async fn all(scope: &mut Scope<'_>) -> Result<Rates, StoreError> {
    let rows = sqlx::query(
        "select from_currency, to_currency, as_of, rate::text as rate
         from (select r.*, row_number() over (partition by from_currency, to_currency order by as_of desc) as place
               from exchange_rates r where environment = $1) ranked
         where place <= $2",
    )
    .bind(scope.environment.code())
    .bind(RATES_OF_PAIR_MAX)
    .fetch_all(&mut *scope.connection)
    .await?;
    let unreadable =
        || StoreError::Refused(sqlx::Error::Decode("a stored exchange rate cannot be read".into()));
    let currency = |code: &str| Currency::parse(code).map_err(|_| unreadable());
    let mut rates = Vec::with_capacity(rows.len());
    for row in &rows {
        rates.push(ExchangeRate {
            from: currency(row.try_get("from_currency")?)?,
            to: currency(row.try_get("to_currency")?)?,
            rate: Amount::from_sum(row.try_get("rate")?).ok_or_else(unreadable)?,
            as_of: row.try_get("as_of")?,
        });
    }
    Ok(rates.into_iter().collect())
}

/// Stores rates. A rate replaces the rate of the same currencies and time. The caller holds the
/// configuration lock.
pub async fn put(scope: &mut Scope<'_>, rates: &[ExchangeRate]) -> Result<(), StoreError> {
    let codes =
        |of: fn(&ExchangeRate) -> Currency| rates.iter().map(|rate| of(rate).code()).collect::<Vec<_>>();
    let times: Vec<Timestamp> = rates.iter().map(|rate| rate.as_of).collect();
    let numbers: Vec<String> = rates.iter().map(|rate| rate.rate.to_string()).collect();
    sqlx::query(
        "insert into exchange_rates (environment, from_currency, to_currency, as_of, rate)
         select $1, from_currency, to_currency, as_of, rate::numeric
         from unnest($2::text[], $3::text[], $4::timestamptz[], $5::text[])
             as given (from_currency, to_currency, as_of, rate)
         on conflict on constraint exchange_rates_pk do update set rate = excluded.rate, set_at = now()",
    )
    .bind(scope.environment.code())
    .bind(codes(|rate| rate.from))
    .bind(codes(|rate| rate.to))
    .bind(times)
    .bind(numbers)
    .execute(&mut *scope.connection)
    .await?;
    Ok(())
}
