//! Subjects, their tree, and their customers.

use std::collections::HashMap;

use serde_json::{Map, Value};
use sqlx::types::Json;
use sqlx::{FromRow, PgConnection, Row};

use crate::store::StoreError;
use crate::store::scope::Scope;
use metergate_domain::base::Timestamp;
use metergate_domain::base::names::SubjectId;
use metergate_domain::gate::{Path, PathSubject};

#[derive(Debug, Clone, FromRow)]
pub struct SubjectRow {
    pub id: i64,
    pub subject: String,
    pub parent: Option<String>,
    /// The names of the subject and its ancestors, nearest first.
    pub path: Vec<String>,
    pub stripe_customer_id: Option<String>,
    #[sqlx(json)]
    pub metadata: Map<String, Value>,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

/// A selection of paths.
#[derive(Debug, Clone, Copy)]
pub enum Which<'a> {
    /// The current paths of existing subjects, by name.
    Of(&'a [String]),
    /// Paths, by number.
    Ids(&'a [i64]),
}

/// Reads paths with all their subjects, the subjects' current subscriptions, and the nearest customer.
pub async fn paths(scope: &mut Scope<'_>, which: Which<'_>) -> Result<Vec<Path>, StoreError> {
    let (names, ids) = match which {
        Which::Of(names) => (names, &[][..]),
        Which::Ids(ids) => (&[][..], ids),
    };
    let chosen = match which {
        Which::Of(_) => "p.id in (select path_id from subjects where environment = $1 and subject = any($2))",
        Which::Ids(_) => "p.environment = $1 and p.id = any($3)",
    };
    let sql = format!(
        "select p.id as path_id, m.id as member_id, m.subject, m.customer_id, m.moved_at,
                m.path_id as standing_id, p.ancestors[level.n::int:] = own.ancestors as stands_here,
                (select jsonb_agg(jsonb_build_object('cap', c.cap, 'since', c.since) order by c.key)
                 from spend_caps c where c.subject_id = m.id) as caps, {}
         from paths p
         cross join unnest(p.ancestors) with ordinality as level (id, n)
         join subjects m on m.id = level.id
         join paths own on own.id = m.path_id
         left join subscriptions sub on sub.subject_id = m.id
         where {chosen} and $3::bigint[] is not null and $2::text[] is not null
         order by p.id, level.n",
        super::subscriptions::COLUMNS
    );
    let rows = sqlx::query(sqlx::AssertSqlSafe(sql))
        .bind(scope.environment.code())
        .bind(names)
        .bind(ids)
        .fetch_all(&mut *scope.connection)
        .await?;
    let mut paths: Vec<Path> = Vec::new();
    let mut elsewhere: Vec<(usize, usize, i64)> = Vec::new();
    for row in &rows {
        let id: i64 = row.try_get("path_id")?;
        if paths.last().is_none_or(|path| path.id != id) {
            paths.push(Path { id, customer_id: None, members: Vec::new() });
        }
        let number = paths.len().saturating_sub(1);
        let Some(path) = paths.last_mut() else { continue };
        path.customer_id = path.customer_id.or(row.try_get("customer_id")?);
        if !row.try_get::<bool, _>("stands_here")? {
            elsewhere.push((number, path.members.len(), row.try_get("standing_id")?));
        }
        path.members.push(PathSubject {
            subject_id: row.try_get("member_id")?,
            subject: subject(row.try_get("subject")?)?,
            subscription: super::subscriptions::read(row)?,
            caps: crate::store::pricing::spend_caps::read(row.try_get("caps")?)?,
            moved_at: row.try_get("moved_at")?,
            current_ancestors: None,
        });
    }
    if !elsewhere.is_empty() {
        // old paths, with usage recorded before a subject moved
        let ids: Vec<i64> = elsewhere.iter().map(|(_, _, id)| *id).collect();
        let standing = Box::pin(self::paths(scope, Which::Ids(&ids))).await?;
        for (number, index, id) in elsewhere {
            let chain = standing.iter().find(|path| path.id == id).map(|path| path.members.clone());
            if let Some(member) = paths.get_mut(number).and_then(|path| path.members.get_mut(index)) {
                member.current_ancestors = chain.map(Vec::into_boxed_slice);
            }
        }
    }
    for path in &mut paths {
        // hundreds of thousands of paths stay in memory, and most have one member
        path.members.shrink_to_fit();
    }
    Ok(paths)
}

/// Parses a stored name.
pub fn subject(name: String) -> Result<SubjectId, StoreError> {
    SubjectId::parse(name).map_err(|why| StoreError::Refused(sqlx::Error::Decode(why.into())))
}

/// Creates unknown subjects as roots, and returns their ids. `names` must ascend, so that concurrent
/// transactions wait for each other in one order.
pub async fn insert_missing(scope: &mut Scope<'_>, names: &[String]) -> Result<Vec<i64>, StoreError> {
    let made = sqlx::query_scalar(
        "with fresh as (
             insert into subjects (environment, subject, id, path_id)
             select $1, name, id, id
             from (select name, nextval('subject_ids') as id from unnest($2::text[]) name) made
             on conflict on constraint subjects_subject do nothing
             returning id)
         insert into paths (id, environment, subject_id, ancestors) select id, $1, id, array[id] from fresh
         returning id",
    )
    .bind(scope.environment.code())
    .bind(names)
    .fetch_all(&mut *scope.connection)
    .await?;
    Ok(made)
}

const SELECT: &str =
    "select s.id, s.subject, parent.subject as parent, c.stripe_customer_id, s.metadata, s.created_at,
        s.updated_at, array(
            select a.subject from paths p, unnest(p.ancestors) with ordinality as level (id, n)
            join subjects a on a.id = level.id where p.id = s.path_id order by level.n) as path
     from subjects s
     left join subjects parent on parent.id = s.parent_id
     left join customers c on c.id = s.customer_id
     where s.environment = $1";

pub async fn find(scope: &mut Scope<'_>, name: &str) -> Result<Option<SubjectRow>, StoreError> {
    let sql = sqlx::AssertSqlSafe(format!("{SELECT} and s.subject = $2"));
    Ok(sqlx::query_as(sql)
        .bind(scope.environment.code())
        .bind(name)
        .fetch_optional(&mut *scope.connection)
        .await?)
}

/// Returns a page of subjects in the order of creation, after the id `after`. With `parent`, returns
/// only its children.
pub async fn list(
    scope: &mut Scope<'_>,
    parent: Option<&str>,
    after: i64,
    limit: u32,
) -> Result<Vec<SubjectRow>, StoreError> {
    let sql = format!(
        "{SELECT} and s.id > $2 and ($3::text is null or parent.subject = $3) order by s.id limit $4"
    );
    let rows = sqlx::query_as(sqlx::AssertSqlSafe(sql))
        .bind(scope.environment.code())
        .bind(after)
        .bind(parent)
        .bind(i64::from(limit))
        .fetch_all(&mut *scope.connection)
        .await?;
    Ok(rows)
}

/// Returns the number of levels of a subject's subtree, including its root, and whether `other` lies in
/// it.
pub async fn subtree(
    connection: &mut PgConnection,
    subject_id: i64,
    other: i64,
) -> Result<(usize, bool), StoreError> {
    let (height, is_below): (i32, bool) = sqlx::query_as(
        "with recursive below (id, level) as (
             select $1::bigint, 1
             union all
             select s.id, b.level + 1 from below b join subjects s on s.parent_id = b.id)
         select max(level) as height, bool_or(id = $2) as is_below from below",
    )
    .bind(subject_id)
    .bind(other)
    .fetch_one(connection)
    .await?;
    Ok((usize::try_from(height).unwrap_or(usize::MAX), is_below))
}

/// Moves a subject, and writes new paths for its subtree. Old paths stay for the usage recorded under
/// them. The caller holds the configuration lock.
pub async fn set_parent(
    scope: &mut Scope<'_>,
    subject_id: i64,
    parent_id: Option<i64>,
    now: Timestamp,
) -> Result<(), StoreError> {
    sqlx::query("update subjects set parent_id = $2, moved_at = $3, updated_at = now() where id = $1")
        .bind(subject_id)
        .bind(parent_id)
        .bind(now)
        .execute(&mut *scope.connection)
        .await?;
    sqlx::query(
        "with recursive moved (id, ancestors) as (
             select s.id, array[s.id] || coalesce(
                 (select p.ancestors from subjects parent join paths p on p.id = parent.path_id
                  where parent.id = s.parent_id), '{}')
             from subjects s where s.id = $2
             union all
             select s.id, array[s.id] || m.ancestors from moved m join subjects s on s.parent_id = m.id),
         made as (
             insert into paths (id, environment, subject_id, ancestors)
             select nextval('subject_ids'), $1, id, ancestors from moved
             on conflict on constraint paths_ancestors do nothing
             returning id, subject_id),
         standing as (
             select id, subject_id from made
             union all
             select p.id, p.subject_id from moved m
             join paths p on p.environment = $1 and p.ancestors = m.ancestors)
         update subjects s set path_id = standing.id from standing where s.id = standing.subject_id",
    )
    .bind(scope.environment.code())
    .bind(subject_id)
    .execute(&mut *scope.connection)
    .await?;
    Ok(())
}

/// Returns the numbers of a subject and its current ancestors, nearest first.
pub async fn ancestor_ids(connection: &mut PgConnection, subject_id: i64) -> Result<Vec<i64>, StoreError> {
    let found = sqlx::query_scalar(
        "select p.ancestors from subjects s join paths p on p.id = s.path_id where s.id = $1",
    )
    .bind(subject_id)
    .fetch_optional(connection)
    .await?;
    Ok(found.unwrap_or_default())
}

/// Returns the number and the name of the subject that a customer is mapped to.
pub async fn of_mapping(
    scope: &mut Scope<'_>,
    stripe_customer_id: &str,
) -> Result<Option<(i64, String)>, StoreError> {
    let found = sqlx::query_as(
        "select s.id, s.subject from customers c join subjects s on s.customer_id = c.id
         where c.environment = $1 and c.stripe_customer_id = $2",
    )
    .bind(scope.environment.code())
    .bind(stripe_customer_id)
    .fetch_optional(&mut *scope.connection)
    .await?;
    Ok(found)
}

/// Returns the name of a subject.
pub async fn name(connection: &mut PgConnection, subject_id: i64) -> Result<Option<String>, StoreError> {
    let found = sqlx::query_scalar("select subject from subjects where id = $1").bind(subject_id);
    Ok(found.fetch_optional(connection).await?)
}

/// Maps a subject to a customer, or to none. The constraint `subjects_customer` allows one subject per
/// customer.
pub async fn set_customer(
    scope: &mut Scope<'_>,
    subject_id: i64,
    stripe_customer_id: Option<&str>,
    now: Timestamp,
) -> Result<(), StoreError> {
    if let Some(customer) = stripe_customer_id {
        sqlx::query(
            "insert into customers (environment, stripe_customer_id) values ($1, $2)
             on conflict on constraint customers_stripe_customer_id do nothing",
        )
        .bind(scope.environment.code())
        .bind(customer)
        .execute(&mut *scope.connection)
        .await?;
    }
    sqlx::query(
        "update subjects set updated_at = now(), customer_id =
             (select c.id from customers c where c.environment = $2 and c.stripe_customer_id = $3)
         where id = $1",
    )
    .bind(subject_id)
    .bind(scope.environment.code())
    .bind(stripe_customer_id)
    .execute(&mut *scope.connection)
    .await?;
    super::customer_mappings::note(scope.connection, subject_id, now).await
}

/// Returns the number of a customer and the name of its subject.
pub async fn of_customer(
    scope: &mut Scope<'_>,
    stripe_customer_id: &str,
) -> Result<Option<(i64, String)>, StoreError> {
    let found = sqlx::query_as(
        "select c.id, s.subject from customers c join subjects s on s.customer_id = c.id
         where c.environment = $1 and c.stripe_customer_id = $2",
    )
    .bind(scope.environment.code())
    .bind(stripe_customer_id)
    .fetch_optional(&mut *scope.connection)
    .await?;
    Ok(found)
}

pub async fn set_metadata(
    connection: &mut PgConnection,
    subject_id: i64,
    metadata: &Map<String, Value>,
) -> Result<(), StoreError> {
    sqlx::query("update subjects set metadata = $2, updated_at = now() where id = $1")
        .bind(subject_id)
        .bind(Json(metadata))
        .execute(connection)
        .await?;
    Ok(())
}

/// Returns the current and earlier paths through some subjects, each with these subjects.
pub async fn paths_through(
    connection: &mut PgConnection,
    subject_ids: &[i64],
) -> Result<HashMap<i64, Vec<i64>>, StoreError> {
    let rows: Vec<(i64, Vec<i64>)> = sqlx::query_as(
        "select p.id, array(select a.id from unnest(p.ancestors) a (id) where a.id = any($1)) as members
         from paths p where p.ancestors && $1",
    )
    .bind(subject_ids)
    .fetch_all(connection)
    .await?;
    Ok(rows.into_iter().collect())
}

/// Returns whether usage or holds were ever recorded for a subject or for its descendants at the time.
pub async fn has_record(connection: &mut PgConnection, subject_id: i64) -> Result<bool, StoreError> {
    let found = sqlx::query_scalar(
        "select exists (select from paths p
                        where p.ancestors && array[$1]
                          and (exists (select from events e where e.path_id = p.id)
                               or exists (select from reservations r where r.path_id = p.id)))",
    )
    .bind(subject_id)
    .fetch_one(connection)
    .await?;
    Ok(found)
}

/// Returns the names on paths, nearest first, by path number.
pub async fn path_names(
    connection: &mut PgConnection,
    ids: &[i64],
) -> Result<HashMap<i64, Vec<String>>, StoreError> {
    let rows: Vec<(i64, Vec<String>)> = sqlx::query_as(
        "select p.id, array(select a.subject from unnest(p.ancestors) with ordinality as level (id, n)
                            join subjects a on a.id = level.id order by level.n) as names
         from paths p where p.id = any($1)",
    )
    .bind(ids)
    .fetch_all(connection)
    .await?;
    Ok(rows.into_iter().collect())
}

/// Returns the paths under which usage of subjects was recorded. With `descendants`, includes the paths
/// of their descendants at the time.
pub async fn path_ids(
    scope: &mut Scope<'_>,
    names: &[String],
    descendants: bool,
) -> Result<Vec<i64>, StoreError> {
    let of_themselves = "select p.id from paths p join subjects s on s.id = p.subject_id
         where s.environment = $1 and s.subject = any($2)";
    let with_descendants = "select p.id from paths p
         where p.ancestors && array(select id from subjects where environment = $1 and subject = any($2))";
    let ids = sqlx::query_scalar(if descendants { with_descendants } else { of_themselves })
        .bind(scope.environment.code())
        .bind(names)
        .fetch_all(&mut *scope.connection)
        .await?;
    Ok(ids)
}
