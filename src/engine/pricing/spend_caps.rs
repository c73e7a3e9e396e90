//! Replaces the spend caps of subjects, and shows them with the spent amount.

use std::sync::Arc;

use serde::Serialize;

use crate::engine::change::ChangeTransaction;
use crate::engine::environment_cache;
use crate::engine::error::EngineError;
use crate::engine::services::{Engine, detached};
use crate::engine::snapshot::ReadSnapshot;
use crate::engine::usage::report::Viewer;
use crate::store::subjects::subject::Which;
use crate::store::{self, StoreError};
use metergate_domain::base::names::SubjectId;
use metergate_domain::base::{Cycle, Environment, Span, Timestamp, Violation};
use metergate_domain::gate::decision::resets_at;
use metergate_domain::gate::{CapTerms, CatalogIndex, CounterSource, EffectiveFrom, Path};
use metergate_domain::pricing::{Amount, ExchangeRate, SpendCap};

/// The spend caps of a subject and of its plan.
#[derive(Debug, Clone, Serialize)]
pub struct CapsView {
    pub subject: String,
    pub spend_caps: Vec<CapView>,
}

#[derive(Debug, Clone, Serialize)]
pub struct CapView {
    #[serde(flatten)]
    pub cap: SpendCap,
    /// The plan or the subject that the cap belongs to.
    pub source: CapSource,
    /// The exact cost of the used quantities. None without prices, and for end users with present or former
    /// descendants, because the cost includes their usage.
    pub spent: Option<Amount>,
    /// The most that the held quantities may cost.
    pub held: Option<Amount>,
    pub remaining: Option<Amount>,
    /// The rate from the currency of the prices to the currency of the cap, if they differ.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exchange_rate: Option<ExchangeRate>,
    pub period_start: Timestamp,
    /// The end of the period. None means that the period never ends.
    pub resets_at: Option<Timestamp>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CapSource {
    Plan,
    Subject,
}

impl Engine {
    /// Replaces the caps of a subject. Caps that change only their amount keep their counters.
    pub async fn put_spend_caps(
        &self,
        environment: Environment,
        subject: SubjectId,
        viewer: Viewer,
        caps: Vec<SpendCap>,
    ) -> Result<CapsView, EngineError> {
        let (database, clock) = (self.database().clone(), self.inner.clock.clone());
        let name = subject.clone();
        detached(async move {
            let mut change = ChangeTransaction::begin(database.pool(), environment, &clock).await?;
            let names = [name.to_string()];
            store::subjects::subject::insert_missing(&mut change.scope(), &names).await?;
            let paths = store::subjects::subject::paths(&mut change.scope(), Which::Of(&names)).await?;
            let vanished =
                || EngineError::Internal("a subject disappeared within its transaction".to_owned());
            let path = paths.into_iter().next().ok_or_else(vanished)?;
            let member = path.members.first().ok_or_else(vanished)?;
            let terms = environment_cache::catalog_index(&mut change.scope()).await?;
            let now = change.time_of_change().await?;
            validate_spend_caps(&terms, &path, &caps, now)?;
            let since = |cap: &SpendCap| {
                let same = |terms: &&CapTerms| {
                    terms.cap.key == cap.key && terms.cap.definition() == cap.definition()
                };
                let at = member.caps.iter().find(same).map_or(now, |terms| terms.since.at);
                EffectiveFrom { at, ..EffectiveFrom::UNKNOWN }
            };
            let caps: Vec<CapTerms> =
                caps.iter().map(|cap| CapTerms { cap: cap.clone(), since: since(cap) }).collect();
            store::pricing::spend_caps::replace(&mut change.scope(), member.subject_id, &caps).await?;
            Ok(change.commit().await?)
        })
        .await?;
        self.spend_caps(environment, &subject, viewer).await
    }

    /// Returns the caps of a subject with the spent amounts that the caller may see.
    pub async fn spend_caps(
        &self,
        environment: Environment,
        subject: &SubjectId,
        viewer: Viewer,
    ) -> Result<CapsView, EngineError> {
        let mut snapshot = self.read_snapshot(environment).await?;
        let terms = Arc::clone(&snapshot.terms);
        let path = snapshot.subject_path(subject).await?;
        let now = snapshot.now;
        let shows_spent = viewer == Viewer::Application || stands_alone(&mut snapshot, subject).await?;
        let mut views = Vec::new();
        for (source, cap) in caps(&terms, &path) {
            let applicable_cap = terms.applicable_cap_of(&path, cap, now);
            let calendar = Cycle { anchor: now, billing: None };
            let cycle = path.nearest().map_or(&calendar, |(_, subscription)| &subscription.cycle);
            let period = applicable_cap.map_or_else(
                || cap.cap.period_at(cycle, now),
                |applicable_cap| applicable_cap.period_at(now),
            );
            let spent = match applicable_cap.as_ref().filter(|_| shows_spent) {
                None => None,
                Some(applicable_cap) => {
                    let counters = snapshot
                        .counters(applicable_cap.priced_usages().map(CounterSource::PricedUsage))
                        .await?;
                    applicable_cap
                        .spent(now, |key| counters.get(key).map(|counter| counter.level).unwrap_or_default())
                }
            };
            let rate = applicable_cap.and_then(|applicable_cap| applicable_cap.rate().cloned());
            views.push(CapView { exchange_rate: rate, ..view(cap, source, spent, period) });
        }
        snapshot.snapshot.commit().await?;
        Ok(CapsView { subject: subject.to_string(), spend_caps: views })
    }
}

/// Returns whether a subject has no descendants and never had any.
async fn stands_alone(snapshot: &mut ReadSnapshot, subject: &SubjectId) -> Result<bool, StoreError> {
    let (scope, names) = (&mut snapshot.scope(), [subject.to_string()]);
    let own = store::subjects::subject::path_ids(scope, &names, false).await?;
    let all = store::subjects::subject::path_ids(scope, &names, true).await?;
    Ok(all.len() == own.len())
}

/// Returns the caps of the first subject of a path.
fn caps<'a>(terms: &'a CatalogIndex, path: &'a Path) -> Vec<(CapSource, &'a CapTerms)> {
    let Some(member) = path.members.first() else { return Vec::new() };
    let own = |cap: &CapTerms| member.caps.contains(cap);
    let source = |cap: &CapTerms| if own(cap) { CapSource::Subject } else { CapSource::Plan };
    terms.caps_on(member).map(|cap| (source(cap), cap)).collect()
}

fn view(terms: &CapTerms, source: CapSource, spent: Option<(Amount, Amount)>, period: Span) -> CapView {
    let (spent, held) = spent.unzip();
    let taken = spent.clone().zip(held.clone()).map(|(spent, held)| spent + held);
    CapView {
        remaining: taken.map(|taken| (terms.cap.amount.clone() - taken).max(Amount::default())),
        cap: terms.cap.clone(),
        source,
        spent,
        held,
        exchange_rate: None,
        period_start: period.from,
        resets_at: resets_at(period),
    }
}

/// Validates that each cap is in a currency of the prices, or in one with an exchange rate.
fn validate_spend_caps(
    terms: &CatalogIndex,
    path: &Path,
    caps: &[SpendCap],
    now: Timestamp,
) -> Result<(), EngineError> {
    let violation = |(index, cap): (usize, &SpendCap)| {
        let from = terms.prices_lie_in(path, cap.currency, now)?;
        let detail = format!(
            "must be a currency with an exchange rate from {from}; got {}; set a rate with `PUT /v1/rates`",
            cap.currency
        );
        let violation = Violation::new("no_rate", detail).under("currency");
        Some(violation.under(&index.to_string()).under("spend_caps"))
    };
    let violations: Vec<Violation> = caps.iter().enumerate().filter_map(violation).collect();
    Ok(Violation::check_all(violations)?)
}
