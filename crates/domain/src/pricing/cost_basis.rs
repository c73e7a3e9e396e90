//! The terms for displaying costs: prices, commitment and the requested currency.

use super::amount::MinorUnits;
use super::commitment::Commitment;
use super::currency::Currency;
use super::exchange::ExchangeRate;
use super::line::RatedLine;
use super::price_book::PriceBook;

/// The terms for displaying costs.
#[derive(Debug, Clone, Copy)]
pub struct CostBasis<'p> {
    pub book: &'p PriceBook,
    /// The exchange rate from the currency of the book to the requested one, if they differ.
    pub rate: Option<&'p ExchangeRate>,
    /// The bounds on the sum of all lines of a period, in the currency of the book.
    pub commitment: Option<&'p Commitment>,
}

impl CostBasis<'_> {
    /// Returns the currency of shown costs.
    pub fn currency(&self) -> Currency {
        self.rate.map_or(self.book.currency, |rate| rate.to)
    }

    /// Converts lines and adds the line that keeps their sum within the commitment.
    pub fn shown(&self, mut lines: Vec<RatedLine>) -> Vec<RatedLine> {
        if let Some(rate) = self.rate {
            lines = lines.iter().map(|line| line.converted(rate)).collect();
        }
        if let Some(commitment) = self.commitment {
            let converted = self.rate.map(|rate| commitment.converted(rate));
            converted.as_ref().unwrap_or(commitment).complete(&mut lines);
        }
        lines
    }

    /// Returns the sum of the rounded lines as they are shown.
    pub fn total(&self, lines: Vec<RatedLine>) -> MinorUnits {
        self.shown(lines).into_iter().map(|line| line.rounded_amount).sum()
    }
}
