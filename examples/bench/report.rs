//! The table.

use std::time::Duration;

#[expect(clippy::cast_precision_loss, reason = "counts of a benchmark are far below 2^52")]
pub(crate) fn float(count: usize) -> f64 {
    count as f64
}

pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        count if count % 2 == 1 => sorted[count / 2],
        count => f64::midpoint(sorted[count / 2 - 1], sorted[count / 2]),
    }
}

/// The median of the rounds' own ratios: what disturbs the machine for a while disturbs both sides of
/// a round.
pub(crate) fn median_ratio(measured: &[f64], against: &[f64]) -> f64 {
    let ratios: Vec<f64> =
        measured.iter().zip(against).map(|(measured, against)| measured / against).collect();
    median(&ratios)
}

/// A rate, with what it varied between.
pub(crate) fn rate(values: &[f64], unit: &str) -> String {
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    let most = values.iter().copied().fold(0.0, f64::max);
    format!("{} {unit} ({}–{})", thousands(median(values)), thousands(least), thousands(most))
}

pub(crate) fn thousands(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut grouped = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index) % 3 == 0 {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

pub(crate) fn milliseconds(duration: Duration) -> String {
    format!("{:.2} ms", duration.as_secs_f64() * 1_000.0)
}

#[derive(Debug, Default)]
pub(crate) struct Table {
    rows: Vec<[String; 5]>,
}

impl Table {
    pub(crate) fn add(
        &mut self,
        what: &str,
        measured: String,
        against: String,
        ratio: Option<f64>,
        aim: &str,
    ) {
        let ratio = ratio.map(|ratio| format!("{ratio:.2}")).unwrap_or_default();
        self.rows.push([what.to_owned(), measured, against, ratio, aim.to_owned()]);
    }

    /// Without anything beside it.
    pub(crate) fn add_alone(&mut self, what: &str, measured: String, aim: &str) {
        self.add(what, measured, String::new(), None, aim);
    }

    pub(crate) fn markdown(&self) -> String {
        let header = "| | Metergate | compared with | ratio | aim |\n|---|---|---|---|---|\n".to_owned();
        self.rows.iter().fold(header, |table, row| format!("{table}| {} |\n", row.join(" | ")))
    }
}
