//! Reservations: inserted once by key, locked by key, listed by creation time.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sqlx::postgres::PgRow;
use sqlx::types::Json;
use sqlx::{PgConnection, Postgres, QueryBuilder, Row};
use uuid::Uuid;

use super::hold_lines::on_expiry_of;
use crate::store::StoreError;
use crate::store::scope::Scope;
use crate::store::usage::query::push_paths;
use metergate_domain::base::names::MeterKey;
use metergate_domain::base::{Quantity, Timestamp};
use metergate_domain::credits::wallet::GrantShare;
use metergate_domain::credits::{CoverageShare, CreditCoverage};
use metergate_domain::gate::{Hold, LastCall, Reservation, ReservationStatus};
use metergate_domain::pricing::Amount;
use metergate_domain::usage::Properties;

/// A hold as it is stored.
#[derive(Serialize)]
struct KeptHold<'a> {
    meter: &'a MeterKey,
    value: Quantity,
    committed: Quantity,
    #[serde(skip_serializing_if = "Map::is_empty")]
    properties: &'a Map<String, Value>,
    records: u32,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    covers: Vec<KeptCover>,
}

/// The stored credits of a hold: the subject, its grants (quantity, amount), and the covered share of its
/// limits.
#[derive(Serialize, Deserialize)]
struct KeptCover {
    subject: i64,
    parts: Vec<(Uuid, Value, Value)>,
    shares: Vec<(Uuid, Value)>,
}

/// Returns a decimal number if it is exact within the digits of a quantity, otherwise a fraction.
fn exact(quantity: &Amount) -> String {
    let cut = quantity.quantity_below();
    if Amount::of(cut) == *quantity { cut.to_string() } else { quantity.fraction() }
}

impl KeptCover {
    fn of(cover: &CreditCoverage) -> Self {
        let text = |number: &dyn std::fmt::Display| Value::String(number.to_string());
        let part = |part: &GrantShare| (part.grant, Value::String(exact(&part.quantity)), text(&part.amount));
        let share = |share: &CoverageShare| (share.definition, text(&share.covered));
        Self {
            subject: cover.subject_id,
            parts: cover.parts.iter().map(part).collect(),
            shares: cover.shares.iter().map(share).collect(),
        }
    }

    fn read(self) -> Result<CreditCoverage, StoreError> {
        let number = |value: &Value| Quantity::from_json(value).map_err(unreadable);
        let part = |(grant, quantity, amount): (Uuid, Value, Value)| {
            let fraction = quantity.as_str().filter(|text| text.contains('/')).map(Amount::from_fraction);
            let quantity = match fraction {
                Some(fraction) => fraction.ok_or_else(|| unreadable(&quantity))?,
                None => number(&quantity)?.into(),
            };
            Ok(GrantShare { grant, quantity, amount: number(&amount)?.into() })
        };
        let share = |(definition, covered): (Uuid, Value)| {
            Ok(CoverageShare { definition, covered: number(&covered)? })
        };
        Ok(CreditCoverage {
            subject_id: self.subject,
            parts: self.parts.into_iter().map(part).collect::<Result<_, StoreError>>()?,
            shares: self.shares.into_iter().map(share).collect::<Result<_, StoreError>>()?,
        })
    }
}

#[derive(Deserialize)]
struct StoredHold {
    meter: String,
    value: Value,
    committed: Value,
    #[serde(default)]
    properties: Option<Value>,
    records: u32,
    #[serde(default)]
    covers: Vec<KeptCover>,
}

fn unreadable(what: impl std::fmt::Debug) -> StoreError {
    StoreError::internal(format!("cannot read a stored reservation: {what:?}"))
}

impl StoredHold {
    fn read(self) -> Result<Hold, StoreError> {
        Ok(Hold {
            meter: MeterKey::parse(self.meter).map_err(unreadable)?,
            value: Quantity::from_json(&self.value).map_err(unreadable)?,
            committed: Quantity::from_json(&self.committed).map_err(unreadable)?,
            properties: Properties::stored(self.properties),
            records: self.records,
            covers: self.covers.into_iter().map(KeptCover::read).collect::<Result<_, _>>()?,
        })
    }
}

pub(crate) fn kept(holds: &[Hold]) -> String {
    let holds: Vec<KeptHold<'_>> = holds
        .iter()
        .map(|hold| KeptHold {
            meter: &hold.meter,
            value: hold.value,
            committed: hold.committed,
            properties: hold.properties.as_map(),
            records: hold.records,
            covers: hold.covers.iter().map(KeptCover::of).collect(),
        })
        .collect();
    // Names and numbers always serialize.
    serde_json::to_string(&holds).unwrap_or_default()
}

/// Returns the id to store, or none if the key already contains it.
pub(crate) fn id_beside_key(id: &str, key: Uuid) -> Option<&str> {
    Some(id).filter(|id| Uuid::try_parse(id).ok() != Some(key))
}

fn status_code(status: ReservationStatus) -> i16 {
    match status {
        ReservationStatus::Held => 0,
        ReservationStatus::Committed => 1,
        ReservationStatus::Released => 2,
        ReservationStatus::Expired => 3,
    }
}

fn status_of(code: i16) -> ReservationStatus {
    match code {
        0 => ReservationStatus::Held,
        1 => ReservationStatus::Committed,
        2 => ReservationStatus::Released,
        _ => ReservationStatus::Expired,
    }
}

const COLUMNS: &str =
    "r.key, r.id, r.path_id, r.content, r.created_at, r.expires_at, r.on_expiry, r.status, r.holds,
    r.over_hold, r.late, r.reason, r.settled_at, r.call_content, r.call_events";

fn read(row: &PgRow) -> Result<Reservation, StoreError> {
    let key: Uuid = row.try_get("key")?;
    let id: Option<String> = row.try_get("id")?;
    let Json(holds): Json<Vec<StoredHold>> = row.try_get("holds")?;
    let on_expiry: i16 = row.try_get("on_expiry")?;
    let content: Option<Uuid> = row.try_get("call_content")?;
    let last_call = match content {
        None => None,
        Some(content) => Some(LastCall {
            content,
            events: row.try_get::<Option<Vec<Uuid>>, _>("call_events")?.unwrap_or_default(),
        }),
    };
    Ok(Reservation {
        key,
        id: id.unwrap_or_else(|| key.to_string()),
        path_id: row.try_get("path_id")?,
        content: row.try_get("content")?,
        created_at: row.try_get("created_at")?,
        expires_at: row.try_get("expires_at")?,
        on_expiry: on_expiry_of(on_expiry),
        status: status_of(row.try_get("status")?),
        holds: holds.into_iter().map(StoredHold::read).collect::<Result<_, _>>()?,
        over_hold: row.try_get("over_hold")?,
        late: row.try_get("late")?,
        reason: row.try_get("reason")?,
        settled_at: row.try_get("settled_at")?,
        last_call,
    })
}

/// Locks the existing reservations in the order of their keys.
pub async fn lock(scope: &mut Scope<'_>, keys: &[Uuid]) -> Result<Vec<Reservation>, StoreError> {
    let sql = format!(
        "select {COLUMNS} from reservations r where r.environment = $1 and r.key = any($2)
         order by r.key for no key update"
    );
    let rows = sqlx::query(sqlx::AssertSqlSafe(sql))
        .bind(scope.environment.code())
        .bind(keys)
        .fetch_all(&mut *scope.connection)
        .await?;
    rows.iter().map(read).collect()
}

pub async fn find(scope: &mut Scope<'_>, key: Uuid) -> Result<Option<Reservation>, StoreError> {
    let sql = format!("select {COLUMNS} from reservations r where r.environment = $1 and r.key = $2");
    let row = sqlx::query(sqlx::AssertSqlSafe(sql))
        .bind(scope.environment.code())
        .bind(key)
        .fetch_optional(&mut *scope.connection)
        .await?;
    row.as_ref().map(read).transpose()
}

/// Returns whether any of the keys is taken.
pub async fn exist(scope: &mut Scope<'_>, keys: &[Uuid]) -> Result<bool, StoreError> {
    let found = sqlx::query_scalar(
        "select exists (select from reservations where environment = $1 and key = any($2))",
    )
    .bind(scope.environment.code())
    .bind(keys)
    .fetch_one(&mut *scope.connection)
    .await?;
    Ok(found)
}

/// Returns whether any reservation ever held a meter. The result is exact only while no other transaction
/// reserves.
pub async fn has_meter(scope: &mut Scope<'_>, meter: &MeterKey) -> Result<bool, StoreError> {
    let found = sqlx::query_scalar(
        "select exists (select from reservations
                        where environment = $1 and holds @> jsonb_build_array(jsonb_build_object('meter', $2::text)))",
    )
    .bind(scope.environment.code())
    .bind(meter.as_str())
    .fetch_one(&mut *scope.connection)
    .await?;
    Ok(found)
}

/// Returns the open reservations on some paths with a creation time in the given span.
pub async fn open_on_paths(
    connection: &mut PgConnection,
    paths: &[i64],
    from: Timestamp,
    to: Timestamp,
) -> Result<Vec<Reservation>, StoreError> {
    let sql = format!(
        "select {COLUMNS} from reservations r
         where r.path_id = any($1) and r.status = 0 and r.created_at >= $2 and r.created_at < $3"
    );
    let rows =
        sqlx::query(sqlx::AssertSqlSafe(sql)).bind(paths).bind(from).bind(to).fetch_all(connection).await?;
    rows.iter().map(read).collect()
}

/// Returns the keys of some open reservations that are due to expire.
pub async fn due(scope: &mut Scope<'_>, now: Timestamp, limit: i64) -> Result<Vec<Uuid>, StoreError> {
    let keys = sqlx::query_scalar(
        "(select key from reservations where environment = $1 and status = 0 and on_expiry = 1 and expires_at <= $2
          order by expires_at limit $3)
         union all
         (select key from reservations where environment = $1 and status = 0 and on_expiry = 0 and expires_at <= $2
          order by expires_at limit $3)
         limit $3",
    )
    .bind(scope.environment.code())
    .bind(now)
    .bind(limit)
    .fetch_all(&mut *scope.connection)
    .await?;
    Ok(keys)
}

/// Returns whether an expired reservation is charged at its expiry and the charge is not written yet.
pub async fn has_due_charges(scope: &mut Scope<'_>, now: Timestamp) -> Result<bool, StoreError> {
    let found = sqlx::query_scalar(
        "select exists (select from reservations
                        where environment = $1 and status = 0 and on_expiry = 1 and expires_at <= $2)",
    )
    .bind(scope.environment.code())
    .bind(now)
    .fetch_one(&mut *scope.connection)
    .await?;
    Ok(found)
}

/// The changeable columns of a reservation.
pub(crate) struct EncodedReservation<'a> {
    reservation: &'a Reservation,
    holds: String,
    /// The ids in one text, since PostgreSQL cannot nest arrays of different lengths.
    call_events: Option<String>,
}

impl<'a> EncodedReservation<'a> {
    pub(crate) fn of(reservation: &'a Reservation) -> Self {
        let call_events = reservation.last_call.as_ref().map(|last| {
            let ids: Vec<String> = last.events.iter().map(Uuid::to_string).collect();
            ids.join(" ")
        });
        Self { reservation, holds: kept(&reservation.holds), call_events }
    }
}

pub(crate) struct StateColumns<'a> {
    pub(crate) expires_at: Vec<Timestamp>,
    pub(crate) status: Vec<i16>,
    pub(crate) holds: Vec<&'a str>,
    pub(crate) over_hold: Vec<bool>,
    pub(crate) late: Vec<bool>,
    pub(crate) reason: Vec<Option<&'a str>>,
    pub(crate) settled_at: Vec<Option<Timestamp>>,
    pub(crate) call_content: Vec<Option<Uuid>>,
    pub(crate) call_events: Vec<Option<&'a str>>,
}

impl<'a> StateColumns<'a> {
    pub(crate) fn of(states: &'a [EncodedReservation<'a>]) -> Self {
        let reservations = || states.iter().map(|state| state.reservation);
        let last = || reservations().map(|r| r.last_call.as_ref());
        Self {
            expires_at: reservations().map(|r| r.expires_at).collect(),
            status: reservations().map(|r| status_code(r.status)).collect(),
            holds: states.iter().map(|state| state.holds.as_str()).collect(),
            over_hold: reservations().map(|r| r.over_hold).collect(),
            late: reservations().map(|r| r.late).collect(),
            reason: reservations().map(|r| r.reason.as_deref()).collect(),
            settled_at: reservations().map(|r| r.settled_at).collect(),
            call_content: last().map(|last| last.map(|last| last.content)).collect(),
            call_events: states.iter().map(|state| state.call_events.as_deref()).collect(),
        }
    }
}

/// The last reservation of the previous page, in descending order of time.
#[derive(Debug, Clone, Copy)]
pub struct ReservationCursor {
    pub created_at: Timestamp,
    pub key: Uuid,
}

/// The request of a page of reservations.
#[derive(Debug, Clone)]
pub struct PageOf {
    /// The paths to list; none lists all paths.
    pub paths: Option<Vec<i64>>,
    /// The present status, which includes an expiry that is due but not written.
    pub status: Option<ReservationStatus>,
    pub after: Option<ReservationCursor>,
    pub limit: u32,
}

/// Lists reservations, latest first.
pub async fn list(
    scope: &mut Scope<'_>,
    page: &PageOf,
    now: Timestamp,
) -> Result<Vec<Reservation>, StoreError> {
    let PageOf { paths, status, after, limit } = page;
    let mut sql = QueryBuilder::<Postgres>::new(format!("select {COLUMNS} from reservations r where "));
    sql.push("r.environment = ").push_bind(scope.environment.code());
    push_paths(&mut sql, "r.path_id", paths.as_deref());
    if let Some(status) = status {
        // A due expiry counts even before it is written.
        match status {
            ReservationStatus::Held => sql.push(" and r.status = 0 and r.expires_at > ").push_bind(now),
            ReservationStatus::Released => sql.push(" and r.status = 2"),
            ReservationStatus::Committed => sql
                .push(" and (r.status = 1 or r.status = 0 and r.on_expiry = 1 and r.expires_at <= ")
                .push_bind(now)
                .push(")"),
            ReservationStatus::Expired => sql
                .push(" and (r.status = 3 or r.status = 0 and r.on_expiry = 0 and r.expires_at <= ")
                .push_bind(now)
                .push(")"),
        };
    }
    if let Some(after) = after {
        sql.push(" and (r.created_at, r.key) < (").push_bind(after.created_at);
        sql.push(", ").push_bind(after.key).push(")");
    }
    sql.push(" order by r.created_at desc, r.key desc limit ").push_bind(i64::from(*limit));
    let rows = sql.build().persistent(false).fetch_all(&mut *scope.connection).await?;
    rows.iter().map(read).collect()
}
