//! The recorded meter events and their totals.

use std::collections::{BTreeMap, HashMap};

use super::clock::DAY;
use super::meters::{Formula, Meter};

/// A meter event that was answered with 200.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MeterEvent {
    pub(crate) identifier: String,
    pub(crate) event_name: String,
    pub(crate) customer: String,
    pub(crate) value: i64,
    pub(crate) timestamp: i64,
    pub(crate) received_at: i64,
    pub(crate) is_canceled: bool,
    /// The reason for which the event does not count despite the answer 200.
    pub(crate) dropped: Option<&'static str>,
    pub(super) meter: String,
}

impl MeterEvent {
    fn counts(&self) -> bool {
        !self.is_canceled && self.dropped.is_none()
    }
}

#[derive(Debug, Default)]
pub(super) struct Ledger {
    pub(super) events: Vec<MeterEvent>,
    by_identifier: HashMap<String, usize>,
    by_lane: HashMap<(String, String), Vec<usize>>,
}

impl Ledger {
    pub(super) fn push(&mut self, event: MeterEvent) {
        let index = self.events.len();
        self.by_identifier.insert(event.identifier.clone(), index);
        self.by_lane.entry((event.meter.clone(), event.customer.clone())).or_default().push(index);
        self.events.push(event);
    }

    /// Returns the latest event of the identifier if it is less than a day old.
    pub(super) fn remembered(&mut self, identifier: &str, now: i64) -> Option<&mut MeterEvent> {
        let event = &mut self.events[*self.by_identifier.get(identifier)?];
        (now - event.received_at < DAY).then_some(event)
    }

    /// Drops all events of the identifier, which can be several: an identifier can be used again after a day.
    pub(super) fn drop_events(&mut self, identifier: &str, why: &'static str) {
        for event in self.events.iter_mut().filter(|event| event.identifier == identifier) {
            event.dropped = Some(why);
        }
    }

    /// Returns the pairs of meter and customer that have events.
    pub(super) fn lanes(&self) -> impl Iterator<Item = &(String, String)> {
        self.by_lane.keys()
    }

    /// Returns the meter's aggregate for a customer over `[from, to)`, or `None` without events.
    pub(super) fn aggregate(
        &self,
        meter: &Meter,
        customer: &str,
        (from, to): (i64, i64),
        seen_until: i64,
    ) -> Option<i128> {
        let lane = self.by_lane.get(&(meter.id.clone(), customer.to_owned()))?;
        let within = |event: &&MeterEvent| {
            event.counts() && (from..to).contains(&event.timestamp) && event.received_at <= seen_until
        };
        let mut events: Vec<&MeterEvent> =
            lane.iter().map(|index| &self.events[*index]).filter(within).collect();
        // of events with the same timestamp, the last received is the latest
        events.sort_by_key(|event| event.timestamp);
        if let Some(window) = meter.window {
            let latest = events.iter().map(|event| (event.timestamp.div_euclid(window), *event));
            events = latest.collect::<BTreeMap<_, _>>().into_values().collect();
        }
        let last = events.last()?;
        Some(match meter.formula {
            Formula::Sum => events.iter().map(|event| i128::from(event.value)).sum(),
            Formula::Count => i128::try_from(events.len()).unwrap_or(i128::MAX),
            Formula::Last => i128::from(last.value),
        })
    }
}
