//! An invoice as a page to read and to print. The page has no scripts, loads nothing, and escapes every text
//! from outside.

use std::fmt::Write as _;

use axum::http::header;
use axum::response::{Html, IntoResponse, Response};

use crate::engine::InvoiceView;
use metergate_domain::invoicing::{InvoiceLine, InvoiceLineKind, LineTier};
use metergate_domain::pricing::{Amount, Currency, MinorUnits};

const STYLE: &str = include_str!("invoice_page.css");
/// A policy under which the page runs and fetches nothing, even if an escape were missing.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'";

pub(super) fn page(invoice: &InvoiceView) -> Response {
    let headers = [(header::CONTENT_SECURITY_POLICY, POLICY), (header::X_CONTENT_TYPE_OPTIONS, "nosniff")];
    (headers, Html(html(invoice))).into_response()
}

fn html(invoice: &InvoiceView) -> String {
    let title = match &invoice.number {
        Some(number) => format!("Invoice {number}"),
        None => "Draft invoice".to_owned(),
    };
    let currency = invoice.currency;
    let mut facts = vec![
        ("Status", invoice.status.clone()),
        ("Billed to", format!("{} ({})", invoice.subject, invoice.customer)),
        ("Period", format!("{} to {}", time(&invoice.period.from), time(&invoice.period.to))),
    ];
    facts.extend(invoice.finalized_at.map(|at| ("Finalized", time(&at))));
    facts.extend(invoice.finalizes_at.map(|at| ("Final from", time(&at))));
    facts.extend(invoice.provider.as_ref().map(|it| ("Stripe", format!("{}, {}", it.invoice, it.status))));
    let facts: Vec<String> =
        facts.iter().map(|(name, value)| format!("<dt>{name}</dt><dd>{}</dd>", escaped(value))).collect();
    let facts = facts.concat();
    let rows: String = invoice.lines.iter().flatten().map(|line| row(line, currency)).collect();
    let rows = if rows.is_empty() {
        "<tr><td colspan=\"3\" class=\"nothing\">Nothing yet.</td></tr>".to_owned()
    } else {
        rows
    };
    let total = invoice.total.clone().unwrap_or_default();
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <title>{title}</title><style>{STYLE}</style></head><body>\
         <header><h1>{title}</h1><p class=\"due\">{}</p></header><dl>{facts}</dl>\
         <table><thead><tr><th>Item</th><th class=\"number\">Quantity</th><th class=\"number\">Amount</th></tr></thead>\
         <tbody>{rows}</tbody><tfoot><tr><th colspan=\"2\">Total</th><td class=\"number\">{}</td></tr></tfoot></table>\
         <footer>Times are in UTC; a period ends just before its second time. {}</footer></body></html>\n",
        money(&total, currency),
        money(&total, currency),
        escaped(&invoice.id.to_string()),
    )
}

fn row(line: &InvoiceLine, currency: Currency) -> String {
    let name = line.price.as_ref().unwrap_or(&line.model);
    let mut item = format!("<strong>{}</strong>", escaped(name));
    if let Some(meter) = line.meter_name.as_ref().or(line.meter.as_ref()).filter(|meter| *meter != name) {
        write!(item, " {}", escaped(meter)).ok();
    }
    let mut notes = Vec::new();
    for (name, values) in line.filter.iter().flatten() {
        notes.push(format!("{name}: {}", values.join(", ")));
    }
    match &line.corrects {
        Some(number) => notes.push(format!("correction of {number}")),
        None => notes.push(format!("plan {}", line.plan_name.as_ref().unwrap_or(&line.plan))),
    }
    if let Some(bound) = &line.bound {
        let side = if line.kind == InvoiceLineKind::Minimum { "least" } else { "most" };
        notes.push(format!("all lines total at {side} {}", exact(bound.as_str(), currency)));
    }
    notes.push(format!("{} to {}", time(&line.period.start), time(&line.period.end)));
    let notes: Vec<String> = notes.iter().map(|note| escaped(note)).collect();
    write!(item, "<div class=\"notes\">{}</div>", notes.join(" &middot; ")).ok();
    let quantity =
        if line.meter.is_some() { escaped(&grouped(line.quantity.as_str())) } else { String::new() };
    let mut rows = format!(
        "<tr><td>{item}</td><td class=\"number\">{quantity}</td><td class=\"number\">{}</td></tr>",
        money(&line.rounded(), currency)
    );
    let mut below = "0".to_owned();
    for tier in &line.tiers {
        rows.push_str(&tier_row(tier, &below, &line.model, currency));
        below = tier.up_to.as_ref().map(ToString::to_string).unwrap_or_default();
    }
    let rates = rates(line, currency);
    if !rates.is_empty() {
        write!(rows, "<tr class=\"tier\"><td colspan=\"3\">{}</td></tr>", escaped(&rates.join(", "))).ok();
    }
    if let Some(adjustment) = &line.adjustment {
        write!(
            rows,
            "<tr class=\"tier\"><td>minimum or maximum</td><td></td><td class=\"number\">{}</td></tr>",
            exact(adjustment.as_str(), currency)
        )
        .ok();
    }
    rows
}

fn tier_row(tier: &LineTier, below: &str, model: &str, currency: Currency) -> String {
    let range = match &tier.up_to {
        Some(up_to) if model == "volume" || below == "0" => format!("up to {}", grouped(up_to.as_str())),
        Some(up_to) => format!("above {}, up to {}", grouped(below), grouped(up_to.as_str())),
        None if model == "volume" || below == "0" => "all".to_owned(),
        None => format!("above {}", grouped(below)),
    };
    let mut at = format!("{} each", exact(tier.unit_amount.as_str(), currency));
    if tier.flat_amount.as_str() != "0" {
        write!(at, ", and {}", exact(tier.flat_amount.as_str(), currency)).ok();
    }
    format!(
        "<tr class=\"tier\"><td>{} at {}</td><td class=\"number\">{}</td><td class=\"number\">{}</td></tr>",
        escaped(&range),
        escaped(&at),
        escaped(&grouped(tier.quantity.as_str())),
        exact(tier.amount.as_str(), currency),
    )
}

/// Formats minor units as an amount of money.
fn money(units: &MinorUnits, currency: Currency) -> String {
    format!(
        "{}&nbsp;{}",
        grouped(&units.in_major_units(currency.digits())),
        escaped(&currency.code().to_ascii_uppercase())
    )
}

/// Formats an exact amount of minor units in major units, with all of its digits.
fn exact(minor_units: &str, currency: Currency) -> String {
    let digits = i32::try_from(currency.digits()).unwrap_or_default();
    let amount = Amount::from_sum(minor_units).unwrap_or_default();
    grouped(&amount.shifted(-digits).to_string())
}

/// Describes the rates of a line, apart from its tiers.
fn rates(line: &InvoiceLine, currency: Currency) -> Vec<String> {
    let text = |name: &str| {
        line.rates.get(name).map(|value| value.as_str().map_or_else(|| value.to_string(), str::to_owned))
    };
    let money = |name: &str| text(name).map(|amount| exact(&amount, currency));
    let count = |name: &str| text(name).map(|count| grouped(&count));
    let per = match (count("per_units"), line.model.as_str()) {
        (Some(units), "package") => {
            format!("for each package of {units}, rounded {}", text("round").unwrap_or_default())
        }
        (Some(units), _) => format!("for {units}"),
        (None, _) => "each".to_owned(),
    };
    [
        money("unit_amount").map(|amount| format!("{amount} {per}")),
        count("rate").map(|rate| format!("{rate} %")),
        money("fixed_amount").filter(|amount| amount != "0").map(|amount| format!("and {amount} an event")),
        money("event_minimum").map(|amount| format!("at least {amount} an event")),
        money("event_maximum").map(|amount| format!("at most {amount} an event")),
        count("free_units").map(|units| format!("the first {units} free")),
        money("minimum_amount").map(|amount| format!("at least {amount}")),
        money("maximum_amount").map(|amount| format!("at most {amount}")),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Formats a decimal with separated thousands.
fn grouped(number: &str) -> String {
    let (sign, rest) = number.strip_prefix('-').map_or(("", number), |rest| ("-", rest));
    let (whole, fraction) = rest.split_once('.').map_or((rest, String::new()), |(w, f)| (w, format!(".{f}")));
    let mut parted = String::new();
    for (place, digit) in whole.chars().enumerate() {
        if place > 0 && (whole.len() - place).is_multiple_of(3) {
            parted.push(',');
        }
        parted.push(digit);
    }
    format!("{sign}{parted}{fraction}")
}

/// Formats a time to the second, with a space in place of the `T`.
fn time(at: &impl ToString) -> String {
    let text = at.to_string();
    let to_the_second = text.split(['.', 'Z']).next().unwrap_or_default();
    to_the_second.replacen('T', " ", 1)
}

fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            // overrides of the writing direction could show a different number
            '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => escaped.push('\u{fffd}'),
            _ => escaped.push(character),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invoice_page_groups_digits_and_shortens_times() {
        let cases = [
            ("0", "0"),
            ("12", "12"),
            ("999", "999"),
            ("1000", "1,000"),
            ("-1234567.891011", "-1,234,567.891011"),
            ("-123.45", "-123.45"),
        ];
        for (number, expected) in cases {
            assert_eq!(grouped(number), expected);
        }
        assert_eq!(time(&"2026-11-20T10:00:00.123456Z"), "2026-11-20 10:00:00");
        assert_eq!(time(&"2026-11-20T10:00:00Z"), "2026-11-20 10:00:00");
    }
}
