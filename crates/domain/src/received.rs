//! Received values in error messages.

use crate::base::limits::RECEIVED_CHARS_MAX;

/// Quotes a received text for an error message, truncated to [`RECEIVED_CHARS_MAX`] characters.
pub fn received(text: &str) -> String {
    match text.char_indices().nth(RECEIVED_CHARS_MAX) {
        None => format!("`{text}`"),
        Some((end, _)) => format!("`{}…`", &text[..end]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn received_values_are_truncated() {
        assert_eq!(received("gbp"), "`gbp`");
        assert_eq!(received(&"é".repeat(RECEIVED_CHARS_MAX)).chars().count(), RECEIVED_CHARS_MAX + 2);
        assert_eq!(received(&"é".repeat(10_000)).chars().count(), RECEIVED_CHARS_MAX + 3);
    }
}
