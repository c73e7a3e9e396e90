//! Forecasts: what a period will have come to at its end, if use goes on as it did. By the days of the
//! week where four whole weeks are known, else evenly.

use serde::Serialize;

use super::amount::Amount;
use crate::base::limits::FORECAST_DAYS_MAX;
use crate::base::timestamp::{MICROS_PER_DAY, Timestamp};

/// Whole weeks that are looked back at.
const WEEKS: usize = 4;
/// Days that are looked back at, before today.
pub const HISTORY_DAYS: usize = WEEKS * 7;
/// Days before those, in which it is looked whether use began before them: whoever uses something on some
/// days of the week alone has done so in a week.
pub const EARLIER_DAYS: usize = 7;
/// A trend of four weeks is carried on for the month that follows, and not beyond.
const TREND_WEEKS_MAX: usize = 2 * WEEKS;

/// How a forecast was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// What is used so far, carried on at the same rate; in the first day, as if it were that of a day.
    Linear,
    /// The mean of the same days of the four weeks before today, moved along their trend.
    Weekday,
}

/// When it is, and up to when is looked ahead.
#[derive(Debug, Clone, Copy)]
pub struct Outlook {
    /// Since when what is used so far was used.
    pub since: Timestamp,
    pub now: Timestamp,
    pub until: Timestamp,
}

/// What was used of something that adds up.
#[derive(Debug, Clone, Default)]
pub struct Series {
    /// In each of the UTC days before today, the oldest first.
    pub days: [Amount; HISTORY_DAYS],
    /// Whether anything was used in the days before those that are read, too.
    pub has_earlier: bool,
    pub so_far: Amount,
}

impl Series {
    /// What it will have come to.
    pub fn forecast(&self, outlook: &Outlook) -> (Amount, Method) {
        if outlook.until <= outlook.now {
            return (self.so_far.clone(), self.method(outlook));
        }
        match self.method(outlook) {
            Method::Linear => (self.linear(outlook), Method::Linear),
            Method::Weekday => (self.by_weekday(outlook), Method::Weekday),
        }
    }

    /// Four weeks are known where use began on the first of their days, or before.
    fn method(&self, outlook: &Outlook) -> Method {
        let is_near = outlook.until.micros() - outlook.now.micros() <= FORECAST_DAYS_MAX * MICROS_PER_DAY;
        let has_history = self.has_earlier || !self.days[0].is_zero();
        if is_near && has_history { Method::Weekday } else { Method::Linear }
    }

    /// Whatever was used in the first minutes is not what every minute will see.
    fn linear(&self, outlook: &Outlook) -> Amount {
        let Outlook { since, now, until } = *outlook;
        let span = |from: Timestamp, to: Timestamp| (to.micros() - from.micros()).max(0);
        let whole = span(since, until);
        let elapsed = span(since, now).max(MICROS_PER_DAY).min(whole);
        let left = Amount::from_minor_units(whole - elapsed);
        let more = (&self.so_far * &left).divided_by(&Amount::from_minor_units(elapsed));
        self.so_far.clone() + more
    }

    /// Each day that is left comes to the mean of its weekday, moved by the trend of the weeks' totals
    /// (least squares), and never below nothing; of today and the last day, their share.
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

    /// By how much a day differs from the same day of the week before. Around their middle the weeks lie
    /// at -3, -1, 1 and 3 halves, whose squares sum to 5.
    fn weekly_shift(&self) -> Amount {
        let week = |week: usize| self.days[week * 7..week * 7 + 7].iter().cloned().sum::<Amount>();
        let halves = [-3, -1, 1, 3].map(Amount::from_minor_units);
        let slope: Amount = halves.iter().enumerate().map(|(place, half)| half * &week(place)).sum();
        // two for the halves, five for their squares, seven for the days of a week
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

    /// A series that comes to `of(day)` each day, seen `now` days after its period began at day 0, with
    /// the share of today that is over.
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
        // the days of the four weeks on which nothing was used yet
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
        // in the first moment and at the end of the first day alike: a day's use, and 29 more
        assert_eq!(series.forecast(&Outlook { since: now, now, until }).0, whole(30 * 7));
        assert_eq!(series.forecast(&Outlook { since: now, now: at(1, 0), until }).0, whole(30 * 7));
        // what shrinks does not fall below nothing
        let shrinking = seen(|day| (20 - day).max(0), 5, 0);
        assert_eq!(
            shrinking.forecast(&outlook(5, 0, 30)).0,
            whole((0..30).map(|day| (20 - day).max(0)).sum())
        );
    }

    #[test]
    fn weekdays_err_less_than_an_even_rate_where_there_is_a_season() {
        // the same wobble every time: day by day up to a tenth of the most
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
        /// Whatever was used, a forecast is never below what is.
        #[test]
        fn a_forecast_never_falls_below_what_is_used(
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
