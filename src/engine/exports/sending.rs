//! Sending: what is written is handed over, many at once, but one at a time for a customer and meter.

use std::sync::Arc;
use std::time::Duration;

use rand::RngExt;
use sqlx::PgConnection;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use uuid::Uuid;

use super::delivery_lookup;
use super::delivery_lookup::DeliveryStatus;
use super::failure_text;
use super::rate_limit::RateLimit;
use crate::engine::{Engine, EngineError};
use crate::providers::{DeliveryResult, OutgoingMeterEvent, Provider, Retryable};
use crate::store;
use crate::store::exports::{Dead, Deferred, ExportRow, Outcomes};
use metergate_domain::base::environment::Environment;
use metergate_domain::base::timestamp::Timestamp;
use metergate_domain::exports::{ExportStatus, backoff};

/// Exports that are taken up together.
const TOGETHER_MAX: i64 = 2_000;
/// Calls under way at once.
const CALLS_MAX: usize = 64;
/// Outcomes that are written together: what is not written yet is sent again after a crash.
const OUTCOMES_MAX: usize = 200;
/// Questions in a row that may fail before no more are asked: each may take its time to fail.
const QUESTIONS_FAILED_MAX: usize = 3;
/// The least pause before what failed is sent again by the same run.
const PAUSE: Duration = Duration::from_millis(500);

#[derive(Debug, Default)]
pub(super) struct Sent {
    pub(super) delivered: u64,
    pub(super) canceled: u64,
    pub(super) deferred: u64,
    /// The account's credentials are refused.
    pub(super) is_stopped: bool,
}

impl Engine {
    /// Sends all that is due, each once; `again`: also what failed a moment ago.
    pub(super) async fn send_due(
        &self,
        connection: &mut PgConnection,
        environment: Environment,
        provider: &Arc<dyn Provider>,
        (all, again): (bool, bool),
    ) -> Result<Sent, EngineError> {
        if again {
            tokio::time::sleep(PAUSE).await;
        }
        let rate_limit = Arc::new(RateLimit::new(provider.calls_per_second()));
        let mut sent = Sent::default();
        let mut tried: Vec<Uuid> = Vec::new();
        while !sent.is_stopped {
            let now = self.inner.clock.now(environment, store::usage::now(connection).await?);
            let due_by = if all { Timestamp::MAX } else { now };
            let rows = store::exports::due(connection, environment, due_by, &tried, TOGETHER_MAX).await?;
            if rows.is_empty() {
                break;
            }
            let rows = self.resolve_unknown_deliveries(connection, provider, rows, now, &mut tried).await?;
            let ids: Vec<Uuid> = rows.iter().map(|row| row.id).collect();
            // from here on they may be taken, whatever becomes of us
            store::exports::note_attempts(connection, &ids, now).await?;
            self.send(connection, environment, provider, &rate_limit, (rows, now), (&mut sent, &mut tried))
                .await?;
        }
        Ok(sent)
    }

    /// Finds out what became of those whose identifiers the provider may have forgotten; the others, and
    /// those that were not taken, go on.
    async fn resolve_unknown_deliveries(
        &self,
        connection: &mut PgConnection,
        provider: &Arc<dyn Provider>,
        rows: Vec<ExportRow>,
        now: Timestamp,
        tried: &mut Vec<Uuid>,
    ) -> Result<Vec<ExportRow>, EngineError> {
        let remembers_for = provider.remembers_for();
        let is_forgotten = |row: &ExportRow| {
            row.status == ExportStatus::Pending
                && row.unknown_since.is_some_and(|since| since.saturating_add(remembers_for) <= now)
        };
        let (forgotten, mut rows): (Vec<ExportRow>, Vec<ExportRow>) =
            rows.into_iter().partition(is_forgotten);
        let mut outcomes = Outcomes::default();
        let mut failed = 0;
        for mut row in forgotten {
            let delivery_status = if failed < QUESTIONS_FAILED_MAX {
                delivery_lookup::find_out(connection, provider.as_ref(), &row).await?
            } else {
                DeliveryStatus::Later("the provider does not say what it has".to_owned())
            };
            failed = if matches!(delivery_status, DeliveryStatus::Later(_)) { failed + 1 } else { 0 };
            match delivery_status {
                DeliveryStatus::Taken => outcomes.delivered.push(row.id),
                DeliveryStatus::NotTaken => {
                    store::exports::note_not_taken(connection, &[row.id]).await?;
                    row.unknown_since = None;
                    rows.push(row);
                    continue;
                }
                DeliveryStatus::Unclear(why) => {
                    let unknown_since = row.unknown_since;
                    outcomes.dead.push(Dead { id: row.id, why, unknown_since });
                }
                DeliveryStatus::Later(why) => {
                    let unknown_since = row.unknown_since;
                    outcomes.later.push(deferred(&row, why, (now, None), unknown_since, true));
                }
            }
            tried.push(row.id);
        }
        if !outcomes.is_empty() {
            store::exports::note_outcomes(connection, &outcomes, now).await?;
        }
        Ok(rows)
    }

    async fn send(
        &self,
        connection: &mut PgConnection,
        environment: Environment,
        provider: &Arc<dyn Provider>,
        rate_limit: &Arc<RateLimit>,
        (rows, now): (Vec<ExportRow>, Timestamp),
        (sent, tried): (&mut Sent, &mut Vec<Uuid>),
    ) -> Result<(), EngineError> {
        let slots = Arc::new(Semaphore::new(CALLS_MAX));
        let mut calls = JoinSet::new();
        for row in rows {
            let (provider, rate_limit, slots) =
                (Arc::clone(provider), Arc::clone(rate_limit), Arc::clone(&slots));
            calls.spawn(async move {
                // closed: nothing more is sent
                let Ok(_slot) = slots.acquire().await else { return (row, None) };
                rate_limit.wait().await;
                let outgoing_event = outgoing_event(&row);
                let delivery = if is_cancelation(&row) {
                    provider.cancel(&outgoing_event).await
                } else {
                    provider.deliver(&outgoing_event).await
                };
                (row, Some(delivery))
            });
        }
        let mut outcomes = Outcomes::default();
        let mut doubtful = Vec::new();
        let mut waiting = 0;
        while let Some(call) = calls.join_next().await {
            let (row, delivery) = call.map_err(|why| EngineError::Internal(why.to_string()))?;
            if matches!(delivery, Some(DeliveryResult::Unauthorized(_))) && !sent.is_stopped {
                sent.is_stopped = true;
                slots.close();
            }
            match delivery {
                // an earlier call, whose answer was lost, may have done what this one could not
                Some(DeliveryResult::Dead(failure))
                    if is_cancelation(&row) && row.unknown_since.is_some() =>
                {
                    doubtful.push((row, failure_text(&failure)));
                    continue;
                }
                delivery => note(row, delivery, now, &mut outcomes, sent, tried),
            }
            waiting += 1;
            if waiting >= OUTCOMES_MAX {
                self.note(connection, environment, std::mem::take(&mut outcomes)).await?;
                waiting = 0;
            }
        }
        self.note(connection, environment, outcomes).await?;
        let mut outcomes = Outcomes::default();
        for (row, why) in doubtful {
            match delivery_lookup::of_cancelation(connection, provider.as_ref(), &row).await? {
                DeliveryStatus::Taken => outcomes.canceled.push(row.id),
                DeliveryStatus::NotTaken | DeliveryStatus::Unclear(_) => outcomes.kept.push((row.id, why)),
                DeliveryStatus::Later(why) => {
                    tried.push(row.id);
                    let unknown_since = row.unknown_since;
                    outcomes.later.push(deferred(&row, why, (now, None), unknown_since, true));
                    continue;
                }
            }
            sent.canceled += 1;
        }
        self.note(connection, environment, outcomes).await
    }

    async fn note(
        &self,
        connection: &mut PgConnection,
        environment: Environment,
        outcomes: Outcomes,
    ) -> Result<(), EngineError> {
        let now = self.inner.clock.now(environment, store::usage::now(connection).await?);
        for Dead { id, why, .. } in &outcomes.dead {
            tracing::error!(%environment, export = %id, why, "an export is dead");
        }
        let mut transaction = sqlx::Connection::begin(connection).await?;
        store::exports::note_outcomes(&mut transaction, &outcomes, now).await?;
        Ok(transaction.commit().await?)
    }
}

fn is_cancelation(row: &ExportRow) -> bool {
    row.status == ExportStatus::Delivered
}

fn outgoing_event(row: &ExportRow) -> OutgoingMeterEvent {
    OutgoingMeterEvent {
        event_name: row.event_name.clone(),
        customer_key: row.customer_key.clone(),
        value_key: row.value_key.clone(),
        customer: row.customer.clone(),
        value: row.value,
        timestamp: row.occurred_at,
        identifier: row.identifier.clone(),
        attempt: u32::try_from(row.attempts).unwrap_or_default(),
    }
}

fn note(
    row: ExportRow,
    delivery: Option<DeliveryResult>,
    now: Timestamp,
    outcomes: &mut Outcomes,
    sent: &mut Sent,
    tried: &mut Vec<Uuid>,
) {
    let is_cancel = is_cancelation(&row);
    let outcome = match &delivery {
        Some(DeliveryResult::Delivered) => "delivered",
        Some(DeliveryResult::Duplicate) => "duplicate",
        Some(DeliveryResult::Dead(_)) => "dead",
        Some(DeliveryResult::Retryable(_)) => "later",
        Some(DeliveryResult::Unauthorized(_)) => "stopped",
        None => "unsent",
    };
    metrics::counter!("metergate_export_calls_total", "outcome" => outcome).increment(1);
    match delivery {
        Some(DeliveryResult::Delivered | DeliveryResult::Duplicate) if is_cancel => {
            sent.canceled += 1;
            outcomes.canceled.push(row.id);
        }
        Some(DeliveryResult::Delivered | DeliveryResult::Duplicate) => {
            sent.delivered += 1;
            outcomes.delivered.push(row.id);
        }
        Some(DeliveryResult::Dead(failure)) if is_cancel => {
            sent.canceled += 1;
            outcomes.kept.push((row.id, failure_text(&failure)));
        }
        Some(DeliveryResult::Dead(failure)) => {
            let (why, unknown_since) = (failure_text(&failure), row.unknown_since);
            outcomes.dead.push(Dead { id: row.id, why, unknown_since });
        }
        Some(DeliveryResult::Retryable(Retryable { failure, may_be_taken, after })) => {
            sent.deferred += 1;
            tried.push(row.id);
            let unknown_since =
                if may_be_taken { row.unknown_since.or(Some(now)) } else { row.unknown_since };
            outcomes.later.push(deferred(&row, failure_text(&failure), (now, after), unknown_since, true));
        }
        Some(DeliveryResult::Unauthorized(failure)) => {
            tracing::error!(
                why = failure_text(&failure),
                "the provider refuses our credentials: nothing is exported"
            );
            let unknown_since = row.unknown_since;
            outcomes.later.push(deferred(
                &row,
                failure_text(&failure),
                (now, Some(Duration::ZERO)),
                unknown_since,
                false,
            ));
        }
        None => {
            let why = row.last_error.clone().unwrap_or_else(|| "not sent".to_owned());
            let unknown_since = row.unknown_since;
            outcomes.later.push(deferred(&row, why, (now, Some(Duration::ZERO)), unknown_since, false));
        }
    }
}

fn deferred(
    row: &ExportRow,
    why: String,
    (now, after): (Timestamp, Option<Duration>),
    unknown_since: Option<Timestamp>,
    counts: bool,
) -> Deferred {
    let attempts = u32::try_from(row.attempts).unwrap_or_default();
    let pause = after.unwrap_or_else(|| backoff(attempts, rand::rng().random()));
    Deferred { id: row.id, why, next_attempt_at: now.saturating_add(pause), unknown_since, counts }
}
