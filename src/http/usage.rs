//! `/v1/usage` and the usage report of a subject, as JSON or CSV.

use axum::Json;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use super::access::forbidden;
use super::extract::{Caller, QueryOf, SubjectPath, other_subject};
use super::problem::Problem;
use super::query::{FromQuery, Parameters};
use super::state::Api;
use super::{accept, csv, query};
use crate::engine::access::Role;
use crate::engine::{PageRequest, TopPage};
use metergate_domain::base::limits::{FILTER_VALUES_MAX, METER_DIMENSIONS_MAX, USAGE_SUBJECTS_MAX};
use metergate_domain::base::names::{MeterKey, SubjectId};
use metergate_domain::base::{Parsed, Span, Timestamp, Violation, Window, Zone};
use metergate_domain::pricing::Currency;
use metergate_domain::usage::{GroupBySubject, RankBy, RankPageRequest, Subjects, UsageQuery, UsageRow};

#[derive(Serialize)]
struct Usage<'a> {
    meter: &'a MeterKey,
    from: Timestamp,
    to: Timestamp,
    window: Option<Window>,
    timezone: &'a Zone,
    data: &'a [UsageRow],
}

pub(super) async fn usage(
    State(api): State<Api>,
    caller: Caller,
    QueryOf(mut query): QueryOf<UsageQuery>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    restrict(&mut query, &caller)?;
    let rows = api.engine.usage(caller.environment, &query).await?;
    if wants_csv(&headers) {
        return csv::usage(&query, &rows);
    }
    let answer = Usage {
        meter: &query.meter,
        from: query.span.from,
        to: query.span.to,
        window: query.window,
        timezone: &query.zone,
        data: &rows,
    };
    Ok(Json(answer).into_response())
}

pub(super) struct ReportCurrency(Option<Currency>);

impl FromQuery for ReportCurrency {
    fn parse(parameters: &mut Parameters) -> Option<Self> {
        Some(Self(parameters.optional("currency", |code| Currency::parse(&code))))
    }
}

pub(super) async fn report(
    State(api): State<Api>,
    caller: Caller,
    QueryOf(ReportCurrency(currency)): QueryOf<ReportCurrency>,
    SubjectPath(subject): SubjectPath,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let report = api.engine.report(caller.environment, subject, caller.viewer(), currency).await?;
    if wants_csv(&headers) { csv::report(&report) } else { Ok(Json(report).into_response()) }
}

/// Ranks subjects by usage, by cost, or by how close they are to a limit.
pub(super) async fn top(
    State(api): State<Api>,
    caller: Caller,
    QueryOf((by, page)): QueryOf<(RankBy, PageRequest)>,
) -> Result<Json<TopPage>, Problem> {
    let ranks = RankPageRequest::read(page.cursor.as_deref(), page.limit)?;
    Ok(Json(api.engine.ranking(caller.environment, &by, ranks).await?))
}

impl FromQuery for RankBy {
    fn parse(parameters: &mut Parameters) -> Option<Self> {
        match parameters.word("by", &[("usage", "usage"), ("cost", "cost"), ("limit", "limit")]) {
            Some("cost") => {
                let span = parameters.span();
                let currency = parameters.optional("currency", |code| Currency::parse(&code));
                Some(Self::Cost { span: span?, currency })
            }
            Some("limit") => Some(Self::Limit { meter: parameters.optional("meter", meter_key) }),
            _ => {
                let span = parameters.span();
                let meter = parameters.required("meter", meter_key);
                Some(Self::Usage { meter: meter?, span: span? })
            }
        }
    }
}

fn meter_key(key: String) -> Parsed<MeterKey> {
    Ok(MeterKey::parse(key)?)
}

/// Restricts a token's query to its own subject.
fn restrict(query: &mut UsageQuery, caller: &Caller) -> Result<(), Problem> {
    let Role::EndUser { subject, .. } = &caller.role else { return Ok(()) };
    if query.descendants {
        return Err(forbidden("a token never shows descendants; leave out `descendants`"));
    }
    let asks_for_others = match &query.subjects {
        Subjects::All => false,
        Subjects::Listed(names) => names.as_slice().iter().any(|name| name != subject.as_str()),
    };
    if asks_for_others {
        return Err(other_subject(subject));
    }
    query.subjects = Subjects::one(subject.as_str());
    Ok(())
}

impl FromQuery for UsageQuery {
    fn parse(parameters: &mut Parameters) -> Option<Self> {
        let meter = parameters.required("meter", meter_key);
        let (from, to) =
            (parameters.required("from", query::timestamp), parameters.required("to", query::timestamp));
        let window = parameters.word("window", &Window::WORDS);
        let zone = parameters.optional("timezone", |name| Zone::parse(&name)).unwrap_or_default();
        let subjects = parameters.all("subject", |subject| Ok(SubjectId::parse(subject)?));
        let descendants = parameters.flag("descendants");
        let grouping = parameters.optional("group_by", query::text).unwrap_or_default();
        let filter = parameters.bracketed("filter");
        let fill = parameters.flag("fill");
        check_count(parameters, "subject", subjects.len(), USAGE_SUBJECTS_MAX);
        check_count(
            parameters,
            "filter",
            filter.values().map(Vec::len).max().unwrap_or(0),
            FILTER_VALUES_MAX,
        );
        if filter.values().flatten().any(|value| value.contains('\0')) {
            let violation = Violation::new("nul_character", "must not contain the NUL character");
            parameters.add_error(violation.under("filter"));
        }
        parameters.check_order(from, to);
        let (whose, group_by) = read_grouping(&grouping);
        check_count(parameters, "group_by", group_by.len(), METER_DIMENSIONS_MAX);
        Some(Self {
            window,
            zone,
            // a query without subjects covers all of them
            subjects: Subjects::listed(subjects).unwrap_or(Subjects::All),
            descendants,
            whose,
            group_by,
            filter,
            fill,
            ..Self::internal(&meter?, Span { from: from?, to: to? })
        })
    }
}

/// Notes a violation if a parameter has more than `max` values.
fn check_count(parameters: &mut Parameters, name: &str, count: usize, max: usize) {
    if count > max {
        let detail = format!("must have at most {max} values; got {count}");
        parameters.add_error(Violation::new("too_many", detail).under(name));
    }
}

/// Parses comma-separated names of dimensions; `subject` groups by subject.
fn read_grouping(names: &str) -> (GroupBySubject, Vec<String>) {
    let (mut whose, mut group_by) = (GroupBySubject::All, Vec::<String>::new());
    for name in names.split(',').map(str::trim).filter(|name| !name.is_empty()) {
        if name == "subject" {
            whose = GroupBySubject::EachSubject;
        } else if !group_by.iter().any(|known| known == name) {
            group_by.push(name.to_owned());
        }
    }
    (whose, group_by)
}

fn wants_csv(headers: &HeaderMap) -> bool {
    accept::preferred(headers, &["application/json", "text/csv"]) == "text/csv"
}
