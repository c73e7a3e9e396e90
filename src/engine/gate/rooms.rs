//! What the counters of a cap may come to, each for itself, so that together they cost no more than the
//! cap: worked out from what they came to when they were seen last, with more for each where there is
//! room for more. However far they have gone since, what fits under every one of them fits under the cap.

use std::collections::BTreeMap;

use quick_cache::sync::Cache;

use crate::domain::gate::budget::Budget;
use crate::domain::gate::decision::Level;
use crate::domain::gate::standing::CounterKey;
use crate::domain::names::ItemKey;
use crate::domain::quantity::Total;
use crate::domain::timestamp::Timestamp;

/// Counters of caps that a writer remembers.
const SEEN_MAX: usize = 100_000;
/// How many times what it comes to each counter may have, in percent; what is tried first comes first.
const SCALES_PERCENT: [i128; 6] = [10_000, 1_000, 300, 150, 110, 100];

/// What counters came to, used and held together, when they were seen last.
#[derive(Debug)]
pub(super) struct Seen(Cache<CounterKey, Total>);

impl Default for Seen {
    fn default() -> Self {
        Self(Cache::new(SEEN_MAX))
    }
}

impl Seen {
    pub(super) fn note(&self, key: CounterKey, level: Level, added: Total) {
        self.0.insert(key, level.used + level.held + added);
    }
}

/// The caps that a batch meets, each once.
#[derive(Debug, Default)]
pub(super) struct Budgets<'p>(BTreeMap<(i64, ItemKey), Vec<Budget<'p>>>);

impl<'p> Budgets<'p> {
    pub(super) fn add(&mut self, budget: Budget<'p>) {
        let known = self.0.entry((budget.member.subject_id, budget.cap.key.clone())).or_default();
        // a plan and its subscriber may use one key
        if !known.iter().any(|known| known.cap == budget.cap) {
            known.push(budget);
        }
    }

    /// What each counter may come to; none where it has to be looked at which of it fits.
    pub(super) fn rooms(
        &self,
        seen: &Seen,
        added: impl Fn(&CounterKey) -> Total,
        now: Timestamp,
    ) -> Option<Vec<(CounterKey, Total)>> {
        let comes_to = |key: &CounterKey| seen.0.get(key).unwrap_or_default().or_zero() + added(key);
        let mut rooms = Vec::new();
        for budget in self.0.values().flatten() {
            let room = |scale: i128, key: &CounterKey| {
                Total::from_nanos(comes_to(key).nanos().saturating_mul(scale) / 100)
            };
            let fits = |scale: &i128| {
                let all_of_it = |key: &CounterKey| Level { held: room(*scale, key), ..Level::default() };
                let cost = budget.highest(now, all_of_it, |_, _| Total::default());
                cost.is_some_and(|cost| cost <= budget.cap.amount)
            };
            let scale = SCALES_PERCENT.into_iter().find(|scale| fits(scale))?;
            rooms.extend(budget.portions().map(|portion| {
                let key = portion.counter_at(now).key;
                (key, room(scale, &key))
            }));
        }
        Some(rooms)
    }
}
