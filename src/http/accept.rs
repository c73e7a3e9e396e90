//! Content negotiation (RFC 9110, 12.5.1).

use std::cmp::Reverse;

use axum::http::{HeaderMap, header};

/// Returns the offered media type that `Accept` prefers, or the first offer. Ties in weight go to the more
/// exact range, then to the earlier one.
pub(super) fn preferred<'a>(headers: &HeaderMap, offers: &[&'a str]) -> &'a str {
    let values = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let ranges: Vec<Range<'_>> = values.flat_map(|value| value.split(',')).filter_map(Range::read).collect();
    let mut best: Option<(&str, RangePreference)> = None;
    for offer in offers {
        // the weight of the most exact matching range applies
        let meets =
            ranges.iter().enumerate().filter_map(|(place, range)| Some((range.exactness(offer)?, place)));
        let Some((exactness, place)) = meets.min_by_key(|(exactness, place)| (3 - exactness, *place)) else {
            continue;
        };
        let rank = (ranges[place].weight, exactness, Reverse(place));
        if rank.0 > 0 && best.is_none_or(|(_, other)| rank > other) {
            best = Some((offer, rank));
        }
    }
    best.map(|(offer, _)| offer).or(offers.first().copied()).unwrap_or_default()
}

/// The weight of an offer, the exactness of its range, and the range's position.
type RangePreference = (u16, u8, Reverse<usize>);

struct Range<'a> {
    media_type: &'a str,
    /// Thousandths, from 0 to 1000.
    weight: u16,
}

impl<'a> Range<'a> {
    fn read(text: &'a str) -> Option<Self> {
        let mut parts = text.split(';').map(str::trim);
        let media_type = parts.next().filter(|it| !it.is_empty())?;
        let weight = parts.find_map(|part| {
            let (name, value) = part.split_once('=')?;
            name.trim().eq_ignore_ascii_case("q").then_some(value.trim())
        });
        Some(Self { media_type, weight: weight.map_or(Some(1000), thousandths)? })
    }

    /// Returns the exactness with which the range names the offer, or `None` if the range does not
    /// match.
    fn exactness(&self, offer: &str) -> Option<u8> {
        if self.media_type.eq_ignore_ascii_case(offer) {
            return Some(2);
        }
        let (kind, _) = offer.split_once('/')?;
        match self.media_type.split_once('/')? {
            ("*", "*") => Some(0),
            (own, "*") if own.eq_ignore_ascii_case(kind) => Some(1),
            _ => None,
        }
    }
}

/// Parses a weight from 0 to 1 with at most three decimals.
fn thousandths(text: &str) -> Option<u16> {
    let (whole, rest) = text.split_once('.').unwrap_or((text, ""));
    if rest.len() > 3 || !rest.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let rest: u16 = format!("{rest:0<3}").parse().ok()?;
    match whole {
        "0" => Some(rest),
        "1" if rest == 0 => Some(1000),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn responds_in_the_preferred_media_type() {
        let cases: &[(&[&str], &str)] = &[
            (&[], "application/json"),
            (&[""], "application/json"),
            (&["*/*"], "application/json"),
            (&["text/csv"], "text/csv"),
            (&["Text/CSV; charset=utf-8"], "text/csv"),
            (&["application/json, text/csv;q=0.1"], "application/json"),
            (&["application/json;q=0.1, text/csv"], "text/csv"),
            (&["application/json;q=0.9, text/csv;q=0.95"], "text/csv"),
            (&["application/json, text/plain, */*"], "application/json"),
            (&["text/csv, */*"], "text/csv"),
            (&["*/*, text/csv"], "text/csv"),
            (&["*/*", "text/csv;q=0"], "application/json"),
            (&["text/csv;q=0"], "application/json"),
            (&["application/json;q=0, */*;q=0.1"], "text/csv"),
            (&["text/*;q=0.5"], "text/csv"),
            (&["text/html, text/csv"], "text/html"),
            (&["text/csv, text/html"], "text/csv"),
            (&["text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"], "text/html"),
            (&["image/png"], "application/json"),
            // invalid weights
            (&["text/csv;q=2"], "application/json"),
            (&["text/csv;q=0.1234"], "application/json"),
            (&["text/csv;q=x"], "application/json"),
            (&["text/csv;q=1.000"], "text/csv"),
        ];
        for (values, expected) in cases {
            let mut headers = HeaderMap::new();
            for value in *values {
                headers.append(header::ACCEPT, value.parse().unwrap());
            }
            let offers = ["application/json", "text/csv", "text/html"];
            assert_eq!(preferred(&headers, &offers), *expected, "{values:?}");
        }
    }
}
