//! Reads recorded events.

use serde_json::Value;
use sqlx::{Postgres, QueryBuilder};
use uuid::Uuid;

use crate::store::StoreError;
use crate::store::scope::Scope;
use crate::store::usage::query::push_paths;
use metergate_domain::base::Timestamp;
use metergate_domain::base::names::EventName;
use metergate_domain::usage::EventFilter;

/// A stored event.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct EventRow {
    pub key: Uuid,
    pub path_id: i64,
    /// None if the key is the id.
    pub id: Option<String>,
    pub source: Option<String>,
    pub event_name: String,
    /// The subject and its ancestors at the time of recording, nearest first.
    pub path: Vec<String>,
    pub value: String,
    /// The meter that the event is bound to, if any.
    pub meter_id: Option<i32>,
    /// The paying customer, if any.
    pub customer_id: Option<i64>,
    pub properties: Option<Value>,
    pub occurred_at: Timestamp,
    pub batch_id: i64,
    pub ordinal: i32,
    pub folded: bool,
    pub void_reason: Option<String>,
    pub voided_at: Option<Timestamp>,
}

/// The filter and position of a page.
#[derive(Debug, Clone, Copy)]
pub struct PageOfEvents<'a> {
    /// None for all paths.
    pub paths: Option<&'a [i64]>,
    pub after: Option<EventCursor>,
    pub limit: u32,
}

/// The event after which a page begins, in descending order of time and arrival.
#[derive(Debug, Clone, Copy)]
pub struct EventCursor {
    pub occurred_at: Timestamp,
    pub batch_id: i64,
    pub ordinal: i32,
}

const COLUMNS: &str =
    "select e.key, e.path_id, e.id, e.source, n.name as event_name, e.value::text as value, e.properties, e.meter_id,
        e.customer_id, e.occurred_at, e.batch_id, e.ordinal, v.reason as void_reason, v.voided_at,
        array(select a.subject from paths p, unnest(p.ancestors) with ordinality as level (id, n)
              join subjects a on a.id = level.id where p.id = e.path_id order by level.n) as path,
        not exists (select from unfolded u where u.batch_id = e.batch_id) as folded
     from events e
     join event_names n on n.id = e.event_name_id
     left join voids v on v.environment = e.environment and v.key = e.key
     where e.sign = 1 and e.environment = ";

impl EventRow {
    pub fn subject(&self) -> &str {
        self.path.first().map_or("", String::as_str)
    }
}

/// Returns a page of events, the latest first.
pub async fn list(
    scope: &mut Scope<'_>,
    filter: &EventFilter,
    page: PageOfEvents<'_>,
) -> Result<Vec<EventRow>, StoreError> {
    let mut sql = QueryBuilder::<Postgres>::new(COLUMNS);
    sql.push_bind(scope.environment.code());
    push_paths(&mut sql, "e.path_id", page.paths);
    if let Some(name) = filter.event_name.as_ref().map(EventName::as_str) {
        sql.push(" and e.event_name_id = (select id from event_names where environment = ");
        sql.push_bind(scope.environment.code()).push(" and name = ").push_bind(name).push(")");
    }
    if let Some(source) = &filter.source {
        sql.push(" and coalesce(e.source, '') = ").push_bind(source.clone());
    }
    if let Some(from) = filter.from {
        sql.push(" and e.occurred_at >= ").push_bind(from);
    }
    if let Some(to) = filter.to {
        sql.push(" and e.occurred_at < ").push_bind(to);
    }
    if let Some(voided) = filter.voided {
        sql.push(if voided { " and v.key is not null" } else { " and v.key is null" });
    }
    if let Some(after) = page.after {
        // redundant, but the index and the partitions need this condition
        sql.push(" and e.occurred_at <= ").push_bind(after.occurred_at);
        sql.push(" and (e.occurred_at, e.batch_id, e.ordinal) < (").push_bind(after.occurred_at);
        sql.push(", ").push_bind(after.batch_id).push(", ").push_bind(after.ordinal).push(")");
    }
    sql.push(" order by e.occurred_at desc, e.batch_id desc, e.ordinal desc limit ")
        .push_bind(i64::from(page.limit));
    Ok(sql.build_query_as().persistent(false).fetch_all(&mut *scope.connection).await?)
}

/// Returns the event of a key.
pub async fn find(
    scope: &mut Scope<'_>,
    key: Uuid,
    occurred_at: Timestamp,
) -> Result<Option<EventRow>, StoreError> {
    let mut sql = QueryBuilder::<Postgres>::new(COLUMNS);
    sql.push_bind(scope.environment.code());
    sql.push(" and e.key = ").push_bind(key).push(" and e.occurred_at = ").push_bind(occurred_at);
    Ok(sql.build_query_as().persistent(false).fetch_optional(&mut *scope.connection).await?)
}
