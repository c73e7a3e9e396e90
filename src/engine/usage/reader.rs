//! Reading usage in a snapshot: from rollups where it can be, from events where it must.

use sqlx::PgConnection;

use crate::engine::EngineError;
use crate::store;
use crate::store::usage::{AggregatesByGroup, MeterQuery, PlannedQuery};
use metergate_domain::base::environment::Environment;
use metergate_domain::base::window::Span;
use metergate_domain::catalog::meter::StoredMeter;
use metergate_domain::usage::query::{Aggregate, UsageQuery, UsageRow, rows};
use metergate_domain::usage::ranking::RankPageRequest;
use metergate_domain::usage::read_plan::{Reading, Rollups};

/// Questions that one statement asks.
const QUERIES_TOGETHER_MAX: usize = 16;

/// The rows that answer a question.
pub(crate) async fn answer(
    snapshot: &mut PgConnection,
    environment: Environment,
    stored: &StoredMeter,
    query: &UsageQuery,
) -> Result<Vec<UsageRow>, EngineError> {
    let paths = if query.subjects.is_empty() {
        None
    } else {
        let names: Vec<String> = query.subjects.iter().map(ToString::to_string).collect();
        Some(store::subjects::subject::path_ids(snapshot, environment, &names, query.descendants).await?)
    };
    answer_on(snapshot, environment, stored, query, paths.as_deref()).await
}

/// The same for usage on some paths; none for all.
pub(crate) async fn answer_on(
    snapshot: &mut PgConnection,
    environment: Environment,
    stored: &StoredMeter,
    query: &UsageQuery,
    paths: Option<&[i64]>,
) -> Result<Vec<UsageRow>, EngineError> {
    let bounds = query.bounds()?;
    let rollup_coverage = ReadCoverage::read(snapshot, environment, query.span, Some(stored)).await?;
    let meter_query = MeterQuery { stored, query, paths, holders: None, bounds: &bounds, is_usual: false };
    let found = rollup_coverage.found(snapshot, environment, &meter_query).await?;
    Ok(rows(query, stored.meter.aggregation, &bounds, found)?)
}

/// How a snapshot reads: what it has to know of rollups before it trusts them.
#[derive(Debug, Default)]
pub(crate) struct ReadCoverage(store::usage::RollupCoverage);

impl ReadCoverage {
    /// Of a meter, or of all.
    pub(crate) async fn read(
        snapshot: &mut PgConnection,
        environment: Environment,
        span: Span,
        meter: Option<&StoredMeter>,
    ) -> Result<Self, EngineError> {
        Ok(Self(store::usage::rollup_coverage(snapshot, environment, meter, span).await?))
    }

    /// Whether all that a meter counted is in its rollups.
    pub(crate) fn is_folded(&self, stored: &StoredMeter) -> bool {
        !self.0.gaps.contains_key(&stored.id) && !self.0.tails.contains_key(&stored.event_name_id)
    }

    /// What a question finds between its bounds, by their number, and group.
    pub(crate) async fn found(
        &self,
        snapshot: &mut PgConnection,
        environment: Environment,
        meter_query: &MeterQuery<'_>,
    ) -> Result<AggregatesByGroup, EngineError> {
        let meter_query = std::slice::from_ref(meter_query);
        Ok(self.found_of_each(snapshot, environment, meter_query).await?.pop().unwrap_or_default())
    }

    /// The same of several questions, which have the same groups, in their order.
    pub(crate) async fn found_of_each(
        &self,
        snapshot: &mut PgConnection,
        environment: Environment,
        meter_queries: &[MeterQuery<'_>],
    ) -> Result<Vec<AggregatesByGroup>, EngineError> {
        let mut answers = Vec::new();
        for meter_queries in meter_queries.chunks(QUERIES_TOGETHER_MAX) {
            let asked: Vec<PlannedQuery<'_>> =
                meter_queries.iter().map(|meter_query| self.asked(meter_query)).collect();
            answers.extend(store::usage::find(snapshot, environment, &asked).await?);
        }
        Ok(answers)
    }

    /// Some ranks of the subjects that a question finds between two bounds, the most first, and one more
    /// where there are more.
    pub(crate) async fn ranking(
        &self,
        snapshot: &mut PgConnection,
        environment: Environment,
        meter_query: &MeterQuery<'_>,
        ranks: RankPageRequest,
    ) -> Result<Vec<(String, Aggregate)>, EngineError> {
        Ok(store::usage::top(snapshot, environment, &self.asked(meter_query), ranks).await?)
    }

    fn asked<'a>(&'a self, meter_query: &'a MeterQuery<'_>) -> PlannedQuery<'a> {
        let MeterQuery { stored, query, bounds, .. } = *meter_query;
        let gaps = self.0.gaps.get(&stored.id).map_or(&[][..], Vec::as_slice);
        let rollups = Rollups {
            gaps,
            days_until: self.0.days_until.get(&stored.id).copied(),
            subtract: !stored.meter.aggregation.is_order_statistic(),
        };
        let reading = Reading::plan(query.span, &query.edges(bounds), rollups);
        PlannedQuery { meter_query, reading, tail: self.0.tails.get(&stored.event_name_id) }
    }
}

/// Whether a `unique_count` meter has counted a member already, within a question.
pub(crate) async fn has_member(
    snapshot: &mut PgConnection,
    environment: Environment,
    stored: &StoredMeter,
    query: &UsageQuery,
    member: &str,
) -> Result<bool, EngineError> {
    let names: Vec<String> = query.subjects.iter().map(ToString::to_string).collect();
    let paths = store::subjects::subject::path_ids(snapshot, environment, &names, query.descendants).await?;
    Ok(store::usage::has_member(snapshot, environment, stored, query, &paths, member).await?)
}
