//! Names that callers choose, parsed once at the boundary.

use std::fmt;

use serde::{Serialize, Serializer};

use super::limits::{KEY_CHARS_MAX, NAME_CHARS_MAX};
use crate::received::received;

/// The reason why a text is not a valid name: a stable code, and the rule that it breaks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{detail}")]
pub struct BadName {
    pub code: &'static str,
    pub detail: String,
}

fn bad(code: &'static str, detail: impl Into<String>) -> BadName {
    BadName { code, detail: detail.into() }
}

/// Checks a free text of 1 to 255 characters without NUL, which PostgreSQL cannot store.
fn free_text(text: &str) -> Result<(), BadName> {
    if text.is_empty() {
        return Err(bad("empty", "must not be empty"));
    }
    // a character has at least one byte, so most names need no counting
    if text.len() > NAME_CHARS_MAX && text.chars().count() > NAME_CHARS_MAX {
        return Err(bad(
            "too_long",
            format!("must have at most {NAME_CHARS_MAX} characters; got {}", text.chars().count()),
        ));
    }
    if text.contains('\0') {
        return Err(bad("nul_character", "must not contain the NUL character"));
    }
    Ok(())
}

/// Checks a key of the catalog: 1 to 100 of `a-z A-Z 0-9 _ - . :`.
fn key(text: &str) -> Result<(), BadName> {
    if text.is_empty() {
        return Err(bad("empty", "must not be empty"));
    }
    if text.len() > KEY_CHARS_MAX {
        return Err(bad(
            "too_long",
            format!("must have at most {KEY_CHARS_MAX} characters; got {}", text.chars().count()),
        ));
    }
    if !text.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-.:".contains(&b)) {
        let allowed = "must consist of letters, digits, `_`, `-`, `.` and `:`";
        return Err(bad("invalid_key", format!("{allowed}; got {}", received(text))));
    }
    Ok(())
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $check:path) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(String);

        impl $name {
            /// Checks and wraps a name.
            pub fn parse(text: impl Into<String>) -> Result<Self, BadName> {
                let text = text.into();
                $check(&text)?;
                Ok(Self(text))
            }

            pub fn as_str(&self) -> &str {
                &self.0
            }

            pub fn into_string(self) -> String {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }
    };
}

name!(
    /// The application's own id of a user: an end user, team, org, device or anonymous visitor.
    SubjectId,
    free_text
);
name!(
    /// The kind of usage that an event reports.
    EventName,
    free_text
);
name!(
    /// The caller's id of an event, unique within its source.
    EventId,
    free_text
);
name!(
    /// The key of a meter.
    MeterKey,
    key
);
name!(
    /// The key of a plan.
    PlanKey,
    key
);
name!(
    /// The key of a limit or a price within its plan.
    ItemKey,
    key
);
name!(
    /// The name of a property of events, for dimensions and values.
    PropertyName,
    free_text
);
name!(
    /// A customer of the billing provider.
    StripeCustomerId,
    free_text
);

/// The origin of events, within which ids are unique. The default is empty.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize)]
#[serde(transparent)]
pub struct EventSource(String);

impl EventSource {
    /// Checks and wraps a source. An empty text is allowed.
    pub fn parse(text: impl Into<String>) -> Result<Self, BadName> {
        let text = text.into();
        if !text.is_empty() {
            free_text(&text)?;
        }
        Ok(Self(text))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_lengths_are_counted_in_characters() {
        assert!(SubjectId::parse("ü".repeat(255)).is_ok());
        assert_eq!(SubjectId::parse("ü".repeat(256)).unwrap_err().code, "too_long");
        assert_eq!(SubjectId::parse("").unwrap_err().code, "empty");
        assert_eq!(EventId::parse("a\0b").unwrap_err().code, "nul_character");
        assert_eq!(MeterKey::parse("ai tokens").unwrap_err().code, "invalid_key");
        assert!(EventSource::parse("").is_ok());
    }
}
