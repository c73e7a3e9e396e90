//! Quotes, and the exchange rates for them.

use serde_json::Value;

use crate::engine::change::ChangeTransaction;
use crate::engine::cursor;
use crate::engine::error::EngineError;
use crate::engine::page::{Page, PageRequest};
use crate::engine::services::{Engine, detached};
use crate::store::{self, Scope, configuration};
use metergate_domain::base::Environment;
use metergate_domain::pricing::{Currency, ExchangeRate, Quote, QuoteRequest};

impl Engine {
    /// Rates given quantities.
    pub async fn quote(
        &self,
        environment: Environment,
        request: &QuoteRequest,
    ) -> Result<Quote, EngineError> {
        let mut snapshot = store::usage::snapshot(self.database().pool()).await?;
        let scope = &mut Scope::new(&mut snapshot, environment);
        let (versions, now) = configuration::versions(scope).await?;
        let known = self.inner.caches.at(scope, versions).await?;
        snapshot.commit().await?;
        let now = self.inner.clock.now(environment, now);
        Ok(request.rate(&known.terms.catalog, &known.terms.rates, now)?)
    }

    /// Sets exchange rates. Earlier rates remain for earlier usage.
    pub async fn put_rates(
        &self,
        environment: Environment,
        body: Value,
    ) -> Result<Vec<ExchangeRate>, EngineError> {
        let (database, clock) = (self.database().clone(), self.inner.clock.clone());
        detached(async move {
            let mut change = ChangeTransaction::begin(database.pool(), environment, &clock).await?;
            configuration::raise_catalog_version(&mut change.scope()).await?;
            let rates = ExchangeRate::read_all(body, change.now)?;
            store::pricing::exchange_rates::put(&mut change.scope(), &rates).await?;
            change.commit().await?;
            Ok(rates)
        })
        .await
    }

    /// Returns a page of the rates in force.
    pub async fn list_rates(
        &self,
        environment: Environment,
        page: &PageRequest,
    ) -> Result<Page<ExchangeRate>, EngineError> {
        let parse = |(from, to): (String, String)| Currency::parse(&from).ok().zip(Currency::parse(&to).ok());
        let after = page.place()?.map(|pair| parse(pair).ok_or_else(cursor::unknown)).transpose()?;
        let mut connection = self.database().pool().acquire().await?;
        let now = self.inner.clock.now(environment, store::usage::now(&mut connection).await?);
        let rates =
            store::pricing::exchange_rates::all(&mut Scope::new(&mut connection, environment)).await?;
        let rest = rates.in_force(now).filter(|rate| after.is_none_or(|after| (rate.from, rate.to) > after));
        let rates: Vec<ExchangeRate> = rest.take(page.rows_max() as usize).cloned().collect();
        Ok(Page::from_rows(rates, page.limit, |rate| (rate.from, rate.to)))
    }
}
