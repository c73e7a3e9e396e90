//! Schedules of jobs: an interval, or a cron expression in UTC.

use std::time::Duration;

use croner::Cron;
use jiff::Timestamp;
use jiff::tz::TimeZone;

/// A schedule of a job.
#[derive(Debug, Clone)]
pub enum JobSchedule {
    Every(Duration),
    Cron(Box<Cron>),
}

/// The error of parsing a text that is not a schedule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must be a duration such as 60s or a cron expression such as @daily")]
pub struct NoSchedule;

impl JobSchedule {
    /// Parses a duration, otherwise a cron expression.
    pub fn parse(text: &str) -> Result<Self, NoSchedule> {
        if let Ok(length) = humantime::parse_duration(text) {
            return if length.is_zero() { Err(NoSchedule) } else { Ok(Self::Every(length)) };
        }
        text.parse().map(|cron| Self::Cron(Box::new(cron))).map_err(|_| NoSchedule)
    }

    /// Returns the time until the next run.
    pub(super) fn pause(&self, now: Timestamp) -> Duration {
        match self {
            Self::Every(length) => *length,
            Self::Cron(cron) => {
                let now = now.to_zoned(TimeZone::UTC);
                let next = cron.find_next_occurrence(&now, false).ok();
                let until = next.and_then(|next| Duration::try_from(next.duration_since(&now)).ok());
                // the expression has no further occurrence; look again tomorrow
                until.unwrap_or(Duration::from_hours(24))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedules_are_durations_or_cron_expressions() {
        let now: Timestamp = "2026-11-21T22:30:00Z".parse().unwrap();
        let pause = |text: &str| JobSchedule::parse(text).unwrap().pause(now);
        assert_eq!(pause("60s"), Duration::from_mins(1));
        assert_eq!(pause("@daily"), Duration::from_mins(90));
        assert_eq!(pause("@hourly"), Duration::from_mins(30));
        assert_eq!(pause("*/15 * * * *"), Duration::from_mins(15));
        for text in ["", "0s", "soon", "* * *", "61 * * * *"] {
            assert!(JobSchedule::parse(text).is_err(), "{text}");
        }
    }
}
