//! A cache of the months with partitions.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use sqlx::PgConnection;

use crate::store::{StoreError, partitions};
use metergate_domain::base::{Span, Timestamp};

/// The months with partitions, shared by all writers.
#[derive(Debug, Clone, Default)]
pub(crate) struct Months(Arc<Mutex<HashSet<Timestamp>>>);

impl Months {
    /// Returns the months of the given times that are not in the cache.
    pub(crate) fn missing(&self, times: impl Iterator<Item = Timestamp>) -> Vec<Span> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut missing: Vec<Span> = Vec::new();
        // Neighbouring times are mostly of the same month, which is looked up once.
        let mut last: Option<Span> = None;
        for at in times {
            if last.is_some_and(|month| month.contains(at)) {
                continue;
            }
            last = partitions::month_of(at);
            if let Some(month) = last
                && !known.contains(&month.from)
                && !missing.contains(&month)
            {
                missing.push(month);
            }
        }
        missing
    }

    /// Creates the partitions of months. Must run outside of a transaction.
    pub(crate) async fn make(
        &self,
        connection: &mut PgConnection,
        months: &[Span],
    ) -> Result<(), StoreError> {
        for month in months {
            partitions::ensure(connection, *month).await?;
            self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(month.from);
        }
        Ok(())
    }
}
