//! Plans of the catalog: limits, prices and features under a key.

use serde::Serialize;
use serde_json::{Map, Value};
use uuid::Uuid;

use super::meter::Filter;
use super::stripe_price_ids::StripePriceIds;
use crate::base::digest::Digest;
use crate::base::fields::{self, ObjectParser, Parsed, Violation};
use crate::base::limits::{CATALOG_ITEMS_MAX, NAME_CHARS_MAX};
use crate::base::names::{ItemKey, MeterKey, PlanKey};
use crate::base::period::{Anchor, Cycle, Period};
use crate::base::quantity::Quantity;
use crate::base::timestamp::Timestamp;
use crate::base::window::{Span, Zone};
use crate::credits::offers::{CreditAlert, PlanCredits};
use crate::pricing::cap::SpendCap;
use crate::pricing::commitment::{self, Commitment};
use crate::pricing::price::Price;

/// A plan of the catalog.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Plan {
    pub key: PlanKey,
    pub name: String,
    pub unmatched: Unmatched,
    pub fallback_plan: Option<PlanKey>,
    pub on_plan_change: OnPlanChange,
    /// Any JSON, for pages that show plans.
    pub features: Value,
    pub limits: Vec<Limit>,
    pub prices: Vec<Price>,
    /// The minimum and maximum of a bill, per currency.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub commitments: Vec<Commitment>,
    pub spend_caps: Vec<SpendCap>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub credit_grants: Vec<PlanCredits>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub credit_alerts: Vec<CreditAlert>,
    pub stripe_price_ids: StripePriceIds,
}

/// The rule for usage that no limit matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Unmatched {
    Deny,
    Allow,
}

/// The treatment of earlier usage after a change to another plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum OnPlanChange {
    Keep,
    Reset,
}

impl OnPlanChange {
    const WORDS: [(&'static str, Self); 2] = [("keep", Self::Keep), ("reset", Self::Reset)];
}

/// A quota on a meter, or on a slice of it, per period.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Limit {
    pub key: ItemKey,
    pub meter: MeterKey,
    #[serde(skip_serializing_if = "Filter::is_empty")]
    pub filter: Filter,
    /// The quota per period; none is unlimited.
    pub quota: Option<Quantity>,
    pub period: Period,
    pub anchor: Anchor,
    pub timezone: Zone,
    pub enforcement: Enforcement,
    pub overage: Overage,
    /// The rule of this limit. None means the rule of its plan.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_plan_change: Option<OnPlanChange>,
}

/// The effect of an exceeded quota: a hard limit denies, a soft one only reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Enforcement {
    Hard,
    Soft,
}

/// The treatment of use above the quota: denied, or paid with credits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Overage {
    None,
    Credits,
}

impl Limit {
    fn read(value: Value) -> Parsed<Self> {
        let mut fields = ObjectParser::new(value)?;
        let key = fields.required("key", |v| Ok(ItemKey::parse(fields::text(v)?)?));
        let meter = fields.required("meter", |v| Ok(MeterKey::parse(fields::text(v)?)?));
        let filter = fields.optional("filter", Filter::read);
        let quota = fields.nullable("quota", fields::quota);
        let period = fields.required("period", |v| fields::one_of(v, &Period::WORDS));
        let anchor = fields.optional("anchor", |v| fields::one_of(v, &Anchor::WORDS));
        let timezone = fields.optional("timezone", |v| Zone::parse(&fields::text(v)?));
        let enforcement = fields.optional("enforcement", |v| {
            fields::one_of(v, &[("hard", Enforcement::Hard), ("soft", Enforcement::Soft)])
        });
        let overage = fields.optional("overage", |v| {
            fields::one_of(v, &[("none", Overage::None), ("credits", Overage::Credits)])
        });
        let on_plan_change = fields.optional("on_plan_change", |v| fields::one_of(v, &OnPlanChange::WORDS));
        let (key, meter, period) = fields.finish_with((key, meter, period))?;
        Ok(Self {
            key,
            meter,
            filter: filter.unwrap_or_default(),
            quota: quota.flatten(),
            period,
            anchor: anchor.unwrap_or(Anchor::Calendar),
            timezone: timezone.unwrap_or_default(),
            enforcement: enforcement.unwrap_or(Enforcement::Hard),
            overage: overage.unwrap_or(Overage::None),
            on_plan_change,
        })
    }

    /// Returns the identity of the limit's counters, which does not depend on the quota. Limits of
    /// equal definition share a subject's counter, even across plans.
    pub fn definition(&self) -> Uuid {
        let definition = (&self.meter, &self.filter, self.period, self.anchor, &self.timezone);
        // keys and enums always serialise
        let text = serde_json::to_vec(&definition).unwrap_or_default();
        Digest::default().bytes(&text).finish()
    }

    /// Returns the period that contains an instant.
    pub fn period_at(&self, cycle: &Cycle, at: Timestamp) -> Span {
        self.period.around(at, self.anchor, &self.timezone, cycle)
    }
}

impl Plan {
    pub fn limit(&self, key: &ItemKey) -> Option<&Limit> {
        self.limits.iter().find(|limit| limit.key == *key)
    }

    pub fn read(value: Value) -> Parsed<Self> {
        let mut fields = ObjectParser::new(value)?;
        let key = fields.required("key", |v| Ok(PlanKey::parse(fields::text(v)?)?));
        let name = fields.optional("name", |v| {
            let name = fields::text(v)?;
            if name.chars().count() > NAME_CHARS_MAX {
                return Violation::only("too_long", format!("must have at most {NAME_CHARS_MAX} characters"));
            }
            Ok(name)
        });
        let unmatched = fields.optional("unmatched", |v| {
            fields::one_of(v, &[("deny", Unmatched::Deny), ("allow", Unmatched::Allow)])
        });
        let fallback_plan = fields.optional("fallback_plan", |v| Ok(PlanKey::parse(fields::text(v)?)?));
        let on_plan_change = fields.optional("on_plan_change", |v| fields::one_of(v, &OnPlanChange::WORDS));
        let features = fields.optional("features", Ok);
        let limits = fields.list("limits", CATALOG_ITEMS_MAX, Limit::read);
        let prices = fields.list("prices", CATALOG_ITEMS_MAX, Price::read);
        let commitments = fields.list("commitments", CATALOG_ITEMS_MAX, Commitment::read);
        let spend_caps = fields.list("spend_caps", CATALOG_ITEMS_MAX, SpendCap::read);
        let credit_grants = fields.list("credit_grants", CATALOG_ITEMS_MAX, PlanCredits::read);
        let credit_alerts = fields.list("credit_alerts", CATALOG_ITEMS_MAX, CreditAlert::read);
        let stripe_price_ids = fields.optional("stripe_price_ids", StripePriceIds::read);
        // fields with errors were not read, so a repeated key could not be seen
        if !fields.has_errors() {
            for violation in commitment::validate_commitments(&commitments, prices.iter()) {
                fields.add_error(violation.under("commitments"));
            }
        }
        let keys: [(&str, &str, Vec<&ItemKey>); 3] = [
            (
                "limits",
                "must not contain two limits with one key; rename or remove one",
                limits.iter().map(|limit| &limit.key).collect(),
            ),
            (
                "spend_caps",
                "must not contain two spend caps with one key; rename or remove one",
                spend_caps.iter().map(|cap| &cap.key).collect(),
            ),
            (
                "credit_grants",
                "must not contain two credit grants with one key; rename or remove one",
                credit_grants.iter().map(|c| &c.key).collect(),
            ),
        ];
        for (name, detail, _) in keys.iter().filter(|(_, _, keys)| super::meter::has_repeats(keys)) {
            fields.add_error(Violation::new("duplicate_key", *detail).under(name));
        }
        let key = fields.finish_with(key)?;
        Ok(Self {
            name: name.unwrap_or_else(|| key.to_string()),
            key,
            unmatched: unmatched.unwrap_or(Unmatched::Deny),
            fallback_plan,
            on_plan_change: on_plan_change.unwrap_or(OnPlanChange::Keep),
            features: features.unwrap_or_else(|| Value::Object(Map::new())),
            limits,
            prices,
            commitments,
            spend_caps,
            credit_grants,
            credit_alerts,
            stripe_price_ids: stripe_price_ids.unwrap_or_default(),
        })
    }
}
