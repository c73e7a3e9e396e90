//! Plans the sources of a range of usage: rollups if they match the events, otherwise the events.

use crate::base::timestamp::{MICROS_PER_HOUR, Timestamp};
use crate::base::window::Span;

/// The known state of a meter's rollups.
#[derive(Debug, Clone, Copy, Default)]
pub struct Rollups<'a> {
    /// Hours with rollups that do not match the events.
    pub gaps: &'a [Span],
    /// The end of the days that have rollups; none if no day has one.
    pub days_until: Option<Timestamp>,
    /// True if the values of events can be subtracted from a rollup.
    pub subtract: bool,
}

/// The sources of the parts of a range: rollups for whole UTC days and hours, events for the rest.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Reading {
    pub days: Vec<Span>,
    pub hours: Vec<Span>,
    pub partial_hours: Vec<PartialHour>,
    pub events: Vec<Span>,
}

/// The larger part of an hour: the hour's rollup, less the events in the rest of the hour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PartialHour {
    pub hour: Span,
    pub part: Span,
}

impl PartialHour {
    /// Returns the parts of the hour before and after the part.
    pub fn complement(&self) -> impl Iterator<Item = Span> + use<> {
        let Self { hour, part } = *self;
        let rest = [Span { from: hour.from, to: part.from }, Span { from: part.to, to: hour.to }];
        rest.into_iter().filter(|span| !span.is_empty())
    }
}

impl Reading {
    /// Plans a range. A day or hour is read from its rollup if it lies in one window and has no gap.
    /// If subtraction is possible, an hour is also read from its rollup if its larger part lies in
    /// one window.
    pub fn plan(span: Span, bounds: &[Timestamp], rollups: Rollups<'_>) -> Self {
        let mut reading = Self::default();
        let gaps = merged(rollups.gaps);
        for pair in bounds.windows(2) {
            let part = span.intersect(Span { from: pair[0], to: pair[1] });
            if part.is_empty() {
                continue;
            }
            let hours = Span { from: part.from.hour_ceil(), to: part.to.hour_floor() };
            if hours.to < hours.from {
                reading.push_part_of_hour(part, &gaps, rollups);
                continue;
            }
            reading.push_part_of_hour(Span { from: part.from, to: hours.from }, &gaps, rollups);
            for (piece, in_gap) in pieces(hours, &gaps) {
                if in_gap {
                    push(&mut reading.events, piece);
                } else {
                    reading.push_folded(piece, rollups);
                }
            }
            reading.push_part_of_hour(Span { from: hours.to, to: part.to }, &gaps, rollups);
        }
        reading
    }

    /// Reads a whole range from events.
    pub fn of_events(span: Span) -> Self {
        let mut reading = Self::default();
        push(&mut reading.events, span);
        reading
    }

    pub fn is_empty(&self) -> bool {
        let Self { days, hours, partial_hours, events } = self;
        days.is_empty() && hours.is_empty() && partial_hours.is_empty() && events.is_empty()
    }

    /// Returns all spans that are read from rollups.
    pub fn folded(&self) -> Vec<Span> {
        let parts: Vec<Span> = self.partial_hours.iter().map(|cut| cut.part).collect();
        [&self.days[..], &self.hours, &parts].concat()
    }

    /// Adds hours with rollups that match the events.
    fn push_folded(&mut self, hours: Span, rollups: Rollups<'_>) {
        let days_until = rollups.days_until.unwrap_or(Timestamp::MIN);
        let days = Span { from: hours.from.day_ceil(), to: hours.to.day_floor().min(days_until) };
        if days.is_empty() {
            return push(&mut self.hours, hours);
        }
        push(&mut self.hours, Span { from: hours.from, to: days.from });
        push(&mut self.days, days);
        push(&mut self.hours, Span { from: days.to, to: hours.to });
    }

    /// Adds a part of one hour.
    fn push_part_of_hour(&mut self, part: Span, gaps: &[Span], rollups: Rollups<'_>) {
        if part.is_empty() {
            return;
        }
        let hour = Span { from: part.from.hour_floor(), to: part.to.hour_ceil() };
        let is_larger = 2 * (part.to.micros() - part.from.micros()) > MICROS_PER_HOUR;
        let in_gap = gaps.iter().any(|gap| !gap.intersect(hour).is_empty());
        if rollups.subtract && is_larger && !in_gap {
            self.partial_hours.push(PartialHour { hour, part });
        } else {
            push(&mut self.events, part);
        }
    }
}

/// Adds a span, and joins it to the last one if they touch.
fn push(spans: &mut Vec<Span>, span: Span) {
    if span.is_empty() {
        return;
    }
    match spans.last_mut() {
        Some(last) if last.to == span.from => last.to = span.to,
        _ => spans.push(span),
    }
}

/// Returns the same hours in order, joined to the fewest spans.
fn merged(gaps: &[Span]) -> Vec<Span> {
    let mut sorted = gaps.to_vec();
    sorted.sort_unstable_by_key(|gap| (gap.from, gap.to));
    let mut merged: Vec<Span> = Vec::new();
    for gap in sorted {
        match merged.last_mut() {
            Some(last) if gap.from <= last.to => last.to = last.to.max(gap.to),
            _ => merged.push(gap),
        }
    }
    merged
}

/// Splits a span of whole hours at the bounds of gaps, in order. Gaps must be whole hours and merged.
fn pieces(span: Span, gaps: &[Span]) -> Vec<(Span, bool)> {
    let first = gaps.partition_point(|gap| gap.to <= span.from);
    let end = gaps.partition_point(|gap| gap.from < span.to);
    let gaps = &gaps[first..end.max(first)];
    let mut edges: Vec<Timestamp> = gaps
        .iter()
        .flat_map(|gap| [gap.from, gap.to])
        .filter(|edge| span.from < *edge && *edge < span.to)
        .collect();
    edges.extend([span.from, span.to]);
    edges.sort_unstable();
    edges.dedup();
    edges
        .windows(2)
        .map(|pair| {
            let piece = Span { from: pair[0], to: pair[1] };
            (piece, gaps.iter().any(|gap| !gap.intersect(piece).is_empty()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(text: &str) -> Timestamp {
        Timestamp::parse(text).unwrap()
    }

    fn span(from: &str, to: &str) -> Span {
        Span { from: at(from), to: at(to) }
    }

    #[test]
    fn partial_hours_are_read_from_events() {
        let range = span("2026-01-01T10:15:00Z", "2026-01-01T13:30:00Z");
        let reading = Reading::plan(range, &[range.from, range.to], Rollups::default());
        assert_eq!(reading.hours, [span("2026-01-01T11:00:00Z", "2026-01-01T13:00:00Z")]);
        assert_eq!(
            reading.events,
            [
                span("2026-01-01T10:15:00Z", "2026-01-01T11:00:00Z"),
                span("2026-01-01T13:00:00Z", "2026-01-01T13:30:00Z")
            ]
        );
        let gap = span("2026-01-01T12:00:00Z", "2026-01-01T13:00:00Z");
        let rollups = Rollups { gaps: &[gap], ..Rollups::default() };
        let reading = Reading::plan(range, &[range.from, range.to], rollups);
        assert_eq!(reading.hours, [span("2026-01-01T11:00:00Z", "2026-01-01T12:00:00Z")]);
        assert_eq!(reading.events.last(), Some(&span("2026-01-01T12:00:00Z", "2026-01-01T13:30:00Z")));
    }

    #[test]
    fn larger_part_of_an_hour_is_read_as_hour_minus_complement() {
        let cut = |from, to| {
            let part = span(from, to);
            PartialHour { hour: Span { from: part.from.hour_floor(), to: part.to.hour_ceil() }, part }
        };
        let range = span("2026-01-01T10:10:00Z", "2026-01-01T13:50:00Z");
        let gap = span("2026-01-01T13:00:00Z", "2026-01-01T14:00:00Z");
        let (first, last) = (
            cut("2026-01-01T10:10:00Z", "2026-01-01T11:00:00Z"),
            cut("2026-01-01T13:00:00Z", "2026-01-01T13:50:00Z"),
        );
        // no subtraction; both ends; a gap; both sides of a bound; a part within one hour
        let none: &[Span] = &[];
        let cases = [
            ((false, none), range, vec![], vec![], vec![first.part, last.part]),
            ((true, none), range, vec![], vec![first, last], vec![]),
            ((true, &[gap]), range, vec![], vec![first], vec![last.part]),
            (
                (true, none),
                range,
                vec!["2026-01-01T12:40:00Z"],
                vec![first, cut("2026-01-01T12:00:00Z", "2026-01-01T12:40:00Z"), last],
                vec![span("2026-01-01T12:40:00Z", "2026-01-01T13:00:00Z")],
            ),
            (
                (true, none),
                span("2026-01-01T10:10:00Z", "2026-01-01T10:50:00Z"),
                vec![],
                vec![cut("2026-01-01T10:10:00Z", "2026-01-01T10:50:00Z")],
                vec![],
            ),
        ];
        for ((subtract, gaps), range, between, partial_hours, events) in cases {
            let mut bounds = vec![range.from, range.to];
            bounds.extend(between.iter().map(|bound| at(bound)));
            bounds.sort_unstable();
            let reading = Reading::plan(range, &bounds, Rollups { gaps, subtract, days_until: None });
            assert_eq!(
                (reading.partial_hours, reading.events),
                (partial_hours, events),
                "{range:?} {gaps:?}"
            );
        }
        let [before, behind] =
            [0, 1].map(|n| cut("2026-01-01T10:10:00Z", "2026-01-01T10:50:00Z").complement().nth(n));
        assert_eq!(before, Some(span("2026-01-01T10:00:00Z", "2026-01-01T10:10:00Z")));
        assert_eq!(behind, Some(span("2026-01-01T10:50:00Z", "2026-01-01T11:00:00Z")));
        assert_eq!(first.complement().count(), 1);
    }

    #[test]
    fn daily_rollups_replace_their_hours() {
        let range = span("2026-01-01T10:00:00Z", "2026-01-05T02:00:00Z");
        let bounds = [range.from, at("2026-01-03T00:00:00Z"), range.to];
        let gap = span("2026-01-03T05:00:00Z", "2026-01-03T06:00:00Z");
        let cases = [
            (None, &[][..], vec![], vec![range]),
            (
                Some("2026-01-04T00:00:00Z"),
                &[],
                vec![span("2026-01-02T00:00:00Z", "2026-01-04T00:00:00Z")],
                vec![
                    span("2026-01-01T10:00:00Z", "2026-01-02T00:00:00Z"),
                    span("2026-01-04T00:00:00Z", "2026-01-05T02:00:00Z"),
                ],
            ),
            (
                Some("2026-01-05T00:00:00Z"),
                &[gap],
                vec![
                    span("2026-01-02T00:00:00Z", "2026-01-03T00:00:00Z"),
                    span("2026-01-04T00:00:00Z", "2026-01-05T00:00:00Z"),
                ],
                vec![
                    span("2026-01-01T10:00:00Z", "2026-01-02T00:00:00Z"),
                    span("2026-01-03T00:00:00Z", "2026-01-03T05:00:00Z"),
                    span("2026-01-03T06:00:00Z", "2026-01-04T00:00:00Z"),
                    span("2026-01-05T00:00:00Z", "2026-01-05T02:00:00Z"),
                ],
            ),
        ];
        for (until, gaps, days, hours) in cases {
            let rollups = Rollups { gaps, days_until: until.map(at), subtract: true };
            let reading = Reading::plan(range, &bounds, rollups);
            assert_eq!((reading.days, reading.hours), (days, hours), "{until:?}");
            assert_eq!(reading.events, gaps);
        }
    }

    proptest! {
        /// Checks that every instant of the range is read exactly once, and rollups only in whole
        /// hours and days of one window.
        #[test]
        fn read_plans_cover_the_range_exactly_once(
            from in 0_i64..5_000, length in 1_i64..8_000,
            partial_hours in prop::collection::vec(0_i64..10_000, 0..8),
            gaps in prop::collection::vec((0_i64..170, 1_i64..40), 0..4),
            summed in 0_i64..8, subtract in any::<bool>(),
        ) {
            let minute = |m: i64| Timestamp::from_micros(m * 60_000_000).unwrap();
            let range = Span { from: minute(from), to: minute(from + length) };
            let mut bounds: Vec<Timestamp> = partial_hours.iter().map(|m| minute(*m)).collect();
            bounds.extend([minute(0), minute(20_000)]);
            bounds.sort_unstable();
            bounds.dedup();
            let gaps: Vec<Span> =
                gaps.iter().map(|(h, n)| Span { from: minute(h * 60), to: minute((h + n) * 60) }).collect();
            let until = minute(summed * 1_440);
            let rollups = Rollups { gaps: &gaps, days_until: Some(until), subtract };
            let reading = Reading::plan(range, &bounds, rollups);
            let inside = |spans: &[Span], t: Timestamp| spans.iter().filter(|s| s.from <= t && t < s.to).count();
            for m in (0..14_000).step_by(7) {
                let t = minute(m);
                let expected = usize::from(range.from <= t && t < range.to);
                prop_assert_eq!(inside(&reading.folded(), t) + inside(&reading.events, t), expected);
                if inside(&gaps, t) > 0 {
                    prop_assert_eq!(inside(&reading.folded(), t), 0);
                }
            }
            for days in &reading.days {
                prop_assert!(days.from == days.from.day_floor() && days.to == days.to.day_floor());
                prop_assert!(days.to <= until);
            }
            prop_assert!(subtract || reading.partial_hours.is_empty());
            for PartialHour { hour, part } in &reading.partial_hours {
                prop_assert_eq!((hour.from.hour_floor(), hour.to.micros() - hour.from.micros()), (hour.from, MICROS_PER_HOUR));
                prop_assert!(hour.intersect(*part) == *part && hour != part);
                prop_assert!(gaps.iter().all(|gap| gap.intersect(*hour).is_empty()));
                prop_assert!(bounds.iter().all(|bound| *bound <= part.from || *bound >= part.to));
            }
            for hours in reading.days.iter().chain(&reading.hours) {
                prop_assert_eq!(hours.from, hours.from.hour_floor());
                prop_assert_eq!(hours.to, hours.to.hour_floor());
                for bound in &bounds {
                    prop_assert!(*bound <= hours.from || *bound >= hours.to || *bound == bound.hour_floor());
                }
            }
        }
    }
}
