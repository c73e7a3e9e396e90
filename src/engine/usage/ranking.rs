//! Rankings of subjects by usage, by cost and by limit, each from one snapshot.

use std::collections::HashMap;
use std::sync::Arc;

use serde::Serialize;

use crate::engine::error::EngineError;
use crate::engine::pricing::costs::Look;
use crate::engine::services::Engine;
use crate::engine::snapshot::ReadSnapshot;
use crate::store;
use crate::store::gate::counters::QuotaOf;
use crate::store::subjects::subscriptions::Holder;
use crate::store::usage::{HolderColumns, MeterQuery, UsageScope};
use metergate_domain::base::limits::{TOP_UNRANKED_MAX, USAGE_ROWS_MAX};
use metergate_domain::base::names::{ItemKey, MeterKey, PlanKey};
use metergate_domain::base::{Environment, Quantity, Span, Timestamp, Total, Violation};
use metergate_domain::catalog::StoredMeter;
use metergate_domain::gate::decision::resets_at;
use metergate_domain::gate::{CatalogIndex, CountedPrices};
use metergate_domain::pricing::price_book::nearest_to;
use metergate_domain::pricing::{CostBasis, Currency, ExchangeRate, MinorUnits, RatedUsage};
use metergate_domain::usage::query::percent;
use metergate_domain::usage::{Aggregate, GroupBySubject, RankBy, RankPageRequest, UsageQuery, UsageState};

/// A page of a ranking, the largest values first.
#[derive(Debug, Serialize)]
pub struct TopPage {
    pub by: &'static str,
    pub data: Vec<Ranked>,
    pub next_cursor: Option<String>,
    /// The subjects with prices that cannot be converted to the currency of a ranking by cost.
    #[serde(skip_serializing_if = "Unranked::is_empty")]
    pub unranked: Unranked,
}

/// Subjects without a rank, because no exchange rate converts the currency of their prices.
#[derive(Debug, Default, Serialize)]
pub struct Unranked {
    pub count: usize,
    /// The first subjects by name.
    pub subjects: Vec<UnrankedSubject>,
}

/// A subject without a rank, with its plan and the currency of its prices.
#[derive(Debug, Serialize)]
pub struct UnrankedSubject {
    pub subject: String,
    pub plan: PlanKey,
    pub currency: Currency,
}

impl Unranked {
    fn is_empty(&self) -> bool {
        self.count == 0
    }

    fn of(mut untold: Vec<(&Holder, Currency)>) -> Self {
        untold.sort_unstable_by(|(a, _), (b, _)| a.subject.cmp(&b.subject));
        let named = |(holder, currency): &(&Holder, Currency)| UnrankedSubject {
            subject: holder.subject.clone(),
            plan: holder.subscription.plan.clone(),
            currency: *currency,
        };
        Self { count: untold.len(), subjects: untold.iter().take(TOP_UNRANKED_MAX).map(named).collect() }
    }
}

/// A subject with its rank and value.
#[derive(Debug, Serialize)]
pub struct Ranked {
    /// The rank, counted from 1.
    pub rank: usize,
    pub subject: String,
    #[serde(flatten)]
    pub what: RankValue,
}

/// The value by which a subject is ranked.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub enum RankValue {
    Usage {
        value: Option<Total>,
        event_count: i64,
    },
    Cost {
        plan: PlanKey,
        currency: Currency,
        total: MinorUnits,
        /// The rate from the currency of the prices, if it differs.
        #[serde(skip_serializing_if = "Option::is_none")]
        exchange_rate: Option<ExchangeRate>,
    },
    Limit {
        plan: PlanKey,
        key: ItemKey,
        meter: MeterKey,
        quota: Quantity,
        used: Total,
        percent: Option<Total>,
        state: UsageState,
        resets_at: Option<Timestamp>,
    },
}

impl Engine {
    /// Returns a page of a ranking, from one snapshot.
    pub async fn ranking(
        &self,
        environment: Environment,
        by: &RankBy,
        ranks: RankPageRequest,
    ) -> Result<TopPage, EngineError> {
        let mut snapshot = self.read_snapshot(environment).await?;
        let terms = Arc::clone(&snapshot.terms);
        let mut unranked = Unranked::default();
        let (by, mut ranked) = match by {
            RankBy::Usage { meter, span } => {
                ("usage", by_usage(&mut snapshot, &terms, meter, *span, ranks).await?)
            }
            RankBy::Cost { span, currency } => {
                let ranked;
                (ranked, unranked) = by_cost(&mut snapshot, &terms, *span, *currency, ranks).await?;
                ("cost", ranked)
            }
            RankBy::Limit { meter } => {
                ("limit", by_limit(&mut snapshot, &terms, meter.as_ref(), ranks).await?)
            }
        };
        snapshot.snapshot.commit().await?;
        let more = ranked.len() > ranks.limit;
        ranked.truncate(ranks.limit);
        let rank = |(place, (subject, what))| Ranked { rank: ranks.after + place + 1, subject, what };
        let data = ranked.into_iter().enumerate().map(rank).collect();
        Ok(TopPage { by, data, next_cursor: ranks.next(more), unranked })
    }
}

fn known<'t>(terms: &'t CatalogIndex, key: &MeterKey) -> Result<&'t StoredMeter, EngineError> {
    terms.meter(key).ok_or_else(|| {
        let detail = format!("must be the key of a meter in the catalog; got `{key}`");
        EngineError::invalid(Violation::new("unknown_meter", detail).under("meter"))
    })
}

/// Returns one row more than the page holds if there are more.
async fn by_usage(
    snapshot: &mut ReadSnapshot,
    terms: &CatalogIndex,
    meter: &MeterKey,
    span: Span,
    ranks: RankPageRequest,
) -> Result<Vec<(String, RankValue)>, EngineError> {
    let stored = known(terms, meter)?;
    let query = UsageQuery { whose: GroupBySubject::EachSubject, ..UsageQuery::internal(meter, span) };
    let scope = &mut snapshot.scope();
    let rollup_coverage = store::usage::rollup_coverage(scope, Some(stored), span).await?;
    let bounds = [span.from, span.to];
    let meter_query = MeterQuery::new(scope.environment, stored, &query, UsageScope::All, &bounds);
    let found = store::usage::top(scope.connection, &rollup_coverage.plan(&meter_query), ranks).await?;
    let rank = |(subject, found): (String, Aggregate)| {
        let value = found.value(stored.meter.aggregation);
        (subject, RankValue::Usage { value, event_count: found.count })
    };
    Ok(found.into_iter().map(rank).collect())
}

/// Ranks all subjects that have a plan with prices, or prices of their own. Refuses more than
/// [`USAGE_ROWS_MAX`] such subjects. Subjects without an exchange rate get no rank.
async fn by_cost(
    snapshot: &mut ReadSnapshot,
    terms: &CatalogIndex,
    span: Span,
    currency: Option<Currency>,
    ranks: RankPageRequest,
) -> Result<(Vec<(String, RankValue)>, Unranked), EngineError> {
    let first = terms.catalog.plans.iter().flat_map(|plan| &plan.prices).next();
    let Some(currency) = currency.or(first.map(|price| price.currency)) else {
        return Ok((Vec::new(), Unranked::default()));
    };
    let with_prices = terms.catalog.plans.iter().filter(|plan| !plan.prices.is_empty());
    let plans: Vec<String> = with_prices.map(|plan| plan.key.to_string()).collect();
    let rows = USAGE_ROWS_MAX + 1;
    let holders = store::subjects::subscriptions::holders(&mut snapshot.scope(), &plans, rows).await?;
    if holders.len() > USAGE_ROWS_MAX {
        let detail =
            format!("a ranking by cost must have at most {USAGE_ROWS_MAX} subjects with prices; got more");
        return Err(EngineError::invalid(Violation::new("too_many_rows", detail)));
    }
    // subjects with the same prices are rated together
    let mut price_books: HashMap<(&PlanKey, Option<i64>), Vec<&Holder>> = HashMap::new();
    for holder in &holders {
        let own = Some(holder.subject_id).filter(|_| !holder.subscription.prices.is_empty());
        price_books.entry((&holder.subscription.plan, own)).or_default().push(holder);
    }
    let (mut costs, mut untold, mut no_rate) = (Vec::new(), Vec::new(), None);
    for together in price_books.values() {
        let Some(one) = together.first() else { continue };
        let Some(CountedPrices { book, .. }) = nearest_to(terms.prices_of(&one.subscription), Some(currency))
        else {
            continue;
        };
        match book.exchanged_to(Some(currency), &terms.rates, snapshot.now) {
            Ok(rate) => {
                // commitments apply to billing periods, and the range may be another span
                let pricing = CostBasis { book, rate: rate.as_ref(), commitment: None };
                let told = cost(snapshot, terms, pricing, together, span).await?;
                costs.extend(told.into_iter().map(|(total, holder)| (total, holder, rate.clone())));
            }
            Err(violations) => {
                no_rate.get_or_insert(violations);
                untold.extend(together.iter().map(|holder| (*holder, book.currency)));
            }
        }
    }
    if let Some(violations) = no_rate.filter(|_| costs.is_empty()) {
        return Err(violations.into());
    }
    let unranked = Unranked::of(untold);
    costs.sort_unstable_by(|(total, a, _), (other, b, _)| {
        other.cmp(total).then_with(|| a.subject.cmp(&b.subject))
    });
    let shown = costs.into_iter().skip(ranks.after).take(ranks.limit + 1);
    let rank = |(total, holder, exchange_rate): (MinorUnits, &Holder, Option<ExchangeRate>)| {
        let plan = holder.subscription.plan.clone();
        (holder.subject.clone(), RankValue::Cost { plan, currency, total, exchange_rate })
    };
    Ok((shown.map(rank).collect(), unranked))
}

/// Returns the costs of subjects that have the same prices.
async fn cost<'h>(
    snapshot: &mut ReadSnapshot,
    terms: &CatalogIndex,
    pricing: CostBasis<'_>,
    together: &[&'h Holder],
    span: Span,
) -> Result<Vec<(MinorUnits, &'h Holder)>, EngineError> {
    let book = pricing.book;
    let ids: Vec<i64> = together.iter().map(|holder| holder.subject_id).collect();
    let through = store::subjects::subject::paths_through(&mut snapshot.snapshot, &ids).await?;
    let mut whose = HolderColumns::default();
    for (path, members) in &through {
        for subject_id in members {
            whose.paths.push(*path);
            whose.subject_ids.push(*subject_id);
        }
    }
    let paths: Vec<i64> = through.keys().copied().collect();
    let rollup_coverage = store::usage::rollup_coverage(&mut snapshot.scope(), None, span).await?;
    let look = Look {
        environment: snapshot.environment,
        paths: &paths,
        holders: Some(&whose),
        bounds: &[span.from, span.to],
        levels_from: 0,
        book: Some(book),
        rollup_coverage: &rollup_coverage,
    };
    let meters: Vec<&StoredMeter> = book.meters().into_iter().filter_map(|key| terms.meter(key)).collect();
    let found = look.parts(&mut snapshot.snapshot, &meters).await?;
    let nothing = RatedUsage::default();
    let total = |holder: &&'h Holder| {
        let part = found.get(&(Some(holder.subject_id.to_string()), 0)).unwrap_or(&nothing);
        (pricing.total(part.lines(book, span)), *holder)
    };
    Ok(together.iter().map(total).collect())
}

async fn by_limit(
    snapshot: &mut ReadSnapshot,
    terms: &CatalogIndex,
    meter: Option<&MeterKey>,
    ranks: RankPageRequest,
) -> Result<Vec<(String, RankValue)>, EngineError> {
    if let Some(meter) = meter {
        known(terms, meter)?;
    }
    let mut quotas = Vec::new();
    for plan in &terms.catalog.plans {
        for limit in terms.limits_of(&plan.key) {
            if limit.uses_counter() && meter.is_none_or(|meter| limit.limit.meter == *meter) {
                quotas.push(QuotaOf {
                    plan: plan.key.clone(),
                    key: limit.limit.key.clone(),
                    definition: limit.definition,
                    quota: limit.limit.quota,
                });
            }
        }
    }
    let now = snapshot.now;
    let found = store::gate::counters::nearest_to_quota(&mut snapshot.scope(), &quotas, now, ranks).await?;
    let rank = |near: store::gate::counters::LimitNearQuota| {
        let QuotaOf { plan, key, .. } = quotas.get(near.place)?;
        let limit = terms.catalog.plan(plan)?.limit(key)?;
        let quota = Some(near.quota);
        let what = RankValue::Limit {
            plan: plan.clone(),
            key: key.clone(),
            meter: limit.meter.clone(),
            quota: near.quota,
            used: near.used,
            percent: percent(near.used, quota),
            state: UsageState::of(near.used, quota),
            resets_at: resets_at(near.period),
        };
        Some((near.subject, what))
    };
    Ok(found.into_iter().filter_map(rank).collect())
}
