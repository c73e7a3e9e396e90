//! Subscriptions: a subject's plan, its status, and its periods. Every change is a pure function of the
//! previous state and a time.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

use crate::base::fields::{self, ObjectParser, Parsed, Violation, Violations};
use crate::base::limits::{CATALOG_ITEMS_MAX, CLOSING, EVENT_AHEAD_MAX};
use crate::base::names::{ItemKey, PlanKey};
use crate::base::period::Cycle;
use crate::base::quantity::Quantity;
use crate::base::timestamp::Timestamp;
use crate::base::window::Span;
use crate::catalog::Catalog;
use crate::catalog::plan::{OnPlanChange, Plan};
use crate::pricing::cap::SpendCap;
use crate::pricing::commitment::{self, Commitment};
use crate::pricing::currency::Currency;
use crate::pricing::exchange::Rates;
use crate::pricing::price::Price;
use crate::pricing::price_book;

macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($variant:ident = $word:literal),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
        pub enum $name {
            $(#[serde(rename = $word)] $variant,)*
        }

        impl $name {
            pub const WORDS: &[(&'static str, Self)] = &[$(($word, Self::$variant)),*];

            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $word,)*
                }
            }
        }

        impl TryFrom<String> for $name {
            type Error = UnknownWord;

            fn try_from(word: String) -> Result<Self, UnknownWord> {
                let known = Self::WORDS.iter().find(|(known, _)| *known == word);
                known.map(|(_, value)| *value).ok_or(UnknownWord(word))
            }
        }
    };
}

/// A stored word that this version does not know.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is not a known word")]
pub struct UnknownWord(String);

words!(
    /// The status that the provider reports
    /// (<https://docs.stripe.com/api/subscriptions/object#subscription_object-status>).
    SubscriptionStatus {
        Trialing = "trialing",
        Active = "active",
        PastDue = "past_due",
        Unpaid = "unpaid",
        Paused = "paused",
        Canceled = "canceled",
        Incomplete = "incomplete",
        IncompleteExpired = "incomplete_expired",
    }
);

impl SubscriptionStatus {
    /// Returns whether the subject may use its plan.
    pub fn may_use(self) -> bool {
        matches!(self, Self::Trialing | Self::Active | Self::PastDue)
    }
}

words!(
    /// The kind of a change in the history of a subscription.
    SubscriptionChangeKind {
        Created = "created",
        PlanChanged = "plan_changed",
        Renewed = "renewed",
        Updated = "updated",
        EndSet = "end_set",
        Canceled = "canceled",
        FellBack = "fell_back",
    }
);

impl SubscriptionChangeKind {
    /// Returns the kind of the change from one state to the next.
    pub fn between(before: Option<&Subscription>, next: &Subscription, now: Timestamp) -> Self {
        let Some(before) = before else { return Self::Created };
        if before.plan != next.plan {
            Self::PlanChanged
        } else if before.cycle.billing_period(now) != next.cycle.billing_period(now)
            || before.cycle != next.cycle
        {
            Self::Renewed
        } else {
            Self::Updated
        }
    }

    /// Returns the kind of the change that carried out a subscription's end.
    pub fn ended(next: &Subscription) -> Self {
        if next.status == SubscriptionStatus::Canceled { Self::Canceled } else { Self::FellBack }
    }

    /// Returns whether the change ended the earlier subscription.
    pub fn is_end(self) -> bool {
        matches!(self, Self::Canceled | Self::FellBack)
    }
}

/// A subject's own subscription.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subscription {
    pub plan: PlanKey,
    pub status: SubscriptionStatus,
    pub cycle: Cycle,
    pub ends_at: Option<Timestamp>,
    /// The plan after the end. None means the fallback plan of the present plan.
    pub fallback_plan: Option<PlanKey>,
    /// The subject's own quotas by limit key. None means unlimited.
    pub overrides: BTreeMap<ItemKey, Option<Quantity>>,
    /// The subject's own prices. One with the key of a plan's price replaces that price; others are
    /// added.
    pub prices: Vec<Price>,
    /// The subject's own commitments. One in the currency of a plan's commitment replaces it; others
    /// are added.
    pub commitments: Vec<Commitment>,
    /// The time since which plan, periods and prices are unchanged.
    pub terms_since: Timestamp,
    /// The configuration version at the creation of the subscription. Set only if nothing was recorded
    /// for the subject before, and plan, periods and prices are unchanged since.
    pub pristine_version: Option<i64>,
    /// Start of counting by limit definition; earlier usage is not counted.
    pub resets: BTreeMap<Uuid, Timestamp>,
}

/// The parameters of a subscription in a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubscriptionParams {
    pub plan: PlanKey,
    pub status: SubscriptionStatus,
    /// The anchor of the provider's periods, which replaces the earlier cycle. Callers do not set it.
    pub anchor: Option<Timestamp>,
    pub cycle_start: Option<Timestamp>,
    pub period_end: Option<Timestamp>,
    pub ends_at: Option<Timestamp>,
    pub overrides: BTreeMap<ItemKey, Option<Quantity>>,
    pub prices: Vec<Price>,
    pub commitments: Vec<Commitment>,
}

impl SubscriptionParams {
    pub fn read(value: Value) -> Parsed<Self> {
        let mut fields = ObjectParser::new(value)?;
        let plan = fields.required("plan", |v| Ok(PlanKey::parse(fields::text(v)?)?));
        let status = fields.optional("status", |v| fields::one_of(v, SubscriptionStatus::WORDS));
        let cycle_start = fields.optional("cycle_start", fields::timestamp);
        let period_end = fields.optional("period_end", fields::timestamp);
        let ends_at = fields.optional("ends_at", fields::timestamp);
        let overrides = fields.optional("overrides", read_overrides);
        let prices = fields.list("prices", CATALOG_ITEMS_MAX, Price::read);
        let commitments = fields.list("commitments", CATALOG_ITEMS_MAX, Commitment::read);
        if let (Some(start), Some(end)) = (cycle_start, period_end)
            && end <= start
        {
            let detail = "must be after `cycle_start`";
            fields.add_error(Violation::new("invalid_range", detail).under("period_end"));
        }
        let plan = fields.finish_with(plan)?;
        Ok(Self {
            plan,
            status: status.unwrap_or(SubscriptionStatus::Active),
            anchor: None,
            cycle_start,
            period_end,
            ends_at,
            overrides: overrides.unwrap_or_default(),
            prices,
            commitments,
        })
    }

    /// Checks that plans, limits, prices and commitments exist in a catalog.
    pub fn validate(&self, catalog: &Catalog) -> Parsed<()> {
        let Some(plan) = catalog.plan(&self.plan) else {
            let detail = format!("must be the key of a plan in the catalog; got `{}`", self.plan);
            return Err(Violation::new("unknown_plan", detail).under("plan").into());
        };
        let unknown = |key: &&ItemKey| plan.limit(key).is_none();
        let mut violations: Vec<Violation> = self
            .overrides
            .keys()
            .filter(unknown)
            .map(|key| {
                let detail = format!("must be the key of a limit of the plan `{}`; got `{key}`", plan.key);
                Violation::new("unknown_limit", detail).under(key.as_str()).under("overrides")
            })
            .collect();
        let beside = prices_beside(plan, &self.prices);
        let mut found: Vec<Violation> =
            price_book::validate_price_list(&self.prices, &beside).err().into_iter().flatten().collect();
        found.extend(catalog.validate_prices(&self.prices, &beside));
        violations.extend(found.into_iter().map(|violation| violation.under("prices")));
        let found =
            commitment::validate_commitments(&self.commitments, beside.into_iter().chain(&self.prices));
        violations.extend(found.into_iter().map(|violation| violation.under("commitments")));
        Violation::check_all(violations)
    }

    /// Refuses own prices if a spend cap's currency then has neither prices nor an exchange rate.
    pub fn validate_incomparable<'c>(
        &self,
        catalog: &Catalog,
        caps: impl Iterator<Item = &'c SpendCap>,
        rates: &Rates,
        now: Timestamp,
    ) -> Parsed<()> {
        let prices = prices_of(catalog.plan(&self.plan), &self.prices);
        let Some(first) = prices.first().map(|price| price.currency) else { return Ok(()) };
        let own = self.prices.iter().position(|price| price.currency == first).unwrap_or_default();
        for cap in caps.filter(|cap| prices.iter().all(|price| price.currency != cap.currency)) {
            if let Err(violations) = rates.known(first, cap.currency, now) {
                let at = |violation: Violation| violation.under(&own.to_string()).under("prices");
                return Violation::check_all(violations.into_iter().map(at).collect());
            }
        }
        Ok(())
    }
}

/// Returns the prices of a plan that a subscription's own prices do not replace.
fn prices_beside<'a>(plan: &'a Plan, own: &[Price]) -> Vec<&'a Price> {
    plan.prices.iter().filter(|price| own.iter().all(|other| other.key != price.key)).collect()
}

/// Returns the prices of a plan and a subscription. An own price replaces the plan's price with the same
/// key; the other own prices follow.
pub fn prices_of<'a>(plan: Option<&'a Plan>, own: &'a [Price]) -> Cow<'a, [Price]> {
    let listed = plan.map_or(&[][..], |plan| &plan.prices);
    if own.is_empty() {
        return Cow::Borrowed(listed);
    }
    let replaced = |price: &Price| own.iter().find(|own| own.key == price.key).unwrap_or(price).clone();
    let mut prices: Vec<Price> = listed.iter().map(replaced).collect();
    let is_new = |own: &&Price| listed.iter().all(|price| price.key != own.key);
    prices.extend(own.iter().filter(is_new).cloned());
    Cow::Owned(prices)
}

/// Returns the commitment of a currency: the subscription's own, otherwise its plan's.
pub fn commitment_of<'a>(
    plan: Option<&'a Plan>,
    own: &'a [Commitment],
    currency: Currency,
) -> Option<&'a Commitment> {
    let of_plan = plan.map_or(&[][..], |plan| &plan.commitments);
    own.iter().chain(of_plan).find(|commitment| commitment.currency == currency)
}

/// Reads a stored list of prices.
pub fn read_prices(value: Value) -> Parsed<Vec<Price>> {
    fields::items(value, CATALOG_ITEMS_MAX, Price::read)
}

/// Reads a stored list of commitments.
pub fn read_commitments(value: Value) -> Parsed<Vec<Commitment>> {
    fields::items(value, CATALOG_ITEMS_MAX, Commitment::read)
}

/// Reads `{"limit": quota}`; null is unlimited.
pub fn read_overrides(value: Value) -> Parsed<BTreeMap<ItemKey, Option<Quantity>>> {
    let map = fields::object(value)?;
    if map.len() > CATALOG_ITEMS_MAX {
        return Violation::only("too_many", format!("must have at most {CATALOG_ITEMS_MAX} entries"));
    }
    let mut overrides = BTreeMap::new();
    let mut violations = Vec::new();
    for (name, value) in map {
        let read = ItemKey::parse(name.as_str()).map_err(Violations::from).and_then(|key| {
            let quota = if value.is_null() { None } else { Some(fields::quota(value)?) };
            Ok((key, quota))
        });
        match read {
            Ok((key, quota)) => {
                overrides.insert(key, quota);
            }
            Err(found) => violations.extend(found.under(&name)),
        }
    }
    Violation::check_all(violations).map(|()| overrides)
}

/// The requested end of a subscription.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    Now,
    PeriodEnd,
    At(Timestamp),
}

impl Subscription {
    /// Returns a subject's first subscription.
    pub fn begin(plan: PlanKey, now: Timestamp) -> Self {
        Self {
            plan,
            status: SubscriptionStatus::Active,
            cycle: Cycle { anchor: now, billing: None },
            ends_at: None,
            fallback_plan: None,
            overrides: BTreeMap::new(),
            prices: Vec::new(),
            commitments: Vec::new(),
            terms_since: now,
            pristine_version: None,
            resets: BTreeMap::new(),
        }
    }

    /// Applies parameters to the earlier subscription. They replace everything but the anchor, which
    /// stays if `cycle_start` is a boundary of its periods. Without `cycle_start`, no period moves.
    pub fn with_params(
        before: Option<&Self>,
        statement: SubscriptionParams,
        catalog: &Catalog,
        now: Timestamp,
    ) -> Parsed<Self> {
        let mut next = match before {
            Some(before) => before.clone(),
            None => Self::begin(statement.plan.clone(), now),
        };
        if let Some(anchor) = statement.anchor {
            next.cycle = Cycle { anchor, billing: None };
        } else if let Some(start) = statement.cycle_start {
            if before.is_none() || !next.cycle.is_boundary(start) {
                next.cycle.anchor = start;
            }
            // keeps the renewed period, so that a repeated renewal changes nothing
            let natural = Cycle { billing: None, ..next.cycle };
            next.cycle.billing = (start != next.cycle.anchor).then(|| natural.billing_period(start));
        }
        if let Some(end) = statement.period_end {
            let start = statement.cycle_start.unwrap_or_else(|| next.cycle.billing_period(now).from);
            if end <= start {
                let detail = format!("must be after the start of the period, {start}");
                return Err(Violation::new("invalid_range", detail).under("period_end").into());
            }
            next.cycle.billing = Some(Span { from: start, to: end });
        }
        if before.is_some_and(|before| next.has_moved_from(&before.cycle, now)) {
            next.terms_since = now;
            next.pristine_version = None;
        }
        next.move_to(statement.plan, catalog, now);
        next.status = statement.status;
        next.ends_at = statement.ends_at;
        next.fallback_plan = None;
        next.overrides = statement.overrides;
        next.commitments = statement.commitments;
        next.put_prices(statement.prices, now);
        Ok(next)
    }

    /// Returns the prices of its usage.
    pub fn prices<'a>(&'a self, catalog: &'a Catalog) -> Cow<'a, [Price]> {
        prices_of(catalog.plan(&self.plan), &self.prices)
    }

    /// Returns the commitment for the bill of the subscription in a currency.
    pub fn commitment<'a>(&'a self, catalog: &'a Catalog, currency: Currency) -> Option<&'a Commitment> {
        commitment_of(catalog.plan(&self.plan), &self.commitments, currency)
    }

    /// Returns the subscription with its end and its fallback plan set.
    #[must_use]
    pub fn ending(&self, end: End, fallback_plan: Option<PlanKey>, now: Timestamp) -> Self {
        let ends_at = match end {
            End::Now => now,
            End::PeriodEnd => self.cycle.billing_period(now).to,
            End::At(time) => time.max(now),
        };
        Self { ends_at: Some(ends_at), fallback_plan, ..self.clone() }
    }

    /// Returns the subscription after its end; none if the end is still to come.
    pub fn ended(&self, catalog: &Catalog, now: Timestamp) -> Option<Self> {
        let ends_at = self.ends_at.filter(|at| *at <= now && self.status != SubscriptionStatus::Canceled)?;
        let fallback = self
            .fallback_plan
            .as_ref()
            .or_else(|| catalog.plan(&self.plan)?.fallback_plan.as_ref())
            .and_then(|key| catalog.plan(key));
        let mut next = self.clone();
        let Some(plan) = fallback else {
            next.status = SubscriptionStatus::Canceled;
            return Some(next);
        };
        next.move_to(plan.key.clone(), catalog, ends_at);
        next.status = SubscriptionStatus::Active;
        next.cycle.billing = None;
        next.terms_since = ends_at;
        next.pristine_version = None;
        next.ends_at = None;
        next.fallback_plan = None;
        next.overrides = BTreeMap::new();
        next.commitments = Vec::new();
        next.put_prices(Vec::new(), ends_at);
        Some(next)
    }

    /// Returns whether a period changed in which usage may be recorded now. An announced renewal moves
    /// no period.
    fn has_moved_from(&self, cycle: &Cycle, now: Timestamp) -> bool {
        let around = [now.saturating_sub(CLOSING), now, now.saturating_add(EVENT_AHEAD_MAX)];
        let differs = |at: &Timestamp| self.cycle.billing_period(*at) != cycle.billing_period(*at);
        self.cycle.anchor != cycle.anchor || around.iter().any(differs)
    }

    /// Replaces the prices. New prices rate usage from `at` on, and spend caps count from zero.
    fn put_prices(&mut self, prices: Vec<Price>, at: Timestamp) {
        if self.prices != prices {
            self.prices = prices;
            self.terms_since = at;
            self.pristine_version = None;
        }
    }

    fn move_to(&mut self, plan: PlanKey, catalog: &Catalog, at: Timestamp) {
        if self.plan == plan {
            return;
        }
        self.plan = plan;
        self.terms_since = at;
        self.pristine_version = None;
        let Some(plan) = catalog.plan(&self.plan) else { return };
        for limit in &plan.limits {
            if limit.on_plan_change.unwrap_or(plan.on_plan_change) == OnPlanChange::Reset {
                self.resets.insert(limit.definition(), at);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn at(day: &str) -> Timestamp {
        Timestamp::parse(&format!("{day}T00:00:00Z")).unwrap()
    }

    fn catalog() -> Catalog {
        let limit = json!([{"key": "l", "meter": "m", "quota": 5, "period": "month"}]);
        Catalog::read(json!({
            "meters": [{"key": "m", "event_name": "e", "aggregation": "sum"}],
            "plans": [
                {"key": "free", "limits": limit, "on_plan_change": "reset"},
                {"key": "pro", "limits": limit, "fallback_plan": "free"},
            ],
        }))
        .unwrap()
    }

    fn put(before: Option<&Subscription>, statement: Value, now: &str) -> Subscription {
        Subscription::with_params(before, SubscriptionParams::read(statement).unwrap(), &catalog(), at(now))
            .unwrap()
    }

    #[test]
    fn renewals_keep_the_anchor() {
        let first = put(None, json!({"plan": "pro", "cycle_start": "2026-01-31T00:00:00Z"}), "2026-02-05");
        assert_eq!(first.cycle.anchor, at("2026-01-31"));
        let renewed =
            put(Some(&first), json!({"plan": "pro", "cycle_start": "2026-02-28T00:00:00Z"}), "2026-02-28");
        assert_eq!(renewed.cycle.anchor, at("2026-01-31"));
        assert_eq!(renewed.cycle.billing_period(at("2026-03-01")).to, at("2026-03-31"));
        let untouched = put(Some(&renewed), json!({"plan": "pro"}), "2026-03-07");
        assert_eq!(untouched.cycle, renewed.cycle);
        let moved =
            put(Some(&renewed), json!({"plan": "pro", "cycle_start": "2026-03-15T00:00:00Z"}), "2026-03-15");
        assert_eq!(moved.cycle.anchor, at("2026-03-15"));
        assert_eq!(put(None, json!({"plan": "pro"}), "2026-02-05").cycle.anchor, at("2026-02-05"));
    }

    #[test]
    fn ended_subscriptions_fall_back_or_become_canceled() {
        let (catalog, pro) = (catalog(), put(None, json!({"plan": "pro"}), "2026-01-10"));
        let ending = pro.ending(End::PeriodEnd, None, at("2026-01-20"));
        assert_eq!(ending.ends_at, Some(at("2026-02-10")));
        assert_eq!(ending.ended(&catalog, at("2026-02-09")), None);
        let fallen = ending.ended(&catalog, at("2026-03-01")).unwrap();
        assert_eq!(
            (fallen.plan.as_str(), fallen.terms_since, fallen.ends_at),
            ("free", at("2026-02-10"), None)
        );
        assert_eq!(fallen.resets.values().copied().collect::<Vec<_>>(), [at("2026-02-10")]);
        let over = fallen.ending(End::Now, None, at("2026-03-01")).ended(&catalog, at("2026-03-01")).unwrap();
        assert_eq!((over.plan.as_str(), over.status), ("free", SubscriptionStatus::Canceled));
        assert_eq!(over.ended(&catalog, at("2026-04-01")), None);
        let named = PlanKey::parse("pro").unwrap();
        let past = over.ending(End::At(at("2026-01-01")), Some(named), at("2026-03-02"));
        assert_eq!(past.ends_at, Some(at("2026-03-02")));
    }

    #[test]
    fn unknown_references_are_reported_by_name() {
        let refused = |statement: Value| {
            let violations =
                SubscriptionParams::read(statement).and_then(|s| s.validate(&catalog())).unwrap_err();
            (violations[0].pointer.clone(), violations[0].code)
        };
        let cases = [
            (json!({"plan": "none"}), "/plan", "unknown_plan"),
            (json!({"plan": "pro", "overrides": {"x": 1}}), "/overrides/x", "unknown_limit"),
            (json!({"plan": "pro", "overrides": {"l": -1}}), "/overrides/l", "invalid_value"),
            (json!({"plan": "pro", "status": "dead"}), "/status", "invalid_choice"),
            (json!({}), "/plan", "missing_field"),
            (
                json!({"plan": "pro", "cycle_start": "2026-01-02T00:00:00Z", "period_end": "2026-01-01T00:00:00Z"}),
                "/period_end",
                "invalid_range",
            ),
        ];
        for (statement, pointer, code) in cases {
            assert_eq!(refused(statement.clone()), (pointer.to_owned(), code), "{statement}");
        }
    }
}
