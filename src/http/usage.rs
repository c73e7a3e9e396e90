//! `/v1/usage` and the usage report of a subject, as JSON or CSV.

use axum::Json;
use axum::extract::{Extension, Path, State};
use axum::http::{HeaderMap, Uri};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use super::access::forbidden;
use super::problem::Problem;
use super::query;
use super::query::Parameters;
use super::{Api, accept, csv, subjects};
use crate::engine::Viewer;
use crate::engine::access::{Principal, Role};
use metergate_domain::base::fields::Violation;
use metergate_domain::base::limits::{FILTER_VALUES_MAX, METER_DIMENSIONS_MAX, USAGE_SUBJECTS_MAX};
use metergate_domain::base::names::{MeterKey, SubjectId};
use metergate_domain::base::timestamp::Timestamp;
use metergate_domain::base::window::{Span, Window, Zone};
use metergate_domain::pricing::currency::Currency;
use metergate_domain::usage::query::{GroupBySubject, Subjects, UsageQuery, UsageRow};
use metergate_domain::usage::ranking::{RankBy, RankPageRequest};

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
    Extension(principal): Extension<Principal>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let mut query = read_query(&uri)?;
    restrict(&mut query, &principal)?;
    let rows = api.engine.usage(principal.environment, &query).await?;
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

pub(super) async fn report(
    State(api): State<Api>,
    Extension(principal): Extension<Principal>,
    Path(subject): Path<String>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let mut parameters = Parameters::of(&uri);
    let currency = parameters.optional("currency", |code| Currency::parse(&code));
    parameters.finish()?;
    let subject = subjects::in_path(subject)?;
    if matches!(&principal.role, Role::EndUser { subject: own, .. } if *own != subject) {
        return Err(forbidden("a token shows its own subject alone"));
    }
    let report = api.engine.report(principal.environment, subject, viewer(&principal), currency).await?;
    if wants_csv(&headers) { csv::report(&report) } else { Ok(Json(report).into_response()) }
}

/// As whom a caller looks at a subject.
pub(super) fn viewer(principal: &Principal) -> Viewer {
    match &principal.role {
        Role::EndUser { .. } => Viewer::EndUser,
        Role::Secret | Role::Publishable => Viewer::Application,
    }
}

/// Who uses or costs most, or is nearest to a limit.
pub(super) async fn top(
    State(api): State<Api>,
    Extension(principal): Extension<Principal>,
    uri: Uri,
) -> Result<Response, Problem> {
    let (by, ranks) = read_top(&uri)?;
    Ok(Json(api.engine.ranking(principal.environment, &by, ranks).await?).into_response())
}

fn read_top(uri: &Uri) -> Result<(RankBy, RankPageRequest), Problem> {
    #[derive(Clone, Copy, PartialEq, Eq)]
    enum Word {
        Usage,
        Cost,
        Limit,
    }
    let words = [("usage", Word::Usage), ("cost", Word::Cost), ("limit", Word::Limit)];
    let mut parameters = Parameters::of(uri);
    let by = parameters.optional("by", |value| query::word(value, &words)).unwrap_or(Word::Usage);
    let cursor = parameters.optional("cursor", query::text);
    let limit = parameters.limit();
    let span = if by == Word::Limit {
        None
    } else {
        let from = parameters.required("from", query::timestamp);
        let to = parameters.required("to", query::timestamp);
        if let (Some(from), Some(to)) = (from, to)
            && from > to
        {
            parameters.add_error(Violation::new("invalid_range", "must not be after `to`").under("from"));
        }
        from.zip(to).map(|(from, to)| Span { from, to })
    };
    let meter_key = |key: String| Ok(MeterKey::parse(key)?);
    let meter = match by {
        Word::Usage => parameters.required("meter", meter_key),
        Word::Limit => parameters.optional("meter", meter_key),
        Word::Cost => None,
    };
    let currency = match by {
        Word::Cost => parameters.optional("currency", |code| Currency::parse(&code)),
        Word::Usage | Word::Limit => None,
    };
    parameters.finish()?;
    let ranks = RankPageRequest::read(cursor.as_deref(), limit)?;
    let by = match (by, span, meter) {
        (Word::Usage, Some(span), Some(meter)) => RankBy::Usage { meter, span },
        (Word::Cost, Some(span), _) => RankBy::Cost { span, currency },
        (Word::Limit, _, meter) => RankBy::Limit { meter },
        // what is required and flawed has been refused by now
        _ => return Err(Problem::invalid(Vec::new())),
    };
    Ok((by, ranks))
}

/// An end user asks for themselves alone, whether they say so or not.
fn restrict(query: &mut UsageQuery, principal: &Principal) -> Result<(), Problem> {
    let Role::EndUser { subject, .. } = &principal.role else { return Ok(()) };
    if query.descendants {
        return Err(forbidden("a token never shows descendants"));
    }
    let own = Subjects::one(subject.as_str());
    let asks_for_others = match &query.subjects {
        Subjects::All => false,
        Subjects::Listed(names) => names.as_slice().iter().any(|name| name != subject.as_str()),
    };
    if asks_for_others {
        return Err(forbidden("a token shows its own subject alone"));
    }
    query.subjects = own;
    Ok(())
}

fn read_query(uri: &Uri) -> Result<UsageQuery, Problem> {
    let mut parameters = Parameters::of(uri);
    let meter = parameters.required("meter", |key| Ok(MeterKey::parse(key)?));
    let from = parameters.required("from", query::timestamp);
    let to = parameters.required("to", query::timestamp);
    let window = parameters.optional("window", |value| query::word(value, &Window::WORDS));
    let zone = parameters.optional("timezone", |name| Zone::parse(&name)).unwrap_or_default();
    let subjects: Vec<SubjectId> = parameters.all("subject", subjects::parse);
    let descendants = parameters.flag("descendants");
    let grouping = parameters.optional("group_by", query::text).unwrap_or_default();
    let filter = parameters.bracketed("filter");
    let fill = parameters.flag("fill");

    let too_many =
        |what: &str, max: usize| Violation::new("too_many", format!("must be at most {max}")).under(what);
    if subjects.len() > USAGE_SUBJECTS_MAX {
        parameters.add_error(too_many("subject", USAGE_SUBJECTS_MAX));
    }
    if filter.values().any(|values| values.len() > FILTER_VALUES_MAX) {
        parameters.add_error(too_many("filter", FILTER_VALUES_MAX));
    }
    if filter.values().flatten().any(|value| value.contains('\0')) {
        parameters
            .add_error(Violation::new("nul_character", "must not contain the NUL character").under("filter"));
    }
    if let (Some(from), Some(to)) = (from, to)
        && from > to
    {
        parameters.add_error(Violation::new("invalid_range", "must not be after `to`").under("from"));
    }
    let mut group_by: Vec<String> = Vec::new();
    let mut whose = GroupBySubject::All;
    for name in grouping.split(',').map(str::trim).filter(|name| !name.is_empty()) {
        if name == "subject" {
            whose = GroupBySubject::EachSubject;
        } else if !group_by.iter().any(|known| known == name) {
            group_by.push(name.to_owned());
        }
    }
    if group_by.len() > METER_DIMENSIONS_MAX {
        parameters.add_error(too_many("group_by", METER_DIMENSIONS_MAX));
    }
    parameters.finish()?;
    // what is required and flawed has been refused by now
    let (Some(meter), Some(from), Some(to)) = (meter, from, to) else {
        return Err(Problem::invalid(Vec::new()));
    };
    let span = Span { from, to };
    Ok(UsageQuery {
        window,
        zone,
        // a query that names no subject asks for all
        subjects: Subjects::listed(subjects).unwrap_or(Subjects::All),
        descendants,
        whose,
        group_by,
        filter,
        fill,
        ..UsageQuery::internal(&meter, span)
    })
}

fn wants_csv(headers: &HeaderMap) -> bool {
    accept::preferred(headers, &["application/json", "text/csv"]) == "text/csv"
}
