//! The clock of an environment: PostgreSQL's clock, which the settings may shift for the test
//! environment. Tests of the program use a manual clock.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::store::gate::fast_path;
use metergate_domain::base::{Environment, Timestamp};

/// A clock for both environments.
#[derive(Debug, Clone)]
pub struct Clock(TimeSource);

#[derive(Debug, Clone)]
enum TimeSource {
    Postgres { test_offset: Offset },
    Manual(Arc<Mutex<Timestamp>>),
}

/// The shift of the test environment's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Offset {
    Ahead(Duration),
    Behind(Duration),
}

impl Clock {
    /// Returns PostgreSQL's clock, shifted for the test environment.
    pub fn postgres(test_offset: Offset) -> Self {
        Self(TimeSource::Postgres { test_offset })
    }

    /// Returns a clock that changes only with [`Self::set`].
    pub fn manual(at: Timestamp) -> Self {
        Self(TimeSource::Manual(Arc::new(Mutex::new(at))))
    }

    /// Sets a manual clock. Has no effect on other clocks.
    pub fn set(&self, at: Timestamp) {
        if let TimeSource::Manual(now) = &self.0 {
            *now.lock().unwrap_or_else(PoisonError::into_inner) = at;
        }
    }

    /// Returns the time outside of Metergate, which the shift of the test environment does not affect.
    pub fn outside(&self, postgres_now: Timestamp) -> Timestamp {
        self.now(Environment::Live, postgres_now)
    }

    /// Returns the parameters from which a statement derives the time of the environment.
    pub(crate) fn setting(&self, environment: Environment) -> fast_path::StatementClock {
        let micros = |by: Duration| i64::try_from(by.as_micros()).unwrap_or(i64::MAX);
        let (fixed, shift_micros) = match &self.0 {
            TimeSource::Manual(now) => (Some(*now.lock().unwrap_or_else(PoisonError::into_inner)), 0),
            TimeSource::Postgres { test_offset } if environment == Environment::Test => match test_offset {
                Offset::Ahead(by) => (None, micros(*by)),
                Offset::Behind(by) => (None, -micros(*by)),
            },
            TimeSource::Postgres { .. } => (None, 0),
        };
        fast_path::StatementClock { fixed, shift_micros }
    }

    /// Returns the time of the environment when PostgreSQL's clock shows `postgres_now`.
    pub fn now(&self, environment: Environment, postgres_now: Timestamp) -> Timestamp {
        match &self.0 {
            TimeSource::Manual(now) => *now.lock().unwrap_or_else(PoisonError::into_inner),
            TimeSource::Postgres { test_offset } if environment == Environment::Test => match test_offset {
                Offset::Ahead(by) => postgres_now.saturating_add(*by),
                Offset::Behind(by) => postgres_now.saturating_sub(*by),
            },
            TimeSource::Postgres { .. } => postgres_now,
        }
    }
}
