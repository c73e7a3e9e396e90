//! The plans by which periods are rated: prices and commitments from the catalog and from the subscription.

use std::collections::{BTreeMap, BTreeSet};

use sqlx::PgConnection;

use crate::engine::error::EngineError;
use crate::store;
use crate::store::Scope;
use metergate_domain::base::Environment;
use metergate_domain::base::names::PlanKey;
use metergate_domain::catalog::{Catalog, Plan};
use metergate_domain::invoicing::{OwnPricing, PlanChange, PlanInterval, RatingTerms};
use metergate_domain::pricing::{Currency, Price};
use metergate_domain::subjects::subscription::{commitment_of, prices_of};

/// The plans of an environment, including those that left the catalog.
#[derive(Debug)]
pub(super) struct PlanHistory {
    pub(super) environment: Environment,
    catalog: Catalog,
    gone: BTreeMap<PlanKey, Option<Plan>>,
}

impl PlanHistory {
    pub(super) async fn read(scope: &mut Scope<'_>) -> Result<Self, EngineError> {
        let (catalog, _) = store::catalog::current(scope).await?;
        Ok(Self { environment: scope.environment, catalog, gone: BTreeMap::new() })
    }

    /// Returns the keys of the plans with prices.
    pub(super) fn priced(&self) -> Vec<String> {
        self.catalog
            .plans
            .iter()
            .filter(|plan| !plan.prices.is_empty())
            .map(|plan| plan.key.to_string())
            .collect()
    }

    /// Returns a plan in its present or last version.
    async fn plan(
        &mut self,
        connection: &mut PgConnection,
        key: &PlanKey,
    ) -> Result<Option<&Plan>, EngineError> {
        if self.catalog.plan(key).is_none() && !self.gone.contains_key(key) {
            let last =
                store::catalog::last_with_plan(&mut Scope::new(connection, self.environment), key.as_str())
                    .await?;
            self.gone.insert(key.clone(), last.and_then(|catalog| catalog.plan(key).cloned()));
        }
        Ok(self.catalog.plan(key).or_else(|| self.gone.get(key)?.as_ref()))
    }

    /// Returns whether any change of a subscription has prices.
    pub(super) async fn rate_any(
        &mut self,
        connection: &mut PgConnection,
        plan_changes: &[PlanChange],
    ) -> Result<bool, EngineError> {
        for plan_change in plan_changes {
            if self.currency_of(connection, &plan_change.plan, &plan_change.own).await?.is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Returns the currency of the first price of a subscription; none if it has no prices.
    pub(super) async fn currency_of(
        &mut self,
        connection: &mut PgConnection,
        plan: &PlanKey,
        own: &OwnPricing,
    ) -> Result<Option<Currency>, EngineError> {
        let plan = self.plan(connection, plan).await?;
        Ok(prices_of(plan, &own.prices).first().map(|price| price.currency))
    }

    /// Returns the rating terms of the intervals of a period in a currency. A customer that owes no fixed
    /// fees pays only for usage.
    pub(super) async fn terms(
        &mut self,
        connection: &mut PgConnection,
        intervals: &[PlanInterval],
        currency: Currency,
        owes: bool,
    ) -> Result<Vec<RatingTerms>, EngineError> {
        let mut terms = Vec::new();
        for interval in intervals {
            let found = self.plan(connection, &interval.plan).await?;
            let prices = prices_of(found, &interval.own.prices);
            let is_rated =
                interval.is_billed && prices.first().is_some_and(|first| first.currency == currency);
            let of_currency = prices.iter().filter(|price| is_rated && price.currency == currency);
            let prices: Vec<Price> = of_currency.cloned().collect();
            let commitment = commitment_of(found, &interval.own.commitments, currency);
            let commitment = commitment.filter(|_| is_rated).cloned();
            let name = found.map(|plan| plan.name.clone());
            let plan_name = name.filter(|name| *name != interval.plan.as_str());
            let PlanInterval { plan, span, is_billed, .. } = interval.clone();
            terms.push(RatingTerms {
                plan,
                plan_name,
                span,
                is_billed,
                prices,
                commitment,
                with_fees: false,
                only_used: !owes,
            });
        }
        if let Some(last) = terms.iter_mut().rfind(|terms| !terms.prices.is_empty() && owes) {
            last.with_fees = true;
        }
        terms.iter_mut().filter(|terms| !terms.with_fees).for_each(|terms| terms.commitment = None);
        Ok(terms)
    }

    /// Returns the currencies in which the intervals may be billed.
    pub(super) async fn currencies(
        &mut self,
        connection: &mut PgConnection,
        intervals: &[PlanInterval],
    ) -> Result<BTreeSet<Currency>, EngineError> {
        let mut currencies = BTreeSet::new();
        for interval in intervals.iter().filter(|interval| interval.is_billed) {
            currencies.extend(self.currency_of(connection, &interval.plan, &interval.own).await?);
        }
        Ok(currencies)
    }
}
