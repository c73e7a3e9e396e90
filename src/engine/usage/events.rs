//! Lists, traces and voids recorded events.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Map, Value};
use uuid::Uuid;

use crate::engine::credits::tracked::Tracked;
use crate::engine::credits::wallets::WalletLoader;
use crate::engine::environment_cache::CacheUpdates;
use crate::engine::error::EngineError;
use crate::engine::gate::counters::{Additions, Sign};
use crate::engine::page::{Page, PageRequest};
use crate::engine::services::{Engine, detached};
use crate::engine::writers::reader::Reader;
use crate::engine::writers::transaction::BatchTransaction;
use crate::store;
use crate::store::Scope;
use crate::store::configuration::open_recording;
use crate::store::exports::ExportRow;
use crate::store::subjects::subject::Which;
use crate::store::usage::event_list::{EventCursor, EventRow, PageOfEvents};
use crate::store::usage::voids::NewVoid;
use metergate_domain::base::names::{EventId, MeterKey};
use metergate_domain::base::{Environment, EventSource, Quantity, Timestamp};
use metergate_domain::catalog::StoredMeter;
use metergate_domain::catalog::meter::dimension_value;
use metergate_domain::gate::CatalogIndex;
use metergate_domain::usage::event::event_key;
use metergate_domain::usage::{EventFilter, Properties};

/// A recorded event.
#[derive(Debug, Clone, Serialize)]
pub struct EventView {
    pub id: String,
    pub source: String,
    pub event_name: String,
    pub subject: String,
    pub value: Quantity,
    pub properties: Map<String, Value>,
    pub timestamp: Timestamp,
    /// The subject and its ancestors when the event was recorded, nearest first.
    pub path: Vec<String>,
    pub voided: Option<Void>,
}

/// The reason and time of a void.
#[derive(Debug, Clone, Serialize)]
pub struct Void {
    pub reason: Option<String>,
    pub voided_at: Timestamp,
}

/// An event and its effects.
#[derive(Debug, Clone, Serialize)]
pub struct EventTrace {
    #[serde(flatten)]
    pub event: EventView,
    pub batch_id: i64,
    pub meters: Vec<MeterTrace>,
    /// The exports of the event's customer and hour.
    pub exports: Vec<ExportRow>,
}

/// The quantity that a meter counts from an event, and the rollup that contains it.
#[derive(Debug, Clone, Serialize)]
pub struct MeterTrace {
    pub meter: MeterKey,
    pub value: Quantity,
    pub group: Map<String, Value>,
    pub hour: Timestamp,
    /// True if the rollup contains the event. Until then, reads add the event itself.
    pub folded: bool,
}

/// A void, new or repeated.
#[derive(Debug, Clone)]
pub struct Voided {
    pub id: String,
    pub source: String,
    pub void: Void,
    pub replayed: bool,
}

impl EventView {
    fn of(row: &EventRow) -> Result<Self, EngineError> {
        let value =
            Quantity::from_decimal(&row.value).map_err(|why| EngineError::Internal(why.to_string()))?;
        Ok(Self {
            id: row.id.clone().unwrap_or_else(|| row.key.to_string()),
            source: row.source.clone().unwrap_or_default(),
            event_name: row.event_name.clone(),
            subject: row.subject().to_owned(),
            value,
            properties: Properties::stored(row.properties.clone()).into_map(),
            timestamp: row.occurred_at,
            path: row.path.clone(),
            voided: row.voided_at.map(|voided_at| Void { reason: row.void_reason.clone(), voided_at }),
        })
    }
}

fn not_found() -> EngineError {
    EngineError::NotFound {
        code: "event_not_found",
        detail: "no event has this id and source; check both".to_owned(),
    }
}

impl Engine {
    /// Returns a page of events, the latest first.
    pub async fn list_events(
        &self,
        environment: Environment,
        filter: &EventFilter,
        page: &PageRequest,
    ) -> Result<Page<EventView>, EngineError> {
        let after = page.place()?.map(|(occurred_at, batch_id, ordinal)| EventCursor {
            occurred_at,
            batch_id,
            ordinal,
        });
        let mut snapshot = self.settled_snapshot(environment).await?;
        let scope = &mut Scope::new(&mut snapshot, environment);
        let paths = match &filter.subject {
            None => None,
            Some(subject) => {
                let subjects = [subject.to_string()];
                let found = store::subjects::subject::path_ids(scope, &subjects, filter.descendants);
                Some(found.await?)
            }
        };
        let events = PageOfEvents { paths: paths.as_deref(), after, limit: page.rows_max() };
        let rows = store::usage::event_list::list(scope, filter, events).await?;
        snapshot.commit().await?;
        let place = |row: &EventRow| (row.occurred_at, row.batch_id, row.ordinal);
        let Page { data, next_cursor } = Page::from_rows(rows, page.limit, place);
        Ok(Page { data: data.iter().map(EventView::of).collect::<Result<_, _>>()?, next_cursor })
    }

    /// Returns an event and the meters that count it.
    pub async fn trace_event(
        &self,
        environment: Environment,
        id: &EventId,
        source: &EventSource,
    ) -> Result<EventTrace, EngineError> {
        let key = event_key(source, id);
        let mut snapshot = self.settled_snapshot(environment).await?;
        let scope = &mut Scope::new(&mut snapshot, environment);
        let known = store::usage::events::find_keys(scope, &[key]).await?;
        let Some(known) = known.first() else { return Err(not_found()) };
        let row = store::usage::event_list::find(scope, key, known.occurred_at).await?;
        let row = row.ok_or_else(|| EngineError::Internal(format!("the key {key} has no event")))?;
        let terms = crate::engine::environment_cache::catalog_index(scope).await?;
        let measured = measured(&terms, &row)?;
        let mut exports = Vec::new();
        if let Some(customer) = row.customer_id {
            for (stored, _) in &measured {
                let found =
                    crate::engine::exports::of_event(scope.connection, customer, stored.id, row.occurred_at)
                        .await?;
                exports.extend(found);
            }
        }
        snapshot.commit().await?;

        let event = EventView::of(&row)?;
        let properties = Properties::stored(row.properties.clone());
        let meters = measured
            .into_iter()
            .map(|(stored, value)| {
                let group = stored
                    .meter
                    .dimensions
                    .iter()
                    .map(|name| {
                        let value = properties.get(name.as_str()).and_then(dimension_value);
                        (name.to_string(), value.map_or(Value::Null, Value::String))
                    })
                    .collect();
                let (meter, hour) = (stored.meter.key.clone(), row.occurred_at.hour_floor());
                MeterTrace { meter, value, group, hour, folded: row.folded }
            })
            .collect();
        Ok(EventTrace { event, batch_id: row.batch_id, meters, exports })
    }

    /// Voids an event: later reads count it nowhere. A repeated call returns the first void.
    pub async fn void_event(
        &self,
        environment: Environment,
        id: EventId,
        source: EventSource,
        reason: Option<String>,
    ) -> Result<Voided, EngineError> {
        let engine = self.clone();
        detached(async move {
            let key = event_key(&source, &id);
            // a void with an unknown commit result is retried, because it takes effect only once
            let (void, replayed) = engine.void_key(environment, key, reason.as_deref()).await?;
            Ok(Voided { id: id.into_string(), source: source.as_str().to_owned(), void, replayed })
        })
        .await
    }

    async fn void_key(
        &self,
        environment: Environment,
        key: Uuid,
        reason: Option<&str>,
    ) -> Result<(Void, bool), EngineError> {
        if let Some(voided) = self.try_void(environment, key, reason, false).await? {
            return Ok(voided);
        }
        let alone = self.try_void(environment, key, reason, true).await?;
        alone.ok_or_else(|| EngineError::Internal("no void was made under the exclusive lock".to_owned()))
    }

    /// Voids an event while others record, or under the exclusive lock if `alone`. Returns none if it
    /// needs the exclusive lock: a concurrent call may subscribe the event's path to the default
    /// plan.
    async fn try_void(
        &self,
        environment: Environment,
        key: Uuid,
        reason: Option<&str>,
        alone: bool,
    ) -> Result<Option<(Void, bool)>, EngineError> {
        let mut transaction = self.database().pool().begin().await?;
        let scope = &mut Scope::new(&mut transaction, environment);
        if alone {
            store::configuration::lock_alone(scope).await?;
        }
        let opening = open_recording(scope).await?;
        let now = self.inner.clock.now(environment, opening.now);
        let cache = self.inner.caches.at(scope, opening.versions).await?;
        let mut fresh = CacheUpdates::default();
        let known = store::usage::events::find_keys(scope, &[key]).await?;
        let Some(known) = known.first().copied() else { return Err(not_found()) };
        let (at, batch_id) = (known.occurred_at, opening.batch_id);
        let void = NewVoid { key, batch_id, reason, voided_at: now };
        let made = store::usage::voids::insert(scope, void).await?;
        if made {
            store::usage::voids::insert_counter_event(scope, key, at, batch_id).await?;
            let row = store::usage::event_list::find(scope, key, at).await?;
            let row = row.ok_or_else(|| EngineError::Internal(format!("the key {key} has no event")))?;
            let meters = store::catalog::meters(scope).await?;
            let is_dirty = |stored: &&StoredMeter| {
                stored.meter.aggregation.is_order_statistic()
                    && stored.meter.event_name.as_str() == row.event_name
            };
            let dirty: Vec<i32> = meters.iter().filter(is_dirty).map(|stored| stored.id).collect();
            store::usage::voids::insert_gaps(scope, &dirty, at.hour_floor()).await?;

            // read now and not cached: a path without a plan may change
            let ids = [row.path_id];
            let paths = store::subjects::subject::paths(scope, Which::Ids(&ids)).await?;
            let Some(path) = paths.first() else { return Err(not_found()) };
            let terms = &cache.terms;
            if !alone && !path.has_subscription() && terms.catalog.default_plan.is_some() {
                return Ok(None);
            }
            let properties = Properties::stored(row.properties.clone());
            let mut additions = Additions::default();
            let mut quantities = BTreeMap::new();
            for (stored, quantity) in measured(terms, &row)? {
                quantities.insert(stored.meter.key.clone(), quantity);
                let properties = &properties;
                let used = Tracked { path, stored, properties, quantity, at, event: key };
                additions.add(terms, &used, Sign::TakenBack);
            }
            let mut batch = BatchTransaction {
                scope: Scope::new(scope.connection, environment),
                reader: &mut Reader::new(self.database().clone()),
                cache: &cache,
                now,
                fresh,
            };
            additions.write(&mut batch).await?;
            fresh = batch.fresh;
            let wallet_loader = WalletLoader { environment, terms, clock: &self.inner.clock, began: now };
            wallet_loader.take_back(scope.connection, path, key, &quantities).await?;
        }
        let row = store::usage::voids::find(scope, key).await?;
        transaction.commit().await?;
        fresh.remember(&cache);
        let row = row.ok_or_else(|| EngineError::Internal("a new void is missing".to_owned()))?;
        Ok(Some((Void { reason: row.reason, voided_at: row.voided_at }, !made)))
    }
}

/// Returns the quantities that meters count from an event. An event of a commit counts for its own
/// meter only.
fn measured<'a>(
    terms: &'a CatalogIndex,
    row: &EventRow,
) -> Result<Vec<(&'a StoredMeter, Quantity)>, EngineError> {
    let value = Quantity::from_decimal(&row.value).map_err(|why| EngineError::Internal(why.to_string()))?;
    if let Some(id) = row.meter_id {
        return Ok(terms.meter_by_id(id).map(|stored| (stored, value)).into_iter().collect());
    }
    let properties = Properties::stored(row.properties.clone());
    let taken = |stored: &'a StoredMeter| Some((stored, stored.meter.measure(value, &properties)?));
    Ok(terms.meters_of(&row.event_name).filter_map(taken).collect())
}
