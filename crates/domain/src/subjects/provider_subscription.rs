//! Subscriptions as the biller keeps them, and what they mean for a subject's own. Everything follows
//! from what the biller said last, never from the order in which it was heard.

use serde::Serialize;
use uuid::Uuid;

use super::subscription::{Status, Subscription, SubscriptionParams};
use crate::base::digest::Digest;
use crate::base::names::{PlanKey, SubjectId};
use crate::base::timestamp::Timestamp;
use crate::base::window::Span;
use crate::catalog::plan::Plan;

/// What the biller says of one of its subscriptions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ProviderSubscription {
    pub id: String,
    pub customer: String,
    /// The subject that the application named there.
    pub subject: Option<SubjectId>,
    pub status: Status,
    pub prices: Vec<String>,
    /// What its periods are counted from.
    pub anchor: Timestamp,
    /// The current period; of several, the one that ends first.
    pub period: Option<Span>,
    /// When it is to end, where that is known.
    pub ends_at: Option<Timestamp>,
    pub ended_at: Option<Timestamp>,
    pub created_at: Timestamp,
}

impl ProviderSubscription {
    /// Whether it is over for good: the biller revives none.
    pub fn is_over(&self) -> bool {
        matches!(self.status, Status::Canceled | Status::IncompleteExpired)
    }

    /// A fingerprint of all of it.
    pub fn says(&self) -> Uuid {
        digest(self)
    }

    /// A fingerprint of what matters to whoever is on it.
    pub fn terms(&self, plan: &PlanKey) -> Uuid {
        digest(&(plan, self.status, self.anchor, self.period, self.ends_at, self.ended_at))
    }

    /// Of several of a subject, the one with the greatest rank counts: one that may use goes before one
    /// that may not, that before one that ended, that before one that never began; then the latest.
    fn rank(&self) -> (u8, Timestamp, &str) {
        let standing = match self.status {
            status if status.may_use() => 3,
            Status::Canceled => 1,
            Status::Incomplete | Status::IncompleteExpired => 0,
            _ => 2,
        };
        (standing, self.created_at, &self.id)
    }

    /// Whether it changes nothing about what a subject stands on. One whose first payment is missing never
    /// let anybody in, and takes nothing away. One that is over ends only what the biller put there:
    /// `followed` is the plan on which it put the subject last, where it did.
    pub fn leaves_alone(
        &self,
        plan: &PlanKey,
        before: Option<&Subscription>,
        followed: Option<&PlanKey>,
        default_plan: Option<&PlanKey>,
    ) -> bool {
        let in_use = before.filter(|before| before.status.may_use());
        match self.status {
            Status::Incomplete | Status::IncompleteExpired => match before {
                None => default_plan.is_some(),
                Some(_) => in_use.is_some(),
            },
            Status::Canceled => in_use.is_some_and(|before| match followed {
                // it came to its end by itself already, or the application moved the subject elsewhere
                Some(followed) => before.plan != *followed,
                None => before.plan != *plan && Some(&before.plan) != default_plan,
            }),
            _ => false,
        }
    }

    /// What a subject's own subscription is to be. Overrides, prices and commitments of its own
    /// stay with the plan that they were made for.
    pub fn statement(
        &self,
        plan: &Plan,
        before: Option<&Subscription>,
        now: Timestamp,
    ) -> SubscriptionParams {
        let falls_back = plan.fallback_plan.is_some();
        let is_over =
            self.status == Status::Canceled || (self.status == Status::IncompleteExpired && falls_back);
        let ends_at = if is_over { Some(self.ended_at.map_or(now, |at| at.min(now))) } else { self.ends_at };
        // a plan to fall back to has counted nothing before it is known to be in force
        let ends_at = ends_at.map(|at| if falls_back { at.max(now) } else { at });
        let kept = before.filter(|before| before.plan == plan.key && before.status != Status::Canceled);
        let own = |before: &Subscription| {
            (before.overrides.clone(), before.prices.clone(), before.commitments.clone())
        };
        let (overrides, prices, commitments) = kept.map(own).unwrap_or_default();
        SubscriptionParams {
            plan: plan.key.clone(),
            status: if is_over { Status::Active } else { self.status },
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
    // names, words and times always serialise
    Digest::default().bytes(&serde_json::to_vec(said).unwrap_or_default()).finish()
}

/// Which of a subject's subscriptions counts.
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

    fn billed(id: &str, status: Status, created: &str) -> ProviderSubscription {
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

    /// What a subject stands on after a statement: plan, status, anchor, billing period, end.
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
        let base = billed("sub", Status::Active, "2026-01-31");
        let ending = ProviderSubscription { ends_at: Some(at("2026-03-31")), ..base.clone() };
        let deleted = ProviderSubscription {
            status: Status::Canceled,
            ended_at: Some(at("2026-03-10")),
            ..base.clone()
        };
        let with = |status: Status| ProviderSubscription { status, ..base.clone() };
        let cases = [
            (base.clone(), "pro", "2026-03-01", "pro active ends -"),
            (with(Status::Trialing), "pro", "2026-03-01", "pro trialing ends -"),
            (with(Status::PastDue), "pro", "2026-03-01", "pro past_due ends -"),
            (with(Status::Unpaid), "pro", "2026-03-01", "pro unpaid ends -"),
            (with(Status::Paused), "pro", "2026-03-01", "pro paused ends -"),
            (with(Status::Incomplete), "pro", "2026-03-01", "pro incomplete ends -"),
            (with(Status::IncompleteExpired), "pro", "2026-03-01", "pro incomplete_expired ends -"),
            (with(Status::IncompleteExpired), "team", "2026-03-01", "free active ends -"),
            (ending.clone(), "pro", "2026-03-30", "pro active ends 2026-03-31T00:00:00Z"),
            (ending.clone(), "pro", "2026-03-31", "pro canceled ends 2026-03-31T00:00:00Z"),
            (ending.clone(), "team", "2026-03-31", "free active ends -"),
            (deleted.clone(), "pro", "2026-03-12", "pro canceled ends 2026-03-10T00:00:00Z"),
            // the biller's clock is ahead of ours
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
    fn billing_anchor_comes_from_the_provider_in_any_event_order() {
        let february = billed("sub", Status::Active, "2026-01-31");
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
        let base = billed("sub", Status::Active, "2026-01-31");
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
        let old = billed("old", Status::Active, "2026-01-01");
        let new = billed("new", Status::Active, "2026-02-01");
        let with = |status: Status| ProviderSubscription { status, ..new.clone() };
        assert_eq!(lead(&[old.clone(), new.clone()]), "new");
        for status in [Status::Unpaid, Status::Paused, Status::Canceled, Status::Incomplete] {
            assert_eq!(lead(&[with(status), old.clone()]), "old", "{status:?}");
        }
        let unpaid = ProviderSubscription { status: Status::Unpaid, ..old.clone() };
        let ended = ProviderSubscription { status: Status::Canceled, ..old };
        assert_eq!(lead(&[with(Status::Canceled), unpaid]), "old");
        assert_eq!(lead(&[with(Status::IncompleteExpired), ended]), "old");
        assert_eq!(lead(&[]), "");
    }

    #[test]
    fn provider_events_do_not_end_plans_the_provider_did_not_start() {
        let key = |plan: &str| PlanKey::parse(plan).unwrap();
        let (free, pro) = (key("free"), key("pro"));
        let on = |plan: &str, status: Status| Subscription {
            status,
            ..Subscription::begin(key(plan), at("2026-01-01"))
        };
        let of = |status: Status| billed("sub", status, "2026-02-01");
        let cases = [
            (Status::Incomplete, None, None, true),
            (Status::Incomplete, Some(on("free", Status::Active)), None, true),
            (Status::IncompleteExpired, Some(on("free", Status::Active)), Some("pro"), true),
            (Status::Incomplete, Some(on("team", Status::Canceled)), None, false),
            (Status::Canceled, None, None, false),
            (Status::Canceled, Some(on("pro", Status::Active)), None, false),
            (Status::Canceled, Some(on("free", Status::Active)), None, false),
            (Status::Canceled, Some(on("team", Status::Active)), None, true),
            (Status::Canceled, Some(on("team", Status::Active)), Some("team"), false),
            (Status::Canceled, Some(on("free", Status::Active)), Some("pro"), true),
            (Status::Canceled, Some(on("pro", Status::Unpaid)), Some("pro"), false),
            (Status::Active, Some(on("team", Status::Active)), None, false),
        ];
        for (status, before, followed, expected) in cases {
            let followed = followed.map(key);
            let left = of(status).leaves_alone(&pro, before.as_ref(), followed.as_ref(), Some(&free));
            assert_eq!(left, expected, "{status:?} {before:?} {followed:?}");
        }
        assert!(!of(Status::Incomplete).leaves_alone(&pro, None, None, None));
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
