//! Makes, settles and reads reservations: the use cases.

use super::calls::{Call, Reply};
use crate::engine::error::EngineError;
use crate::engine::page::{Page, PageRequest};
use crate::engine::services::Engine;
use crate::engine::usage::ingest::prepared_event::new_id;
use crate::store::gate::reservations::{PageOf, ReservationCursor};
use crate::store::{self, Scope};
use metergate_domain::base::limits::SWEEP_RESERVATIONS_MAX;
use metergate_domain::base::names::{EventId, MeterKey};
use metergate_domain::base::{Environment, EventSource, Quantity, Timestamp};
use metergate_domain::gate::{
    Commit, Extend, GateAnswer, Moment, OnExpiry, Refusal, Release, Reservation, ReservationFilter,
    ReservationStatus, Reserve,
};
use metergate_domain::usage::event::event_key;
use serde::Serialize;
use serde_json::{Map, Value};
use sqlx::{Postgres, Transaction};
use std::collections::BTreeSet;
use std::time::Duration;
use uuid::Uuid;

/// The representation of a reservation in answers.
#[derive(Debug, Clone, Serialize)]
pub struct ReservationView {
    pub id: String,
    pub subject: String,
    /// The subject and its ancestors at the creation, nearest first.
    pub path: Vec<String>,
    pub status: ReservationStatus,
    pub created_at: Timestamp,
    pub expires_at: Timestamp,
    pub on_expiry: OnExpiry,
    pub holds: Vec<HoldView>,
    pub over_hold: bool,
    pub late: bool,
    pub reason: Option<String>,
    pub settled_at: Option<Timestamp>,
}

#[derive(Debug, Clone, Serialize)]
pub struct HoldView {
    pub meter: MeterKey,
    pub value: Quantity,
    /// The quantity that commits have recorded so far.
    pub committed: Quantity,
    pub properties: Map<String, Value>,
}

impl ReservationView {
    pub(super) fn of(reservation: &Reservation, path: Vec<String>, now: Timestamp) -> Self {
        // An expiry that is due is shown even before it is written.
        let moment = Moment { now, age_max: Duration::ZERO, taken: &BTreeSet::new() };
        let shown = reservation.expired(moment).map_or_else(|| reservation.clone(), |(expired, _)| expired);
        Self {
            subject: path.first().cloned().unwrap_or_default(),
            path,
            status: shown.status,
            created_at: shown.created_at,
            expires_at: shown.expires_at,
            on_expiry: shown.on_expiry,
            holds: shown
                .holds
                .into_iter()
                .map(|hold| HoldView {
                    meter: hold.meter,
                    value: hold.value,
                    committed: hold.committed,
                    properties: hold.properties.into_map(),
                })
                .collect(),
            over_hold: shown.over_hold,
            late: shown.late,
            reason: shown.reason,
            settled_at: shown.settled_at,
            id: shown.id,
        }
    }
}

/// The time for which the commit of a batch can be looked up.
pub(super) const BATCHES_KEPT: Duration = Duration::from_hours(1);

/// Returns the key of a reservation, derived from its id like the key of an event.
pub(super) fn key_of(id: &EventId) -> Uuid {
    event_key(&EventSource::default(), id)
}

pub(crate) fn not_found() -> EngineError {
    EngineError::NotFound { code: Refusal::NotFound.code(), detail: Refusal::NotFound.detail().to_owned() }
}

impl Engine {
    /// Holds the requested quantities or denies them. A dry run holds nothing.
    pub async fn reserve(
        &self,
        environment: Environment,
        request: Reserve,
    ) -> Result<GateAnswer, EngineError> {
        if request.dry_run {
            // Boxed, so that the larger future of a check does not enlarge every reserve call.
            return Box::pin(self.check(environment, &request, true)).await;
        }
        let id = request.id.clone().unwrap_or_else(new_id);
        self.call(environment, Call::Reserve { key: key_of(&id), id: id.into_string(), request }).await
    }

    pub async fn commit(
        &self,
        environment: Environment,
        id: &EventId,
        request: Commit,
    ) -> Result<GateAnswer, EngineError> {
        self.call(environment, Call::Commit { key: key_of(id), request }).await
    }

    pub async fn release(
        &self,
        environment: Environment,
        id: &EventId,
        request: Release,
    ) -> Result<GateAnswer, EngineError> {
        self.call(environment, Call::Release { key: key_of(id), request }).await
    }

    pub async fn extend(
        &self,
        environment: Environment,
        id: &EventId,
        request: Extend,
    ) -> Result<GateAnswer, EngineError> {
        self.call(environment, Call::Extend { key: key_of(id), request }).await
    }

    pub(super) async fn call(&self, environment: Environment, call: Call) -> Result<GateAnswer, EngineError> {
        let lane = self.inner.services(environment).gate.lane_for(&call);
        match lane.submit(call, self.inner.settings.wait_max).await? {
            Reply::Answer(answer) => Ok(*answer),
            Reply::Swept(_) => Err(EngineError::Internal("a call got the reply of a sweep".to_owned())),
        }
    }

    /// Expires some due reservations. Returns whether there may be more.
    pub async fn sweep(&self, environment: Environment) -> Result<bool, EngineError> {
        let lane = self.inner.services(environment).gate.lane_for(&Call::Sweep);
        match lane.submit(Call::Sweep, self.inner.settings.wait_max).await? {
            Reply::Swept(count) => Ok(i64::try_from(count).is_ok_and(|n| n >= SWEEP_RESERVATIONS_MAX)),
            Reply::Answer(_) => Err(EngineError::Internal("a sweep got the reply of a call".to_owned())),
        }
    }

    /// Deletes the records of batches that are too old to be looked up.
    pub async fn forget_old_batches(&self) -> Result<(), EngineError> {
        let mut connection = self.database().pool().acquire().await?;
        Ok(store::gate::batches::delete_old(&mut connection, BATCHES_KEPT).await?)
    }

    /// Returns a snapshot in which all due charges of expired reservations are recorded.
    pub(crate) async fn settled_snapshot(
        &self,
        environment: Environment,
    ) -> Result<Transaction<'static, Postgres>, EngineError> {
        loop {
            let mut snapshot = store::usage::snapshot(self.database().pool()).await?;
            let now = self.inner.clock.now(environment, store::usage::now(&mut snapshot).await?);
            if !store::gate::reservations::has_due_charges(&mut Scope::new(&mut snapshot, environment), now)
                .await?
            {
                return Ok(snapshot);
            }
            drop(snapshot);
            // If another process is recording these charges, the sweep waits for it.
            self.sweep(environment).await?;
        }
    }

    pub async fn get_reservation(
        &self,
        environment: Environment,
        id: &EventId,
    ) -> Result<ReservationView, EngineError> {
        let mut connection = self.database().pool().acquire().await?;
        let now = self.inner.clock.now(environment, store::usage::now(&mut connection).await?);
        let found =
            store::gate::reservations::find(&mut Scope::new(&mut connection, environment), key_of(id))
                .await?;
        let found = found.ok_or_else(not_found)?;
        let mut names = store::subjects::subject::path_names(&mut connection, &[found.path_id]).await?;
        Ok(ReservationView::of(&found, names.remove(&found.path_id).unwrap_or_default(), now))
    }

    /// Returns a page of reservations, latest first.
    pub async fn list_reservations(
        &self,
        environment: Environment,
        filter: &ReservationFilter,
        page: &PageRequest,
    ) -> Result<Page<ReservationView>, EngineError> {
        let after = page.place()?.map(|(created_at, key)| ReservationCursor { created_at, key });
        let mut snapshot = store::usage::snapshot(self.database().pool()).await?;
        let scope = &mut Scope::new(&mut snapshot, environment);
        let now = self.inner.clock.now(environment, store::usage::now(scope.connection).await?);
        let paths = match &filter.subject {
            None => None,
            Some(subject) => {
                let names = [subject.to_string()];
                Some(store::subjects::subject::path_ids(scope, &names, false).await?)
            }
        };
        let asked = PageOf { paths, status: filter.status, after, limit: page.rows_max() };
        let rows = store::gate::reservations::list(scope, &asked, now).await?;
        let page = Page::from_rows(rows, page.limit, |row| (row.created_at, row.key));
        let ids: Vec<i64> = page.data.iter().map(|row| row.path_id).collect();
        let names = store::subjects::subject::path_names(scope.connection, &ids).await?;
        snapshot.commit().await?;
        let path_of = |row: &Reservation| names.get(&row.path_id).cloned().unwrap_or_default();
        Ok(page.map(|row| ReservationView::of(&row, path_of(&row), now)))
    }
}
