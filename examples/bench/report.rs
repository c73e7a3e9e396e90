//! The result table.

use std::time::Duration;

use crate::http::Measured;

#[expect(clippy::cast_precision_loss, reason = "counts of a benchmark are far below 2^52")]
pub(crate) fn float(count: usize) -> f64 {
    count as f64
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "as above")]
pub(crate) fn whole(count: f64) -> usize {
    count as usize
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

/// Returns the median of the rounds' own ratios, because a disturbance affects both sides of a round.
pub(crate) fn median_ratio(measured: &[f64], against: &[f64]) -> f64 {
    let ratios: Vec<f64> =
        measured.iter().zip(against).map(|(measured, against)| measured / against).collect();
    median(&ratios)
}

/// Formats the median rate with its range.
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

/// A measurement with one value per round.
#[derive(Debug, Default)]
pub(crate) struct Series {
    pub(crate) rates: Vec<f64>,
    /// Processor time per item, in microseconds: of service and server until all is folded, or of the
    /// server alone. Empty if the kernel does not provide it.
    pub(crate) micros: Vec<f64>,
    /// The median and the 99th percentile, in seconds.
    latencies: Vec<[f64; 2]>,
    refused: usize,
}

impl Series {
    /// Adds a round in which a turn has `of_a_turn` items.
    pub(crate) fn note(&mut self, measured: &Measured, of_a_turn: usize) {
        self.rates.push(measured.per_second() * float(of_a_turn));
        self.latencies.push([50, 99].map(|percent| measured.percentile(percent).as_secs_f64()));
        self.refused += measured.refused;
    }

    /// Formats the last round's rate.
    pub(crate) fn last(&self) -> String {
        self.rates.last().map_or("not measured".to_owned(), |rate| thousands(*rate))
    }
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

    /// Adds a row without a comparison.
    pub(crate) fn add_alone(&mut self, what: &str, measured: String, aim: &str) {
        self.add(what, measured, String::new(), None, aim);
    }

    /// Adds rates and those of the baseline, which may not be available.
    pub(crate) fn add_rates(
        &mut self,
        what: &str,
        (measured, unit): (&Series, &str),
        against: &str,
        (compared, compared_unit): (&Series, &str),
        aim: &str,
    ) {
        let (against, ratio) = if compared.rates.is_empty() {
            (format!("{against}: not installed"), None)
        } else {
            let ratio = median_ratio(&measured.rates, &compared.rates);
            (format!("{against}: {}", rate(&compared.rates, compared_unit)), Some(ratio))
        };
        self.add(what, rate(&measured.rates, unit), against, ratio, aim);
    }

    /// Adds processor time and that of the server alone. The ratio is inverted, so that more is better
    /// in all rows.
    pub(crate) fn add_micros(&mut self, what: &str, measured: &Series, against: &str, compared: &Series) {
        if measured.micros.is_empty() || compared.micros.is_empty() {
            return;
        }
        let ratio = median_ratio(&compared.micros, &measured.micros);
        let (measured, compared) = (median(&measured.micros), median(&compared.micros));
        let against = format!("{against}, the server alone: {compared:.1} µs");
        self.add(what, format!("{measured:.1} µs"), against, Some(ratio), "");
    }

    /// Adds rates and those with less data.
    pub(crate) fn add_large(&mut self, what: &str, many: &Series, few: &Series, unit: &str, aim: &str) {
        if many.rates.is_empty() || few.rates.is_empty() {
            return;
        }
        let before = format!("before: {}", rate(&few.rates, unit));
        let ratio = median(&many.rates) / median(&few.rates);
        self.add(what, rate(&many.rates, unit), before, Some(ratio), aim);
    }

    /// Adds the medians over the rounds of the median and the 99th percentile.
    pub(crate) fn add_latency(&mut self, what: &str, series: &Series) {
        let of = |index: usize| {
            median(&series.latencies.iter().map(|round| round[index]).collect::<Vec<_>>()) * 1_000.0
        };
        self.add_alone(&format!("{what}: p50 / p99"), format!("{:.2} ms / {:.2} ms", of(0), of(1)), "");
    }

    /// Adds the number of 503 answers, which should be zero.
    pub(crate) fn add_refused<'a>(&mut self, what: &str, series: impl IntoIterator<Item = &'a Series>) {
        let refused: usize = series.into_iter().map(|series| series.refused).sum();
        self.add_alone(&format!("calls refused for the moment (503), {what}"), refused.to_string(), "0");
    }

    pub(crate) fn markdown(&self) -> String {
        let header = "| | Metergate | compared with | ratio | aim |\n|---|---|---|---|---|\n".to_owned();
        self.rows.iter().fold(header, |table, row| format!("{table}| {} |\n", row.join(" | ")))
    }
}
