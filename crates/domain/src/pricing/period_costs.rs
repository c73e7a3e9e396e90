//! Costs of a running period by day, with four weeks of history: the total, the daily increase and a
//! forecast.

use serde::Serialize;

use super::amount::{Amount, MinorUnits};
use super::cost_basis::CostBasis;
use super::forecast::{EARLIER_DAYS, HISTORY_DAYS, Method, Outlook, Series};
use super::line::RatedLine;
use super::parts::RatedUsage;
use super::price::Price;
use super::rating::RatedQuantity;
use crate::base::limits::{EVENT_AHEAD_MAX, TREND_DAYS_MAX};
use crate::base::names::MeterKey;
use crate::base::quantity::Total;
use crate::base::timestamp::{MICROS_PER_DAY, Timestamp};
use crate::base::window::Span;

/// The parts in which a period is read: UTC days, cut at its start and end.
#[derive(Debug, Clone)]
pub struct Calendar {
    pub period: Span,
    pub now: Timestamp,
    pub bounds: Vec<Timestamp>,
    /// The index of the bound at which the period begins; the days before it are history.
    pub first: usize,
}

impl Calendar {
    /// Builds the calendar up to the end of today or of the period, whichever is earlier.
    pub fn of(period: Span, now: Timestamp) -> Self {
        let today = now.day_floor();
        let end = now.saturating_add(EVENT_AHEAD_MAX).day_after().min(period.to).max(period.from);
        let history = today.days_before(HISTORY_DAYS);
        let earlier = today.days_before(HISTORY_DAYS + EARLIER_DAYS);
        let shown = period.from.max(today.days_before(TREND_DAYS_MAX));
        let mut bounds = vec![earlier.min(period.from), period.from, end];
        let mut day = history.min(shown.day_floor());
        while day < end {
            if day >= shown || (history <= day && day < period.from) {
                bounds.push(day);
            }
            day = day.day_after();
        }
        bounds.sort_unstable();
        bounds.dedup();
        let first = bounds.partition_point(|bound| *bound < period.from);
        Self { period, now, bounds, first }
    }

    /// Returns the span of all parts, with the history.
    pub fn span(&self) -> Span {
        let edge = |edge: Option<&Timestamp>| edge.copied().unwrap_or(self.period.from);
        Span { from: edge(self.bounds.first()), to: edge(self.bounds.last()) }
    }

    /// Returns the part of the period that is read.
    fn so_far(&self) -> Span {
        Span { from: self.period.from, to: self.span().to }
    }

    fn part(&self, place: usize) -> Span {
        Span { from: self.bounds[place], to: self.bounds[place + 1] }
    }

    /// Returns whether a part lies before the days of history.
    fn is_earlier(&self, part: Span) -> bool {
        part.to <= self.now.day_floor().days_before(HISTORY_DAYS)
    }

    /// Returns the index of the day of history that contains a part, if the part lies within one day.
    fn day_of(&self, part: Span) -> Option<usize> {
        let today = self.now.day_floor();
        let back = (today.micros() - part.from.day_floor().micros()) / MICROS_PER_DAY;
        let is_one_day = part.to <= part.from.day_after();
        let back = usize::try_from(back).ok().filter(|back| is_one_day && *back > 0)?;
        HISTORY_DAYS.checked_sub(back)
    }
}

/// The usage between the bounds of a calendar.
#[derive(Debug, Clone)]
pub struct PeriodCosts<'a> {
    calendar: Calendar,
    parts: Vec<RatedUsage<'a>>,
}

/// The usage and cost of one part of a period.
#[derive(Debug, Clone)]
pub struct Day<'s, 'a> {
    pub span: Span,
    pub part: &'s RatedUsage<'a>,
    /// The increase of the period's cost in this part.
    pub cost: Option<MinorUnits>,
}

/// A value at the end of the period, with the method of the forecast.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Forecast<T> {
    pub value: T,
    pub method: Method,
}

impl<'a> PeriodCosts<'a> {
    pub fn new(calendar: Calendar, parts: Vec<RatedUsage<'a>>) -> Self {
        Self { calendar, parts }
    }

    /// Returns the parts of the period with their indexes.
    fn of_period(&self) -> impl Iterator<Item = (usize, &RatedUsage<'a>)> {
        self.parts.iter().enumerate().skip(self.calendar.first)
    }

    /// Returns the usage of the period so far.
    pub fn total(&self) -> RatedUsage<'a> {
        let mut total = RatedUsage::default();
        self.of_period().for_each(|(_, part)| total.join(part));
        total
    }

    /// Returns the costs so far, with one line per price.
    pub fn lines(&self, total: &RatedUsage<'_>, pricing: CostBasis<'_>) -> Vec<RatedLine> {
        pricing.shown(total.lines(pricing.book, self.calendar.so_far()))
    }

    /// Returns the days of the period. Their costs sum to the total cost, regardless of rounding and tiers.
    pub fn days(&self, pricing: Option<CostBasis<'_>>) -> Vec<Day<'_, 'a>> {
        let (mut running, mut before) = (RatedUsage::default(), MinorUnits::default());
        let mut days = Vec::new();
        for (place, part) in self.of_period() {
            let span = self.calendar.part(place);
            if self.calendar.now < span.from && part.meters.is_empty() {
                continue;
            }
            running.join(part);
            let cost = pricing.map(|pricing| {
                let until = Span { to: span.to, ..self.calendar.period };
                let so_far = pricing.total(running.lines(pricing.book, until));
                so_far.clone() - std::mem::replace(&mut before, so_far)
            });
            days.push(Day { span, part, cost });
        }
        days
    }

    /// Returns the forecast of an additive meter.
    pub fn forecast_of(&self, meter: &MeterKey) -> Forecast<Total> {
        let value = |part: &RatedUsage<'_>| {
            let taken = part.meters.get(meter)?;
            taken.value().map(Amount::of)
        };
        let Calendar { period, now, .. } = self.calendar;
        let outlook = Outlook { since: period.from, now, until: period.to };
        let (value, method) = self.series(value).forecast(&outlook);
        Forecast { value: value.quantity_above(), method }
    }

    /// Returns the forecast of the period's cost. Gauges keep their value; prices that are not in force now
    /// add nothing.
    pub fn forecast_of_cost(&self, pricing: CostBasis<'_>) -> Forecast<MinorUnits> {
        let total = self.total();
        let (mut lines, mut methods) = (Vec::new(), Vec::new());
        for price in pricing.book.in_force_in(self.calendar.period) {
            let adds_up = total.priced.get(&price.key).is_some_and(|t| t.aggregation.is_reservable());
            let (used, method) = if adds_up {
                let (used, method) = self.used_at_end(price);
                (used, Some(method))
            } else {
                (total.used(price), None)
            };
            methods.extend(method);
            lines.push(price.rate(&used));
        }
        let method = methods.into_iter().min().unwrap_or(Method::Linear);
        Forecast { value: pricing.total(lines), method }
    }

    fn used_at_end(&self, price: &Price) -> (RatedQuantity, Method) {
        let Calendar { period, now, .. } = self.calendar;
        let outlook = Outlook {
            since: price.effective_from.map_or(period.from, |from| from.max(period.from)),
            now,
            until: price.effective_to.map_or(period.to, |to| to.min(period.to)),
        };
        let used = |part: &RatedUsage<'_>| part.priced.get(&price.key).map(|taken| taken.used(price));
        let (quantity, method) =
            self.series(|part| Some(Amount::of(used(part)?.quantity))).forecast(&outlook);
        let (event_fees, _) = self.series(|part| Some(used(part)?.event_fees)).forecast(&outlook);
        (RatedQuantity { quantity: quantity.quantity_above(), event_fees }, method)
    }

    fn series(&self, of: impl Fn(&RatedUsage<'a>) -> Option<Amount>) -> Series {
        let mut series = Series::default();
        for (place, part) in self.parts.iter().enumerate() {
            let Some(amount) = of(part) else { continue };
            let span = self.calendar.part(place);
            series.has_earlier |= self.calendar.is_earlier(span) && !amount.is_zero();
            if let Some(day) = self.calendar.day_of(span) {
                series.days[day] = series.days[day].clone() + amount.clone();
            }
            if place >= self.calendar.first {
                series.so_far = series.so_far + amount;
            }
        }
        series
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        Timestamp::parse(text).unwrap()
    }

    fn calendar(from: &str, to: &str, now: &str) -> Calendar {
        Calendar::of(Span { from: at(from), to: at(to) }, at(now))
    }

    #[test]
    fn period_costs_read_days_of_the_period_and_four_weeks_before() {
        // in the middle of a period that begins in the middle of a day
        let middle = calendar("2026-11-15T09:30:00Z", "2026-12-15T09:30:00Z", "2026-11-20T12:00:00Z");
        assert_eq!(middle.bounds[..2], [at("2026-10-16T00:00:00Z"), at("2026-10-23T00:00:00Z")]);
        assert_eq!(middle.bounds[middle.first], at("2026-11-15T09:30:00Z"));
        assert_eq!(middle.bounds.last(), Some(&at("2026-11-21T00:00:00Z")));
        assert_eq!(middle.bounds.len(), 1 + 28 + 1 + 1 + 1);
        // both parts of the day on which the period began
        let days = |place: usize| middle.day_of(middle.part(place));
        assert_eq!((days(1), days(middle.first - 1), days(middle.first)), (Some(0), Some(23), Some(23)));
        assert_eq!((days(0), middle.is_earlier(middle.part(0))), (None, true));
        assert!(!middle.is_earlier(middle.part(1)));
        assert_eq!(days(middle.bounds.len() - 2), None, "today is not part of the history");

        // at the end of a long month, the whole history lies within the month
        let late = calendar("2026-12-01T00:00:00Z", "2027-01-01T00:00:00Z", "2026-12-31T23:58:00Z");
        assert_eq!(late.bounds[..2], [at("2026-11-26T00:00:00Z"), at("2026-12-01T00:00:00Z")]);
        assert_eq!(late.first, 1);
        assert_eq!((late.bounds.len(), late.bounds.last()), (33, Some(&at("2027-01-01T00:00:00Z"))));
        assert_eq!(late.day_of(late.part(2)), None);
        assert_eq!(late.day_of(late.part(3)), Some(0));

        // events may have a timestamp up to a few minutes ahead, so their day is read too
        let midnight = calendar("2026-11-01T00:00:00Z", "2026-12-01T00:00:00Z", "2026-11-20T23:58:00Z");
        assert_eq!(midnight.bounds.last(), Some(&at("2026-11-22T00:00:00Z")));
        // a minute before the end of a short period, and a period of several years
        let short = calendar("2026-11-20T11:59:00Z", "2026-11-20T12:01:00Z", "2026-11-20T12:00:00Z");
        assert_eq!(short.bounds.last(), Some(&at("2026-11-20T12:01:00Z")));
        let years = calendar("1990-01-01T00:00:00Z", "2990-01-01T00:00:00Z", "2026-11-20T12:00:00Z");
        assert_eq!((years.first, years.bounds[0]), (0, at("1990-01-01T00:00:00Z")));
        assert_eq!(years.bounds.len(), 2 + TREND_DAYS_MAX + 1);
        assert_eq!(years.day_of(years.part(0)), None);
    }
}
