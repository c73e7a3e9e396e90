//! Questions about usage: which slices of time can be answered from rollups of days and hours and which
//! need the events themselves, and how the parts make rows.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::base::fields::{Parsed, Violation};
use crate::base::limits::{USAGE_ROWS_MAX, USAGE_WINDOWS_MAX};
use crate::base::names::{MeterKey, SubjectId};
use crate::base::quantity::{Quantity, Total};
use crate::base::timestamp::Timestamp;
use crate::base::window::{Span, Window, Zone};
use crate::catalog::meter::Aggregation;

/// Whose usage a row shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GroupBySubject {
    /// That of all together.
    All,
    EachSubject,
    /// That of each path, whose number stands for the subject: for questions of our own.
    EachPath,
}

/// The subjects whose usage is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subjects {
    All,
    Listed(SubjectNames),
}

/// Names of subjects, at least one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubjectNames(Vec<String>);

impl Subjects {
    pub fn one(name: impl Into<String>) -> Self {
        Self::Listed(SubjectNames(vec![name.into()]))
    }

    /// Lists subjects; none of an empty list, which names nobody.
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

/// A question: a meter over a range.
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
    /// Dimension → values that count.
    pub filter: BTreeMap<String, Vec<String>>,
    /// Kept apart, each by itself, beside the groups; empty: nothing is.
    pub slices: Vec<UsageSlice>,
    /// Of `unique_count`: whether `sum` is to tell how many members no earlier window has seen.
    pub tells_new: bool,
    pub fill: bool,
}

/// A part of what a meter counts. Of several, the first that admits a use takes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UsageSlice {
    /// Dimension → values that count.
    pub filter: BTreeMap<String, Vec<String>>,
    /// Only what happened since then; none: always.
    pub from: Option<Timestamp>,
    /// Only what happened before.
    pub to: Option<Timestamp>,
}

impl UsageSlice {
    /// The part of a range in which it admits anything.
    #[must_use]
    pub fn within(&self, span: Span) -> Span {
        let own = Span { from: self.from.unwrap_or(Timestamp::MIN), to: self.to.unwrap_or(Timestamp::MAX) };
        span.intersect(own)
    }
}

impl UsageQuery {
    /// Asks for all usage of a meter in a range, as one row.
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

    /// The natural bounds of its windows; without a window those of the range itself.
    pub fn bounds(&self) -> Parsed<Vec<Timestamp>> {
        match self.window {
            None => Ok(vec![self.span.from, self.span.to]),
            Some(window) => window.bounds(self.span, &self.zone, USAGE_WINDOWS_MAX),
        }
    }

    /// Bounds, and between them the times at which its slices begin and end: within one of these parts
    /// no hour needs to be told apart.
    pub fn edges(&self, bounds: &[Timestamp]) -> Vec<Timestamp> {
        let mut edges = bounds.to_vec();
        let turns = self.slices.iter().flat_map(|slice| [slice.from, slice.to]).flatten();
        edges.extend(turns.filter(|turn| self.span.contains(*turn)));
        edges.sort_unstable();
        edges.dedup();
        edges
    }
}

/// What was found for one window of one group: the stuff of every aggregation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Aggregate {
    /// Contributing events, those taken back subtracted.
    pub count: i64,
    pub sum: Option<Total>,
    /// The least, the greatest or the last value, as the meter asks; members for `unique_count`.
    pub picked: Option<Total>,
}

impl Aggregate {
    pub fn value(&self, aggregation: Aggregation) -> Option<Total> {
        let found = match aggregation {
            Aggregation::Sum | Aggregation::Count => self.sum,
            Aggregation::Avg => self.sum.and_then(|sum| sum.average_of(self.count)),
            Aggregation::Min | Aggregation::Max | Aggregation::Last | Aggregation::UniqueCount => self.picked,
        };
        found.or(aggregation.of_nothing())
    }

    /// Together with what was found later. Of members, those count that were new then.
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

/// How far a quota is used. The thresholds are those of `MakerKit`'s usage bar.
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
    /// Of a quota; none is unlimited.
    pub fn of(used: Total, quota: Option<Quantity>) -> Self {
        let Some(quota) = quota else { return Self::Ok };
        let reaches = |percent: i128| {
            // quotas have 94 bits: a hundred times one fits
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

/// How many percent of a quota are used, to two decimal places, half away from zero; none of an
/// unlimited one, 100 of one that is zero.
pub fn percent(used: Total, quota: Option<Quantity>) -> Option<Total> {
    let quota = quota?;
    if quota.is_zero() {
        return Some(Total::from(100));
    }
    let (used, quota) = (used.nanos(), quota.nanos());
    // hundredths of a percent, without leaving 128 bits
    let (whole, rest) = (used / quota, used % quota);
    let (scaled, part) = (rest.checked_mul(10_000)?, quota);
    let away = if (scaled % part).abs() * 2 >= part { scaled.signum() } else { 0 };
    let hundredths = whole.saturating_mul(10_000).saturating_add(scaled / part + away);
    Some(Total::from_nanos(hundredths.saturating_mul(10_000_000)))
}

/// What a row stands for beside its window.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Group {
    pub subject: Option<String>,
    /// In the order of `group_by`; none where the event had no such property.
    pub dimensions: Vec<Option<String>>,
    /// The place of the slice that took it; none where none did.
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

/// Lays out what was found, by window and then group. Groups in which nothing is left are dropped,
/// unless windows are to be filled. Refused where that would be more rows than an answer may have.
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
    fn an_empty_list_of_subjects_is_never_everybody() {
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
