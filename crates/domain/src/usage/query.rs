//! Usage queries: the meter, range and groups of a read, and the layout of its rows.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::base::fields::{Parsed, Violation};
use crate::base::limits::{USAGE_ROWS_MAX, USAGE_WINDOWS_MAX};
use crate::base::names::{MeterKey, SubjectId};
use crate::base::quantity::{Quantity, Total};
use crate::base::timestamp::Timestamp;
use crate::base::window::{Span, Window, Zone};
use crate::catalog::meter::Aggregation;

/// The subjects that the rows of an answer show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GroupBySubject {
    /// One row for all subjects together.
    All,
    EachSubject,
    /// One row per path, with the path's number as the subject. Only internal queries use it.
    EachPath,
}

/// The subjects of a query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subjects {
    All,
    Listed(SubjectNames),
}

/// Subject names, at least one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubjectNames(Vec<String>);

impl Subjects {
    pub fn one(name: impl Into<String>) -> Self {
        Self::Listed(SubjectNames(vec![name.into()]))
    }

    /// Lists subjects. Returns none for an empty list, because it must not select all subjects.
    pub fn listed(subjects: Vec<SubjectId>) -> Option<Self> {
        let names: Vec<String> = subjects.into_iter().map(SubjectId::into_string).collect();
        (!names.is_empty()).then_some(Self::Listed(SubjectNames(names)))
    }
}

impl SubjectNames {
    pub fn as_slice(&self) -> &[String] {
        &self.0
    }
}

/// A query of a meter over a range.
#[derive(Debug, Clone)]
pub struct UsageQuery {
    pub meter: MeterKey,
    pub span: Span,
    pub window: Option<Window>,
    pub zone: Zone,
    pub subjects: Subjects,
    pub descendants: bool,
    pub whose: GroupBySubject,
    /// Dimensions of the meter.
    pub group_by: Vec<String>,
    /// The accepted values by dimension.
    pub filter: BTreeMap<String, Vec<String>>,
    /// The slices that rows are split into, in addition to the groups. Empty if rows are not split.
    pub slices: Vec<UsageSlice>,
    /// True if `sum` contains the number of members that no earlier window has. Only for `unique_count`.
    pub tells_new: bool,
    pub fill: bool,
}

/// A part of a meter's usage. Of several slices, the first that accepts an event takes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UsageSlice {
    /// The accepted values by dimension.
    pub filter: BTreeMap<String, Vec<String>>,
    /// Accepts only events since this time; none has no lower bound.
    pub from: Option<Timestamp>,
    /// Accepts only events before this time; none has no upper bound.
    pub to: Option<Timestamp>,
}

impl UsageSlice {
    /// Returns the part of a range in which the slice accepts events.
    #[must_use]
    pub fn within(&self, span: Span) -> Span {
        let own = Span { from: self.from.unwrap_or(Timestamp::MIN), to: self.to.unwrap_or(Timestamp::MAX) };
        span.intersect(own)
    }
}

impl UsageQuery {
    /// Creates an internal query of all usage of a meter in a range, as one row.
    pub fn internal(meter: &MeterKey, span: Span) -> Self {
        Self {
            meter: meter.clone(),
            span,
            window: None,
            zone: Zone::default(),
            subjects: Subjects::All,
            descendants: false,
            whose: GroupBySubject::All,
            group_by: Vec::new(),
            filter: BTreeMap::new(),
            slices: Vec::new(),
            tells_new: false,
            fill: false,
        }
    }

    /// Returns the natural bounds of the query's windows, or the range itself without windows.
    pub fn bounds(&self) -> Parsed<Vec<Timestamp>> {
        match self.window {
            None => Ok(vec![self.span.from, self.span.to]),
            Some(window) => window.bounds(self.span, &self.zone, USAGE_WINDOWS_MAX),
        }
    }

    /// Returns the bounds, and the start and end times of slices between them. Within one of these
    /// parts, no hour needs to be split.
    pub fn edges(&self, bounds: &[Timestamp]) -> Vec<Timestamp> {
        let mut edges = bounds.to_vec();
        let turns = self.slices.iter().flat_map(|slice| [slice.from, slice.to]).flatten();
        edges.extend(turns.filter(|turn| self.span.contains(*turn)));
        edges.sort_unstable();
        edges.dedup();
        edges
    }
}

/// The values of one window and group, from which every aggregation is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Aggregate {
    /// The number of contributing events without voided ones.
    pub count: i64,
    pub sum: Option<Total>,
    /// The least, greatest or last value, as the meter requires; the number of members for
    /// `unique_count`.
    pub picked: Option<Total>,
}

impl Aggregate {
    /// Returns the value of an aggregation. Without events, some aggregations have the value zero.
    pub fn value(&self, aggregation: Aggregation) -> Option<Total> {
        let found = match aggregation {
            Aggregation::Sum | Aggregation::Count => self.sum,
            Aggregation::Avg => self.sum.and_then(|sum| sum.average_of(self.count)),
            Aggregation::Min | Aggregation::Max | Aggregation::Last | Aggregation::UniqueCount => self.picked,
        };
        found.or(aggregation.of_nothing())
    }

    /// Combines with the values of a later window. Only new members of the later window count.
    #[must_use]
    pub fn with_later(&self, later: &Self, aggregation: Aggregation) -> Self {
        let sum = match (self.sum, later.sum) {
            (Some(sum), Some(more)) => Some(sum + more),
            (sum, more) => sum.or(more),
        };
        let picked = match aggregation {
            Aggregation::Min => [self.picked, later.picked].into_iter().flatten().min(),
            Aggregation::Max => self.picked.max(later.picked),
            Aggregation::UniqueCount => sum.or(later.picked),
            _ => later.picked.or(self.picked),
        };
        Self { count: self.count + later.count, sum, picked }
    }
}

/// The state of usage relative to a quota. The thresholds are those of `MakerKit`'s usage bar.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum UsageState {
    Ok,
    Warning,
    Critical,
    Exceeded,
}

const WARNING_PERCENT: i128 = 75;
const CRITICAL_PERCENT: i128 = 90;

impl UsageState {
    /// Returns the state for a quota; a limit without a quota is unlimited.
    pub fn of(used: Total, quota: Option<Quantity>) -> Self {
        let Some(quota) = quota else { return Self::Ok };
        let reaches = |percent: i128| {
            // quotas have 94 bits, so a hundred times a quota fits
            used.nanos() >= quota.nanos() / 100 * percent + (quota.nanos() % 100 * percent + 99) / 100
        };
        if quota.is_zero() || reaches(100) {
            Self::Exceeded
        } else if reaches(CRITICAL_PERCENT) {
            Self::Critical
        } else if reaches(WARNING_PERCENT) {
            Self::Warning
        } else {
            Self::Ok
        }
    }
}

/// Returns the used percentage of a quota with two decimal places, rounded half away from zero.
/// Returns none for an unlimited quota, and 100 for a quota of zero.
pub fn percent(used: Total, quota: Option<Quantity>) -> Option<Total> {
    let quota = quota?;
    if quota.is_zero() {
        return Some(Total::from(100));
    }
    let (used, quota) = (used.nanos(), quota.nanos());
    // computed in hundredths of a percent, without exceeding 128 bits
    let (whole, rest) = (used / quota, used % quota);
    let (scaled, part) = (rest.checked_mul(10_000)?, quota);
    let away = if (scaled % part).abs() * 2 >= part { scaled.signum() } else { 0 };
    let hundredths = whole.saturating_mul(10_000).saturating_add(scaled / part + away);
    Some(Total::from_nanos(hundredths.saturating_mul(10_000_000)))
}

/// The group of a row within its window.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Group {
    pub subject: Option<String>,
    /// Values in the order of `group_by`; none if the event has no such property.
    pub dimensions: Vec<Option<String>>,
    /// The index of the slice that took the usage; none if no slice did.
    pub slice: Option<usize>,
}

/// One row of an answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct UsageRow {
    pub window_start: Timestamp,
    pub window_end: Timestamp,
    pub subject: Option<String>,
    pub group: BTreeMap<String, Option<String>>,
    pub value: Option<Total>,
    pub event_count: i64,
}

/// Lays out the values by window and then group. Drops groups without usage, unless windows are to be
/// filled. Refuses more rows than an answer may have.
pub fn rows(
    query: &UsageQuery,
    aggregation: Aggregation,
    bounds: &[Timestamp],
    found: BTreeMap<(usize, Group), Aggregate>,
) -> Parsed<Vec<UsageRow>> {
    let mut found: BTreeMap<(usize, Group), Aggregate> =
        found.into_iter().filter(|(_, found)| found.count != 0).collect();
    let ungrouped = query.group_by.is_empty() && query.whose == GroupBySubject::All;
    if ungrouped && query.window.is_none() {
        found.entry((0, Group::default())).or_default();
    } else if query.fill {
        let mut groups: Vec<Group> = found.keys().map(|(_, group)| group.clone()).collect();
        groups.sort();
        groups.dedup();
        if ungrouped {
            groups = vec![Group::default()];
        }
        validate_row_count((bounds.len() - 1).saturating_mul(groups.len()))?;
        for index in 0..bounds.len() - 1 {
            for group in &groups {
                found.entry((index, group.clone())).or_default();
            }
        }
    }
    validate_row_count(found.len())?;
    let row = |((index, group), found): ((usize, Group), Aggregate)| UsageRow {
        window_start: bounds[index],
        window_end: bounds[index + 1],
        subject: group.subject,
        group: query.group_by.iter().cloned().zip(group.dimensions).collect(),
        value: found.value(aggregation),
        event_count: found.count,
    };
    Ok(found.into_iter().map(row).collect())
}

fn validate_row_count(rows: usize) -> Parsed<()> {
    if rows > USAGE_ROWS_MAX {
        let detail = format!(
            "the answer must have at most {USAGE_ROWS_MAX} rows; use a shorter range, a longer window or fewer groups"
        );
        return Violation::only("too_many_rows", detail);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::window::utc_month;

    #[test]
    fn an_empty_list_of_subjects_never_selects_all_subjects() {
        assert_eq!(Subjects::listed(Vec::new()), None);
        let ada = SubjectId::parse("ada").unwrap();
        assert_eq!(Subjects::listed(vec![ada]), Some(Subjects::one("ada")));
        let query = UsageQuery::internal(&MeterKey::parse("calls").unwrap(), utc_month(Timestamp::MIN));
        assert_eq!(query.subjects, Subjects::All);
    }

    #[test]
    fn usage_states_change_exactly_at_the_thresholds() {
        let cases = [
            ("74.999", Some("100"), "75", UsageState::Ok),
            ("75", Some("100"), "75", UsageState::Warning),
            ("0.000000003", Some("0.000000004"), "75", UsageState::Warning),
            ("89.995", Some("100"), "90", UsageState::Warning),
            ("90", Some("100"), "90", UsageState::Critical),
            ("99.999999999", Some("100"), "100", UsageState::Critical),
            ("100", Some("100"), "100", UsageState::Exceeded),
            ("2", Some("3"), "66.67", UsageState::Ok),
            ("450", Some("300"), "150", UsageState::Exceeded),
            ("-5", Some("100"), "-5", UsageState::Ok),
            ("0", Some("0"), "100", UsageState::Exceeded),
            ("9999999999999999999", Some("9999999999999999999.999999999"), "100", UsageState::Critical),
            ("7", None, "", UsageState::Ok),
        ];
        for (used, quota, expected, state) in cases {
            let used = Total::from_decimal(used).unwrap();
            let quota = quota.map(|quota| Quantity::from_decimal(quota).unwrap());
            let shown = percent(used, quota).map(|percent| percent.to_string()).unwrap_or_default();
            assert_eq!((shown.as_str(), UsageState::of(used, quota)), (expected, state), "{used} {quota:?}");
        }
    }
}
