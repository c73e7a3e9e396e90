//! Quotes, and the exchange rates that they may need.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Serialize;
use serde_json::Value;

use crate::engine::change::ChangeTransaction;
use crate::engine::cursor;
use crate::engine::error::EngineError;
use crate::engine::services::{Engine, detached};
use crate::store::{self, configuration};
use metergate_domain::base::environment::Environment;
use metergate_domain::pricing::currency::Currency;
use metergate_domain::pricing::exchange::ExchangeRate;
use metergate_domain::pricing::quote::{Quote, QuoteRequest};

/// Exchange rates in force, by their currencies.
#[derive(Debug, Serialize)]
pub struct RatePage {
    pub data: Vec<ExchangeRate>,
    pub next_cursor: Option<String>,
}

impl Engine {
    /// What given quantities would cost.
    pub async fn quote(
        &self,
        environment: Environment,
        request: &QuoteRequest,
    ) -> Result<Quote, EngineError> {
        let mut snapshot = store::usage::snapshot(self.database().pool()).await?;
        let (versions, now) = configuration::versions(&mut snapshot, environment).await?;
        let known = self.inner.caches.at(&mut snapshot, environment, versions).await?;
        snapshot.commit().await?;
        let now = self.inner.clock.now(environment, now);
        Ok(request.rate(&known.terms.catalog, &known.terms.rates, now)?)
    }

    /// Sets exchange rates; those before stay, for what was before.
    pub async fn put_rates(
        &self,
        environment: Environment,
        body: Value,
    ) -> Result<Vec<ExchangeRate>, EngineError> {
        let (database, clock) = (self.database().clone(), self.inner.clock.clone());
        detached(async move {
            let mut change = ChangeTransaction::begin(database.pool(), environment, &clock).await?;
            configuration::raise_catalog_version(&mut change.transaction, environment).await?;
            let rates = ExchangeRate::read_all(body, change.now)?;
            store::pricing::exchange_rates::put(&mut change.transaction, environment, &rates).await?;
            change.commit().await?;
            Ok(rates)
        })
        .await
    }

    /// A page of the rates in force.
    pub async fn list_rates(
        &self,
        environment: Environment,
        after: Option<&str>,
        limit: u32,
    ) -> Result<RatePage, EngineError> {
        let after = after.map(|cursor| read_cursor(cursor).ok_or_else(cursor::unknown)).transpose()?;
        let mut connection = self.database().pool().acquire().await?;
        let now = self.inner.clock.now(environment, store::usage::now(&mut connection).await?);
        let rates = store::pricing::exchange_rates::all(&mut connection, environment).await?;
        let mut rest =
            rates.in_force(now).filter(|rate| after.is_none_or(|after| (rate.from, rate.to) > after));
        let data: Vec<ExchangeRate> = rest.by_ref().take(limit as usize).cloned().collect();
        let next_cursor = rest.next().and_then(|_| data.last()).map(write_cursor);
        Ok(RatePage { data, next_cursor })
    }
}

fn write_cursor(rate: &ExchangeRate) -> String {
    URL_SAFE_NO_PAD.encode(format!("{} {}", rate.from, rate.to))
}

fn read_cursor(cursor: &str) -> Option<(Currency, Currency)> {
    let text = String::from_utf8(URL_SAFE_NO_PAD.decode(cursor).ok()?).ok()?;
    let (from, to) = text.split_once(' ')?;
    Some((Currency::parse(from).ok()?, Currency::parse(to).ok()?))
}
