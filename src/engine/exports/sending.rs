//! Sends exports, many at once, but one at a time per customer and meter.

use std::sync::Arc;
use std::time::Duration;

use rand::RngExt;
use sqlx::{Connection, PgConnection};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use uuid::Uuid;

use super::create::Due;
use super::delivery_lookup;
use super::delivery_lookup::DeliveryStatus;
use super::rate_limit::RateLimit;
use crate::engine::clock::Clock;
use crate::engine::error::EngineError;
use crate::providers::{DeliveryResult, OutgoingMeterEvent, Provider, Retryable};
use crate::store::exports::{Dead, Deferred, ExportRow, Outcomes};
use crate::store::{self, Scope, StoreError};
use metergate_domain::base::{Environment, Timestamp};
use metergate_domain::exports::{ExportStatus, backoff};

/// The most exports that are read at once.
const TOGETHER_MAX: i64 = 2_000;
/// The most calls under way at once.
const CALLS_MAX: usize = 64;
/// The most outcomes in one write. Outcomes that a crash loses are sent again.
const OUTCOMES_MAX: usize = 200;
/// The number of failed look-ups in a row after which the round stops looking up, because each may time
/// out.
const QUESTIONS_FAILED_MAX: usize = 3;
/// The shortest pause before the same run sends a failed export again.
const PAUSE: Duration = Duration::from_millis(500);

/// The sending part of a run, with its progress.
#[derive(Debug)]
pub(super) struct Sender<'a> {
    clock: &'a Clock,
    environment: Environment,
    provider: Arc<dyn Provider>,
    rate_limit: Arc<RateLimit>,
    delivered: u64,
    round: SendingRound,
}

/// The progress of a round.
#[derive(Debug, Default)]
struct SendingRound {
    canceled: u64,
    deferred: u64,
    /// The provider refused the account's credentials.
    is_unauthorized: bool,
    /// Exports that this round does not send again.
    tried: Vec<Uuid>,
}

impl<'a> Sender<'a> {
    pub(super) fn new(clock: &'a Clock, environment: Environment, provider: Arc<dyn Provider>) -> Self {
        let rate_limit = Arc::new(RateLimit::new(provider.calls_per_second()));
        Self { clock, environment, provider, rate_limit, delivered: 0, round: SendingRound::default() }
    }

    /// Returns the number of exports that the run has delivered.
    pub(super) fn delivered(&self) -> u64 {
        self.delivered
    }

    /// Sends all due exports, each once. Returns whether another round may send more: canceled usage
    /// needs new exports, and temporary failures may pass.
    pub(super) async fn send_due(
        &mut self,
        connection: &mut PgConnection,
        due: Due,
        round: usize,
    ) -> Result<bool, EngineError> {
        let is_asked = due == Due::All;
        if is_asked && round > 0 {
            tokio::time::sleep(PAUSE).await;
        }
        self.round = SendingRound::default();
        while !self.round.is_unauthorized {
            let now = self.now(connection).await?;
            let due_by = if is_asked { Timestamp::MAX } else { now };
            let (environment, tried) = (self.environment, &self.round.tried);
            let rows =
                store::exports::due(&mut Scope::new(connection, environment), due_by, tried, TOGETHER_MAX)
                    .await?;
            if rows.is_empty() {
                break;
            }
            let rows = self.settle_forgotten(connection, rows, now).await?;
            let ids: Vec<Uuid> = rows.iter().map(|row| row.id).collect();
            // from here on a call may succeed even if this process crashes
            store::exports::note_attempts(connection, &ids, now).await?;
            let refused = self.send(connection, rows, now).await?;
            self.settle_refused_cancelations(connection, refused, now).await?;
        }
        let SendingRound { canceled, deferred, is_unauthorized, .. } = self.round;
        Ok(!is_unauthorized && (canceled > 0 || (is_asked && deferred > 0)))
    }

    async fn now(&self, connection: &mut PgConnection) -> Result<Timestamp, StoreError> {
        Ok(self.clock.now(self.environment, store::usage::now(connection).await?))
    }

    /// Looks up exports with identifiers that the provider may have forgotten. Returns the exports to
    /// send: all others, and those that the provider did not take.
    async fn settle_forgotten(
        &mut self,
        connection: &mut PgConnection,
        rows: Vec<ExportRow>,
        now: Timestamp,
    ) -> Result<Vec<ExportRow>, EngineError> {
        let remembers_for = self.provider.remembers_for();
        let is_forgotten = |row: &ExportRow| {
            row.status == ExportStatus::Pending
                && row.unknown_since.is_some_and(|since| since.saturating_add(remembers_for) <= now)
        };
        let (forgotten, mut rows): (Vec<ExportRow>, Vec<ExportRow>) =
            rows.into_iter().partition(is_forgotten);
        let mut outcomes = Outcomes::default();
        let mut failed = 0;
        for mut row in forgotten {
            let status = if failed < QUESTIONS_FAILED_MAX {
                delivery_lookup::of_delivery(connection, self.provider.as_ref(), &row).await?
            } else {
                DeliveryStatus::Later("the provider did not answer earlier look-ups".to_owned())
            };
            failed = if matches!(status, DeliveryStatus::Later(_)) { failed + 1 } else { 0 };
            match status {
                DeliveryStatus::Taken => outcomes.delivered.push(row.id),
                DeliveryStatus::NotTaken => {
                    store::exports::note_not_taken(connection, &[row.id]).await?;
                    row.unknown_since = None;
                    rows.push(row);
                    continue;
                }
                DeliveryStatus::Unclear(why) => {
                    outcomes.dead.push(Dead { id: row.id, why, unknown_since: row.unknown_since });
                }
                DeliveryStatus::Later(why) => outcomes.later.push(deferred(&row, why, now, None)),
            }
            self.round.tried.push(row.id);
        }
        if !outcomes.is_empty() {
            store::exports::note_outcomes(connection, &outcomes, now).await?;
        }
        Ok(rows)
    }

    /// Sends exports and cancelations. Returns the refused cancelations, with the reasons, if an earlier
    /// call with a lost answer may have carried them out.
    async fn send(
        &mut self,
        connection: &mut PgConnection,
        rows: Vec<ExportRow>,
        now: Timestamp,
    ) -> Result<Vec<(ExportRow, String)>, EngineError> {
        let slots = Arc::new(Semaphore::new(CALLS_MAX));
        let mut calls = JoinSet::new();
        for row in rows {
            calls.spawn(call(
                Arc::clone(&self.provider),
                Arc::clone(&self.rate_limit),
                Arc::clone(&slots),
                row,
            ));
        }
        let mut outcomes = Outcomes::default();
        let mut refused = Vec::new();
        let mut waiting = 0;
        while let Some(call) = calls.join_next().await {
            let (row, delivery) = call.map_err(|why| EngineError::Internal(why.to_string()))?;
            if matches!(delivery, Some(DeliveryResult::Unauthorized(_))) && !self.round.is_unauthorized {
                self.round.is_unauthorized = true;
                slots.close();
            }
            match delivery {
                Some(DeliveryResult::Dead(failure))
                    if is_cancelation(&row) && row.unknown_since.is_some() =>
                {
                    refused.push((row, failure.to_string()));
                    continue;
                }
                delivery => self.note(&row, delivery, now, &mut outcomes),
            }
            waiting += 1;
            if waiting >= OUTCOMES_MAX {
                self.write(connection, std::mem::take(&mut outcomes)).await?;
                waiting = 0;
            }
        }
        self.write(connection, outcomes).await?;
        Ok(refused)
    }

    /// Looks up refused cancelations that an earlier call may have carried out.
    async fn settle_refused_cancelations(
        &mut self,
        connection: &mut PgConnection,
        refused: Vec<(ExportRow, String)>,
        now: Timestamp,
    ) -> Result<(), EngineError> {
        let mut outcomes = Outcomes::default();
        for (row, why) in refused {
            match delivery_lookup::of_cancelation(connection, self.provider.as_ref(), &row).await? {
                DeliveryStatus::Taken => outcomes.canceled.push(row.id),
                DeliveryStatus::NotTaken | DeliveryStatus::Unclear(_) => outcomes.kept.push((row.id, why)),
                DeliveryStatus::Later(why) => {
                    self.round.tried.push(row.id);
                    outcomes.later.push(deferred(&row, why, now, None));
                    continue;
                }
            }
            self.round.canceled += 1;
        }
        self.write(connection, outcomes).await
    }

    /// Adds the result of a call to the outcomes; none if the call was not made.
    fn note(
        &mut self,
        row: &ExportRow,
        delivery: Option<DeliveryResult>,
        now: Timestamp,
        outcomes: &mut Outcomes,
    ) {
        let outcome = delivery.as_ref().map_or("unsent", DeliveryResult::word);
        metrics::counter!("metergate_export_calls_total", "outcome" => outcome).increment(1);
        let (id, is_cancel, at_once) = (row.id, is_cancelation(row), Some(Duration::ZERO));
        match delivery {
            Some(DeliveryResult::Delivered | DeliveryResult::Duplicate) if is_cancel => {
                self.round.canceled += 1;
                outcomes.canceled.push(id);
            }
            Some(DeliveryResult::Delivered | DeliveryResult::Duplicate) => {
                self.delivered += 1;
                outcomes.delivered.push(id);
            }
            Some(DeliveryResult::Dead(failure)) if is_cancel => {
                self.round.canceled += 1;
                outcomes.kept.push((id, failure.to_string()));
            }
            Some(DeliveryResult::Dead(failure)) => {
                let (why, unknown_since) = (failure.to_string(), row.unknown_since);
                outcomes.dead.push(Dead { id, why, unknown_since });
            }
            Some(DeliveryResult::Retryable(Retryable { failure, may_be_taken, after })) => {
                self.round.deferred += 1;
                self.round.tried.push(id);
                let unknown_since = row.unknown_since.or(may_be_taken.then_some(now));
                let deferred = deferred(row, failure.to_string(), now, after);
                outcomes.later.push(Deferred { unknown_since, ..deferred });
            }
            Some(DeliveryResult::Unauthorized(failure)) => {
                let why = failure.to_string();
                tracing::error!(
                    why,
                    "the provider refused the credentials, so exports stop; check the API key"
                );
                outcomes.later.push(Deferred { counts: false, ..deferred(row, why, now, at_once) });
            }
            None => {
                let why = row.last_error.clone().unwrap_or_else(|| "not sent".to_owned());
                outcomes.later.push(Deferred { counts: false, ..deferred(row, why, now, at_once) });
            }
        }
    }

    async fn write(&self, connection: &mut PgConnection, outcomes: Outcomes) -> Result<(), EngineError> {
        let now = self.now(connection).await?;
        for Dead { id, why, .. } in &outcomes.dead {
            tracing::error!(environment = %self.environment, export = %id, why, "the provider refused an export; it is dead until retried");
        }
        let mut transaction = connection.begin().await?;
        store::exports::note_outcomes(&mut transaction, &outcomes, now).await?;
        Ok(transaction.commit().await?)
    }
}

/// Sends or cancels an export. Returns none if the slots are closed, so that nothing more is sent.
async fn call(
    provider: Arc<dyn Provider>,
    rate_limit: Arc<RateLimit>,
    slots: Arc<Semaphore>,
    row: ExportRow,
) -> (ExportRow, Option<DeliveryResult>) {
    let Ok(_slot) = slots.acquire().await else { return (row, None) };
    rate_limit.wait().await;
    let event = meter_event(&row);
    let delivery =
        if is_cancelation(&row) { provider.cancel(&event).await } else { provider.deliver(&event).await };
    (row, Some(delivery))
}

fn is_cancelation(row: &ExportRow) -> bool {
    row.status == ExportStatus::Delivered
}

fn meter_event(row: &ExportRow) -> OutgoingMeterEvent {
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

/// Defers an export by a pause, or by a pause that grows with its attempts.
fn deferred(row: &ExportRow, why: String, now: Timestamp, pause: Option<Duration>) -> Deferred {
    let attempts = u32::try_from(row.attempts).unwrap_or_default();
    let pause = pause.unwrap_or_else(|| backoff(attempts, rand::rng().random()));
    let next_attempt_at = now.saturating_add(pause);
    Deferred { id: row.id, why, next_attempt_at, unknown_since: row.unknown_since, counts: true }
}
