//! Reading usage in a snapshot: from rollups where it can be, from events where it must.

use std::collections::{BTreeMap, HashMap};

use sqlx::PgConnection;

use super::EngineError;
use crate::domain::environment::Environment;
use crate::domain::meter::StoredMeter;
use crate::domain::timestamp::Timestamp;
use crate::domain::top::Ranks;
use crate::domain::usage::{Found, Group, Reading, Rollups, UsageQuery, UsageRow, rows};
use crate::domain::window::Span;
use crate::store;
use crate::store::usage::{Question, Tail};

/// The rows that answer a question.
pub(super) async fn answer(
    snapshot: &mut PgConnection,
    environment: Environment,
    stored: &StoredMeter,
    query: &UsageQuery,
) -> Result<Vec<UsageRow>, EngineError> {
    let paths = if query.subjects.is_empty() {
        None
    } else {
        let names: Vec<String> = query.subjects.iter().map(ToString::to_string).collect();
        Some(store::subjects::path_ids(snapshot, environment, &names, query.descendants).await?)
    };
    answer_on(snapshot, environment, stored, query, paths.as_deref()).await
}

/// The same for usage on some paths; none for all.
pub(super) async fn answer_on(
    snapshot: &mut PgConnection,
    environment: Environment,
    stored: &StoredMeter,
    query: &UsageQuery,
    paths: Option<&[i64]>,
) -> Result<Vec<UsageRow>, EngineError> {
    let bounds = query.bounds()?;
    let ground = Ground::read(snapshot, environment, query.span, Some(stored)).await?;
    let question = Question { stored, query, paths, holders: None, bounds: &bounds, is_usual: false };
    let found = ground.found(snapshot, environment, &question).await?;
    Ok(rows(query, stored.meter.aggregation, &bounds, found)?)
}

/// What a snapshot has to know of rollups before it trusts them: where they are not what the events
/// say, and what is not in them yet.
#[derive(Debug, Default)]
pub(super) struct Ground {
    gaps: HashMap<i32, Vec<Span>>,
    days_until: HashMap<i32, Timestamp>,
    tails: HashMap<i32, Tail>,
}

impl Ground {
    /// Of a meter, or of all.
    pub(super) async fn read(
        snapshot: &mut PgConnection,
        environment: Environment,
        span: Span,
        meter: Option<&StoredMeter>,
    ) -> Result<Self, EngineError> {
        let (id, name) = (meter.map(|stored| stored.id), meter.map(|stored| stored.event_name_id));
        let gaps = store::usage::gaps(snapshot, environment, id, span).await?;
        let tails = store::usage::tails(snapshot, environment, name, span).await?;
        let days_until = store::days::until(snapshot, environment).await?;
        Ok(Self { gaps, days_until, tails })
    }

    /// Whether all that a meter counted is in its rollups.
    pub(super) fn is_folded(&self, stored: &StoredMeter) -> bool {
        !self.gaps.contains_key(&stored.id) && !self.tails.contains_key(&stored.event_name_id)
    }

    /// What a question finds between its bounds, by their number, and group.
    pub(super) async fn found(
        &self,
        snapshot: &mut PgConnection,
        environment: Environment,
        question: &Question<'_>,
    ) -> Result<BTreeMap<(usize, Group), Found>, EngineError> {
        if question.paths.is_some_and(<[i64]>::is_empty) {
            return Ok(BTreeMap::new());
        }
        let (reading, tail) = self.reading(question);
        Ok(store::usage::find(snapshot, environment, question, &reading, tail).await?)
    }

    /// Some ranks of the subjects that a question finds between two bounds, the most first, and one more
    /// where there are more.
    pub(super) async fn top(
        &self,
        snapshot: &mut PgConnection,
        environment: Environment,
        question: &Question<'_>,
        ranks: Ranks,
    ) -> Result<Vec<(String, Found)>, EngineError> {
        let (reading, tail) = self.reading(question);
        Ok(store::usage::top(snapshot, environment, question, (&reading, tail), ranks).await?)
    }

    fn reading(&self, question: &Question<'_>) -> (Reading, Option<&Tail>) {
        let Question { stored, query, bounds, .. } = *question;
        let gaps = self.gaps.get(&stored.id).map_or(&[][..], Vec::as_slice);
        let rollups = Rollups { gaps, days_until: self.days_until.get(&stored.id).copied() };
        let reading = Reading::plan(query.span, &query.edges(bounds), rollups);
        (reading, self.tails.get(&stored.event_name_id))
    }
}

/// Whether a `unique_count` meter has counted a member already, within a question.
pub(super) async fn has_member(
    snapshot: &mut PgConnection,
    environment: Environment,
    stored: &StoredMeter,
    query: &UsageQuery,
    member: &str,
) -> Result<bool, EngineError> {
    let names: Vec<String> = query.subjects.iter().map(ToString::to_string).collect();
    let paths = store::subjects::path_ids(snapshot, environment, &names, query.descendants).await?;
    Ok(store::usage::has_member(snapshot, environment, stored, query, &paths, member).await?)
}
