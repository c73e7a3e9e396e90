//! Usage, reports and invoices as CSV (RFC 4180). Names are escaped so that no spreadsheet runs them as
//! formulas.

use axum::http::header;
use axum::response::{IntoResponse, Response};

use super::problem::Problem;
use crate::engine::{EngineError, InvoiceView, Report};
use metergate_domain::base::Total;
use metergate_domain::usage::{UsageQuery, UsageRow};

/// Writes one CSV line per row; each dimension has a column of its name.
pub(super) fn usage(query: &UsageQuery, rows: &[UsageRow]) -> Result<Response, Problem> {
    let mut header = vec!["window_start".to_owned(), "window_end".to_owned(), "subject".to_owned()];
    header.extend(query.group_by.iter().map(|name| named(Some(name.clone()))));
    header.extend(["value".to_owned(), "event_count".to_owned()]);
    let lines = rows.iter().map(|row| {
        let mut line = vec![row.window_start.to_string(), row.window_end.to_string()];
        line.push(named(row.subject.clone()));
        line.extend(query.group_by.iter().map(|name| named(row.group.get(name).cloned().flatten())));
        line.push(row.value.map(|value| value.to_string()).unwrap_or_default());
        line.push(row.event_count.to_string());
        line
    });
    write(header, lines)
}

/// Writes one CSV line per meter.
pub(super) fn report(report: &Report) -> Result<Response, Problem> {
    let header = ["meter", "unit", "value", "event_count"].map(str::to_owned).to_vec();
    let lines = report.meters.iter().map(|meter| {
        vec![
            meter.meter.to_string(),
            named(meter.unit.clone()),
            meter.value.map(|value| value.to_string()).unwrap_or_default(),
            meter.event_count.to_string(),
        ]
    });
    write(header, lines)
}

/// Writes one CSV line per invoice line, with unrounded amounts in minor units.
pub(super) fn invoice(invoice: &InvoiceView) -> Result<Response, Problem> {
    let header = [
        "invoice",
        "number",
        "status",
        "subject",
        "customer",
        "kind",
        "plan",
        "price",
        "meter",
        "filter",
        "period_start",
        "period_end",
        "corrects",
        "quantity",
        "amount",
        "rounded_amount",
        "currency",
    ];
    let lines = invoice.lines.iter().flatten().map(|line| {
        // a map of words always serialises
        let filter = line.filter.as_ref().map(|filter| serde_json::to_string(filter).unwrap_or_default());
        vec![
            invoice.id.to_string(),
            invoice.number.clone().unwrap_or_default(),
            invoice.status.clone(),
            named(Some(invoice.subject.clone())),
            named(Some(invoice.customer.clone())),
            line.kind.as_str().to_owned(),
            line.plan.clone(),
            line.price.clone().unwrap_or_default(),
            line.meter.clone().unwrap_or_default(),
            filter.unwrap_or_default(),
            line.period.start.clone(),
            line.period.end.clone(),
            line.corrects.clone().unwrap_or_default(),
            line.quantity.to_string(),
            line.amount.to_string(),
            line.rounded_amount.to_string(),
            invoice.currency.to_string(),
        ]
    });
    write(header.map(str::to_owned).to_vec(), lines)
}

/// Escapes text from outside: puts an apostrophe before a text that a spreadsheet would run as a formula,
/// except a number.
fn named(text: Option<String>) -> String {
    let text = text.unwrap_or_default();
    let is_formula = text.starts_with(['=', '+', '-', '@', '\t', '\r']);
    if is_formula && Total::from_decimal(&text).is_err() { format!("'{text}") } else { text }
}

fn write(header: Vec<String>, lines: impl Iterator<Item = Vec<String>>) -> Result<Response, Problem> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    let failed = |why: String| Problem::from(EngineError::Internal(format!("csv: {why}")));
    writer.write_record(&header).map_err(|why| failed(why.to_string()))?;
    for line in lines {
        writer.write_record(&line).map_err(|why| failed(why.to_string()))?;
    }
    let bytes = writer.into_inner().map_err(|why| failed(why.to_string()))?;
    Ok(([(header::CONTENT_TYPE, "text/csv; charset=utf-8")], bytes).into_response())
}

#[cfg(test)]
mod tests {
    use super::named;

    #[test]
    fn csv_names_are_never_spreadsheet_formulas() {
        let cases = [
            ("=1+1", "'=1+1"),
            ("+cmd|' /C calc'!A0", "'+cmd|' /C calc'!A0"),
            ("-2+3", "'-2+3"),
            ("@SUM(A1)", "'@SUM(A1)"),
            ("\t=1", "'\t=1"),
            ("\r=1", "'\r=1"),
            ("-5", "-5"),
            ("-0.25", "-0.25"),
            ("gpt-4o", "gpt-4o"),
            ("a=b", "a=b"),
            ("", ""),
        ];
        for (text, expected) in cases {
            assert_eq!(named(Some(text.to_owned())), expected, "{text:?}");
        }
        assert_eq!(named(None), "");
    }
}
