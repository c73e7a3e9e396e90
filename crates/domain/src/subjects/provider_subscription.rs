//! Subscriptions at the billing provider, and their effect on a subject's own subscription. The effect
//! depends on the provider's latest state only, never on the order of its events.

use serde::Serialize;
use uuid::Uuid;

use super::subscription::{Subscription, SubscriptionParams, SubscriptionStatus};
use crate::base::digest::Digest;
use crate::base::names::{PlanKey, SubjectId};
use crate::base::timestamp::Timestamp;
use crate::base::window::Span;
use crate::catalog::plan::Plan;

/// The state of a subscription at the provider.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ProviderSubscription {
    pub id: String,
    pub customer: String,
    /// The subject that the application named in the metadata.
    pub subject: Option<SubjectId>,
    pub status: SubscriptionStatus,
    pub prices: Vec<String>,
    /// The anchor of the billing periods.
    pub anchor: Timestamp,
    /// The current period. If the items have several, the one that ends first.
    pub period: Option<Span>,
    /// The planned end, if one is known.
    pub ends_at: Option<Timestamp>,
    pub ended_at: Option<Timestamp>,
    pub created_at: Timestamp,
}

impl ProviderSubscription {
    /// Returns whether the subscription has ended for good. The provider never revives one.
    pub fn is_over(&self) -> bool {
        matches!(self.status, SubscriptionStatus::Canceled | SubscriptionStatus::IncompleteExpired)
    }

    /// Returns a fingerprint of the whole state.
    pub fn says(&self) -> Uuid {
        digest(self)
    }

    /// Returns a fingerprint of the parts that matter to the subject.
    pub fn terms(&self, plan: &PlanKey) -> Uuid {
        digest(&(plan, self.status, self.anchor, self.period, self.ends_at, self.ended_at))
    }

    /// Returns the rank among the subscriptions of one subject; the greatest leads. Usable ones precede
    /// suspended, canceled and incomplete ones, in this order; then the latest created leads.
    fn rank(&self) -> (u8, Timestamp, &str) {
        let standing = match self.status {
            status if status.may_use() => 3,
            SubscriptionStatus::Canceled => 1,
            SubscriptionStatus::Incomplete | SubscriptionStatus::IncompleteExpired => 0,
            _ => 2,
        };
        (standing, self.created_at, &self.id)
    }

    /// Returns whether the subject's own subscription stays unchanged. An incomplete subscription never
    /// gave access, so it takes none away. A canceled one ends only a plan that the provider set.
    /// `followed` is the last plan set by the provider, if any.
    pub fn leaves_alone(
        &self,
        plan: &PlanKey,
        before: Option<&Subscription>,
        followed: Option<&PlanKey>,
        default_plan: Option<&PlanKey>,
    ) -> bool {
        let in_use = before.filter(|before| before.status.may_use());
        match self.status {
            SubscriptionStatus::Incomplete | SubscriptionStatus::IncompleteExpired => match before {
                None => default_plan.is_some(),
                Some(_) => in_use.is_some(),
            },
            SubscriptionStatus::Canceled => in_use.is_some_and(|before| match followed {
                // the plan has ended already, or the application moved the subject to another plan
                Some(followed) => before.plan != *followed,
                None => before.plan != *plan && Some(&before.plan) != default_plan,
            }),
            _ => false,
        }
    }

    /// Returns the parameters of the subject's own subscription. Overrides, prices and commitments of
    /// the subject are kept only if the plan stays the same.
    pub fn statement(
        &self,
        plan: &Plan,
        before: Option<&Subscription>,
        now: Timestamp,
    ) -> SubscriptionParams {
        let falls_back = plan.fallback_plan.is_some();
        let is_over = self.status == SubscriptionStatus::Canceled
            || (self.status == SubscriptionStatus::IncompleteExpired && falls_back);
        let ends_at = if is_over { Some(self.ended_at.map_or(now, |at| at.min(now))) } else { self.ends_at };
        // usage must not count on the fallback plan before that plan is known to be in force
        let ends_at = ends_at.map(|at| if falls_back { at.max(now) } else { at });
        let kept =
            before.filter(|before| before.plan == plan.key && before.status != SubscriptionStatus::Canceled);
        let own = |before: &Subscription| {
            (before.overrides.clone(), before.prices.clone(), before.commitments.clone())
        };
        let (overrides, prices, commitments) = kept.map(own).unwrap_or_default();
        SubscriptionParams {
            plan: plan.key.clone(),
            status: if is_over { SubscriptionStatus::Active } else { self.status },
            anchor: Some(self.anchor),
            cycle_start: self.period.map(|period| period.from),
            period_end: self.period.map(|period| period.to),
            ends_at,
            overrides: overrides.into_iter().filter(|(key, _)| plan.limit(key).is_some()).collect(),
            prices,
            commitments,
        }
    }
}

fn digest(said: &impl Serialize) -> Uuid {
    // keys, enums and times always serialise
    Digest::default().bytes(&serde_json::to_vec(said).unwrap_or_default()).finish()
}

/// Returns the leading subscription of a subject.
pub fn leading<T>(all: &[T], billed: impl Fn(&T) -> &ProviderSubscription) -> Option<&T> {
    all.iter().max_by(|a, b| billed(a).rank().cmp(&billed(b).rank()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::Catalog;
    use crate::pricing::commitment::Commitment;
    use crate::pricing::price::Price;
    use serde_json::json;

    fn at(day: &str) -> Timestamp {
        Timestamp::parse(&format!("{day}T00:00:00Z")).unwrap()
    }

    fn billed(id: &str, status: SubscriptionStatus, created: &str) -> ProviderSubscription {
        ProviderSubscription {
            id: id.to_owned(),
            customer: "cus_1".to_owned(),
            subject: None,
            status,
            prices: vec!["price_pro".to_owned()],
            anchor: at("2026-01-31"),
            period: Some(Span { from: at("2026-02-28"), to: at("2026-03-31") }),
            ends_at: None,
            ended_at: None,
            created_at: at(created),
        }
    }

    fn catalog() -> Catalog {
        let limits = json!([{"key": "l", "meter": "m", "quota": 5, "period": "billing"}]);
        Catalog::read(json!({
            "default_plan": "free",
            "meters": [{"key": "m", "event_name": "e", "aggregation": "sum"}],
            "plans": [
                {"key": "free", "limits": limits},
                {"key": "pro", "limits": limits, "stripe_price_ids": ["price_pro"]},
                {"key": "team", "limits": limits, "fallback_plan": "free",
                 "stripe_price_ids": {"test": ["price_team"], "live": ["price_live"]}},
            ],
        }))
        .unwrap()
    }

    /// Returns the resulting subscription as text: plan, status, anchor, billing period and end.
    fn after(
        billed: &ProviderSubscription,
        plan: &str,
        before: Option<&Subscription>,
        now: &str,
    ) -> Subscription {
        let catalog = catalog();
        let plan = catalog.plan(&PlanKey::parse(plan).unwrap()).unwrap();
        let statement = billed.statement(plan, before, at(now));
        statement.validate(&catalog).unwrap();
        let next = Subscription::with_params(before, statement, &catalog, at(now)).unwrap();
        next.ended(&catalog, at(now)).unwrap_or(next)
    }

    #[test]
    fn each_provider_status_maps_to_its_effect() {
        let base = billed("sub", SubscriptionStatus::Active, "2026-01-31");
        let ending = ProviderSubscription { ends_at: Some(at("2026-03-31")), ..base.clone() };
        let deleted = ProviderSubscription {
            status: SubscriptionStatus::Canceled,
            ended_at: Some(at("2026-03-10")),
            ..base.clone()
        };
        let with = |status: SubscriptionStatus| ProviderSubscription { status, ..base.clone() };
        let cases = [
            (base.clone(), "pro", "2026-03-01", "pro active ends -"),
            (with(SubscriptionStatus::Trialing), "pro", "2026-03-01", "pro trialing ends -"),
            (with(SubscriptionStatus::PastDue), "pro", "2026-03-01", "pro past_due ends -"),
            (with(SubscriptionStatus::Unpaid), "pro", "2026-03-01", "pro unpaid ends -"),
            (with(SubscriptionStatus::Paused), "pro", "2026-03-01", "pro paused ends -"),
            (with(SubscriptionStatus::Incomplete), "pro", "2026-03-01", "pro incomplete ends -"),
            (
                with(SubscriptionStatus::IncompleteExpired),
                "pro",
                "2026-03-01",
                "pro incomplete_expired ends -",
            ),
            (with(SubscriptionStatus::IncompleteExpired), "team", "2026-03-01", "free active ends -"),
            (ending.clone(), "pro", "2026-03-30", "pro active ends 2026-03-31T00:00:00Z"),
            (ending.clone(), "pro", "2026-03-31", "pro canceled ends 2026-03-31T00:00:00Z"),
            (ending.clone(), "team", "2026-03-31", "free active ends -"),
            (deleted.clone(), "pro", "2026-03-12", "pro canceled ends 2026-03-10T00:00:00Z"),
            // the provider's clock is ahead of ours
            (deleted.clone(), "pro", "2026-03-09", "pro canceled ends 2026-03-09T00:00:00Z"),
            (deleted, "team", "2026-03-12", "free active ends -"),
        ];
        for (billed, plan, now, expected) in cases {
            let next = after(&billed, plan, None, now);
            let ends = next.ends_at.map_or("-".to_owned(), |at| at.to_string());
            let shown = format!("{} {} ends {ends}", next.plan, next.status.as_str());
            assert_eq!(shown, expected, "{billed:?} at {now}");
            assert_eq!(next.cycle.anchor, at("2026-01-31"));
        }
    }

    #[test]
    fn skipped_provider_states_do_not_change_the_result() {
        let february = billed("sub", SubscriptionStatus::Active, "2026-01-31");
        let march = ProviderSubscription {
            period: Some(Span { from: at("2026-03-31"), to: at("2026-04-30") }),
            ..february.clone()
        };
        let straight = after(&march, "pro", None, "2026-04-01");
        let through = after(&march, "pro", Some(&after(&february, "pro", None, "2026-03-01")), "2026-04-01");
        assert_eq!((straight.cycle, straight.plan), (through.cycle, through.plan));
        assert_eq!(straight.cycle.billing_period(at("2026-05-01")).to, at("2026-05-31"));
    }

    #[test]
    fn overrides_are_dropped_when_the_plan_changes() {
        let base = billed("sub", SubscriptionStatus::Active, "2026-01-31");
        let mut first = after(&base, "pro", None, "2026-03-01");
        first.overrides.insert(crate::base::names::ItemKey::parse("l").unwrap(), None);
        let own = json!({"key": "own", "model": "flat", "currency": "usd", "amount": 1});
        first.prices = vec![Price::read(own).unwrap()];
        first.commitments = vec![Commitment::read(json!({"currency": "usd", "minimum_amount": 1})).unwrap()];
        let kept = |plan: &str| {
            let next = after(&base, plan, Some(&first), "2026-03-02");
            (next.overrides.len(), next.prices.len(), next.commitments.len())
        };
        assert_eq!((kept("pro"), kept("team")), ((1, 1, 1), (0, 0, 0)));
    }

    #[test]
    fn one_of_several_subscriptions_governs() {
        let lead =
            |all: &[ProviderSubscription]| leading(all, |b| b).map(|b| b.id.clone()).unwrap_or_default();
        let old = billed("old", SubscriptionStatus::Active, "2026-01-01");
        let new = billed("new", SubscriptionStatus::Active, "2026-02-01");
        let with = |status: SubscriptionStatus| ProviderSubscription { status, ..new.clone() };
        assert_eq!(lead(&[old.clone(), new.clone()]), "new");
        for status in [
            SubscriptionStatus::Unpaid,
            SubscriptionStatus::Paused,
            SubscriptionStatus::Canceled,
            SubscriptionStatus::Incomplete,
        ] {
            assert_eq!(lead(&[with(status), old.clone()]), "old", "{status:?}");
        }
        let unpaid = ProviderSubscription { status: SubscriptionStatus::Unpaid, ..old.clone() };
        let ended = ProviderSubscription { status: SubscriptionStatus::Canceled, ..old };
        assert_eq!(lead(&[with(SubscriptionStatus::Canceled), unpaid]), "old");
        assert_eq!(lead(&[with(SubscriptionStatus::IncompleteExpired), ended]), "old");
        assert_eq!(lead(&[]), "");
    }

    #[test]
    fn provider_events_do_not_end_plans_the_provider_did_not_start() {
        let key = |plan: &str| PlanKey::parse(plan).unwrap();
        let (free, pro) = (key("free"), key("pro"));
        let on = |plan: &str, status: SubscriptionStatus| Subscription {
            status,
            ..Subscription::begin(key(plan), at("2026-01-01"))
        };
        let of = |status: SubscriptionStatus| billed("sub", status, "2026-02-01");
        let cases = [
            (SubscriptionStatus::Incomplete, None, None, true),
            (SubscriptionStatus::Incomplete, Some(on("free", SubscriptionStatus::Active)), None, true),
            (
                SubscriptionStatus::IncompleteExpired,
                Some(on("free", SubscriptionStatus::Active)),
                Some("pro"),
                true,
            ),
            (SubscriptionStatus::Incomplete, Some(on("team", SubscriptionStatus::Canceled)), None, false),
            (SubscriptionStatus::Canceled, None, None, false),
            (SubscriptionStatus::Canceled, Some(on("pro", SubscriptionStatus::Active)), None, false),
            (SubscriptionStatus::Canceled, Some(on("free", SubscriptionStatus::Active)), None, false),
            (SubscriptionStatus::Canceled, Some(on("team", SubscriptionStatus::Active)), None, true),
            (SubscriptionStatus::Canceled, Some(on("team", SubscriptionStatus::Active)), Some("team"), false),
            (SubscriptionStatus::Canceled, Some(on("free", SubscriptionStatus::Active)), Some("pro"), true),
            (SubscriptionStatus::Canceled, Some(on("pro", SubscriptionStatus::Unpaid)), Some("pro"), false),
            (SubscriptionStatus::Active, Some(on("team", SubscriptionStatus::Active)), None, false),
        ];
        for (status, before, followed, expected) in cases {
            let followed = followed.map(key);
            let left = of(status).leaves_alone(&pro, before.as_ref(), followed.as_ref(), Some(&free));
            assert_eq!(left, expected, "{status:?} {before:?} {followed:?}");
        }
        assert!(!of(SubscriptionStatus::Incomplete).leaves_alone(&pro, None, None, None));
    }

    #[test]
    fn provider_prices_map_to_plans() {
        use crate::base::environment::Environment::{Live, Test};
        let catalog = catalog();
        let plan = |environment, prices: &[&str]| {
            let prices: Vec<String> = prices.iter().map(|p| (*p).to_owned()).collect();
            catalog.plan_of_prices(environment, &prices).map(|plan| plan.key.to_string())
        };
        assert_eq!(plan(Test, &["price_seats", "price_team", "price_pro"]).as_deref(), Some("team"));
        assert_eq!(plan(Live, &["price_pro"]).as_deref(), Some("pro"));
        assert_eq!(plan(Live, &["price_team"]), None);
        assert_eq!(plan(Live, &["price_live"]).as_deref(), Some("team"));
        assert_eq!(plan(Test, &[]), None);
    }
}
