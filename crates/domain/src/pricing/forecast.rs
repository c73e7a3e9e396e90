//! Forecasts of a total at the end of a period. With four whole weeks of history they follow the weekdays;
//! otherwise they continue the average so far.

use serde::Serialize;

use super::amount::Amount;
use crate::base::limits::FORECAST_DAYS_MAX;
use crate::base::timestamp::{MICROS_PER_DAY, Timestamp};

/// The number of whole weeks of history.
const WEEKS: usize = 4;
/// The number of days of history before today.
pub const HISTORY_DAYS: usize = WEEKS * 7;
/// The number of days before the history that show whether use began earlier. A week of them also finds use
/// on single weekdays only.
pub const EARLIER_DAYS: usize = 7;
/// The number of weeks for which the trend continues: a month beyond the history, and no further.
const TREND_WEEKS_MAX: usize = 2 * WEEKS;

/// The method of a forecast.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// The use so far, continued at the same rate. The first day counts as a whole day.
    Linear,
    /// The mean of the same weekdays of the last four weeks, moved along their trend.
    Weekday,
}

/// The times of a forecast: the start of the period, now and its end.
#[derive(Debug, Clone, Copy)]
pub struct Outlook {
    /// The start of the use so far.
    pub since: Timestamp,
    pub now: Timestamp,
    pub until: Timestamp,
}

/// The history and present use of an additive quantity.
#[derive(Debug, Clone, Default)]
pub struct Series {
    /// The use of each UTC day before today, the oldest first.
    pub days: [Amount; HISTORY_DAYS],
    /// True if anything was used before the days of history.
    pub has_earlier: bool,
    pub so_far: Amount,
}

impl Series {
    /// Returns the forecast total at the end of the period.
    pub fn forecast(&self, outlook: &Outlook) -> (Amount, Method) {
        if outlook.until <= outlook.now {
            return (self.so_far.clone(), self.method(outlook));
        }
        match self.method(outlook) {
            Method::Linear => (self.linear(outlook), Method::Linear),
            Method::Weekday => (self.by_weekday(outlook), Method::Weekday),
        }
    }

    /// Selects the method: the weekday method needs four weeks of history and an end in the near future.
    fn method(&self, outlook: &Outlook) -> Method {
        let is_near = outlook.until.micros() - outlook.now.micros() <= FORECAST_DAYS_MAX * MICROS_PER_DAY;
        let has_history = self.has_earlier || !self.days[0].is_zero();
        if is_near && has_history { Method::Weekday } else { Method::Linear }
    }

    /// Continues the average so far. At least one day counts as elapsed, so that the first minutes are not
    /// extrapolated.
    fn linear(&self, outlook: &Outlook) -> Amount {
        let Outlook { since, now, until } = *outlook;
        let span = |from: Timestamp, to: Timestamp| (to.micros() - from.micros()).max(0);
        let whole = span(since, until);
        let elapsed = span(since, now).max(MICROS_PER_DAY).min(whole);
        let left = Amount::from_minor_units(whole - elapsed);
        let more = (&self.so_far * &left).divided_by(&Amount::from_minor_units(elapsed));
        self.so_far.clone() + more
    }

    /// Adds the mean of its weekday for each remaining day, moved by the least-squares trend of the weekly
    /// totals, and at least zero. Today and the last day count by their remaining share.
    fn by_weekday(&self, outlook: &Outlook) -> Amount {
        let shift = self.weekly_shift();
        let means: Vec<Amount> = (0..7).map(|weekday| self.mean(weekday)).collect();
        let whole = Amount::from_minor_units(MICROS_PER_DAY);
        let mut start = outlook.now.day_floor().micros();
        let mut total = self.so_far.clone();
        for day in HISTORY_DAYS.. {
            let end = start + MICROS_PER_DAY;
            let left = end.min(outlook.until.micros()) - start.max(outlook.now.micros());
            if left <= 0 {
                break;
            }
            // the middle of the four weeks lies one and a half weeks after the first
            let weeks = i64::try_from((day / 7).min(TREND_WEEKS_MAX)).unwrap_or_default();
            let half_weeks = Amount::from_minor_units(2 * weeks - 3);
            let moved = (&shift * &half_weeks).divided_by(&Amount::from_minor_units(2));
            let expected = (means[day % 7].clone() + moved).max(Amount::default());
            total = total + (&expected * &Amount::from_minor_units(left)).divided_by(&whole);
            start = end;
        }
        total
    }

    fn mean(&self, weekday: usize) -> Amount {
        let sum: Amount = (0..WEEKS).map(|week| self.days[week * 7 + weekday].clone()).sum();
        sum.divided_by(&Amount::from_minor_units(4))
    }

    /// Returns the trend: the mean change of a day against the same day of the week before. Relative to their
    /// middle, the weeks lie at -3, -1, 1 and 3 halves; the squares sum to 5 weeks.
    fn weekly_shift(&self) -> Amount {
        let week = |week: usize| self.days[week * 7..week * 7 + 7].iter().cloned().sum::<Amount>();
        let halves = [-3, -1, 1, 3].map(Amount::from_minor_units);
        let slope: Amount = halves.iter().enumerate().map(|(place, half)| half * &week(place)).sum();
        // 2 for the halves, 5 for their squares, 7 for the days of a week
        slope.divided_by(&Amount::from_minor_units(2 * 5 * 7))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DAY_ZERO: i64 = 20_000;

    fn at(day: i64, micros: i64) -> Timestamp {
        Timestamp::from_micros((DAY_ZERO + day) * MICROS_PER_DAY + micros).unwrap()
    }

    fn whole(units: i64) -> Amount {
        Amount::from_minor_units(units)
    }

    /// Returns a series with the use `of(day)` per day. It is seen `now` days after the period began at day
    /// 0, at the given share of today.
    fn seen(of: impl Fn(i64) -> i64, now: i64, share: i64) -> Series {
        let mut series = Series::default();
        for (place, day) in series.days.iter_mut().enumerate() {
            *day = whole(of(now - 28 + i64::try_from(place).unwrap()));
        }
        let so_far: i64 = (0..now).map(&of).sum();
        series.so_far = whole(so_far) + whole(of(now) * share).divided_by(&whole(4));
        series
    }

    fn outlook(now: i64, share: i64, until: i64) -> Outlook {
        Outlook { since: at(0, 0), now: at(now, share * MICROS_PER_DAY / 4), until: at(until, 0) }
    }

    fn off(of: impl Fn(i64) -> i64, forecast: &Amount) -> f64 {
        let truth: i64 = (0..30).map(of).sum();
        (forecast.to_string().parse::<f64>().unwrap() - f64::from(i32::try_from(truth).unwrap())).abs()
    }

    const WEEK: [i64; 7] = [100, 120, 110, 90, 140, 20, 5];

    fn season(day: i64) -> i64 {
        WEEK[usize::try_from(day.rem_euclid(7)).unwrap()]
    }

    #[test]
    fn forecasts_continue_a_weekly_season_and_its_trend_exactly() {
        type Shape = fn(i64) -> i64;
        let shapes: [(&str, Shape); 4] = [
            ("even", |_| 40),
            ("season", season),
            ("growth", |day| 1_000 + 7 * day),
            ("season and growth", |day| 1_000 + 10 * season(day) + 7 * day),
        ];
        for (name, shape) in shapes {
            for (now, share) in [(0, 0), (1, 2), (9, 0), (14, 3), (29, 1), (29, 3)] {
                let (forecast, method) = seen(shape, now, share).forecast(&outlook(now, share, 30));
                assert_eq!(method, Method::Weekday);
                assert_eq!(forecast, whole((0..30).map(shape).sum()), "{name}, day {now}, quarter {share}");
            }
        }
    }

    #[test]
    fn forecasts_continue_an_even_rate_without_four_weeks_of_history() {
        // the number of days of the four weeks on which nothing was used yet
        for unused in [1, 6, 7, 28] {
            let mut series = Series { so_far: whole(40 * 9 + 30), ..Series::default() };
            series.days[unused..].fill(whole(40));
            let (forecast, method) = series.forecast(&outlook(9, 3, 30));
            assert_eq!((forecast, method), (whole(1_200), Method::Linear), "{unused}");
            series.has_earlier = true;
            assert_eq!(series.method(&outlook(9, 3, 30)), Method::Weekday, "{unused}");
        }
    }

    #[test]
    fn forecasts_add_nothing_at_the_edges_of_a_period() {
        let series = Series { so_far: whole(7), ..Series::default() };
        let (now, until) = (at(0, 0), at(30, 0));
        for (since, now, until) in [(now, until, until), (until, until, until), (now, until, now)] {
            assert_eq!(series.forecast(&Outlook { since, now, until }).0, whole(7), "{since} {now} {until}");
        }
        // the first moment and the end of the first day forecast the same: one day's use, and 29 more days
        assert_eq!(series.forecast(&Outlook { since: now, now, until }).0, whole(30 * 7));
        assert_eq!(series.forecast(&Outlook { since: now, now: at(1, 0), until }).0, whole(30 * 7));
        // a falling trend does not fall below zero
        let shrinking = seen(|day| (20 - day).max(0), 5, 0);
        assert_eq!(
            shrinking.forecast(&outlook(5, 0, 30)).0,
            whole((0..30).map(|day| (20 - day).max(0)).sum())
        );
    }

    #[test]
    fn weekday_forecasts_err_less_than_linear_ones_for_seasonal_use() {
        // the same deterministic noise every time: up to a tenth of the largest day
        let wobble = |day: i64| (day * day * 31 + day * 17).rem_euclid(29) - 14;
        let shapes: [&dyn Fn(i64) -> i64; 2] =
            [&|day| (season(day) + wobble(day)).max(0), &|day| 50 + 2 * day + season(day) + wobble(day)];
        for shape in shapes {
            let (mut by_weekday, mut even) = (0.0, 0.0);
            for now in 1..29 {
                let (series, outlook) = (seen(shape, now, 0), outlook(now, 0, 30));
                by_weekday += off(shape, &series.by_weekday(&outlook));
                even += off(shape, &series.linear(&outlook));
            }
            assert!(by_weekday * 2.0 < even, "{by_weekday} {even}");
        }
    }

    proptest! {
        /// A forecast is never below the use so far.
        #[test]
        fn forecasts_never_fall_below_the_use_so_far(
            days in prop::collection::vec(0_i64..1_000_000, HISTORY_DAYS),
            so_far in 0_i64..10_000_000,
            now in 0_i64..30,
            share in 0_i64..4,
        ) {
            let mut series = Series { so_far: whole(so_far), ..Series::default() };
            series.days = std::array::from_fn(|place| whole(days[place]));
            let (forecast, _) = series.forecast(&outlook(now, share, 30));
            prop_assert!(forecast >= series.so_far);
        }
    }
}
