//! Cursors of lists: where a page ends, as text that says nothing to the caller.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use uuid::Uuid;

use super::EngineError;
use metergate_domain::base::fields::Violation;
use metergate_domain::base::timestamp::Timestamp;

pub fn unknown() -> EngineError {
    EngineError::invalid(Violation::new("invalid_cursor", "is none that a list answered").under("cursor"))
}

/// The place of what was made at a time, in a list that is ordered by that and a key.
pub(crate) fn write(created_at: Timestamp, key: Uuid) -> String {
    let mut bytes = Vec::with_capacity(24);
    bytes.extend(created_at.micros().to_be_bytes());
    bytes.extend(key.as_bytes());
    URL_SAFE_NO_PAD.encode(bytes)
}

pub(crate) fn read(cursor: &str) -> Result<(Timestamp, Uuid), EngineError> {
    let read = || {
        let bytes: [u8; 24] = URL_SAFE_NO_PAD.decode(cursor).ok()?.try_into().ok()?;
        let (micros, key) = bytes.split_first_chunk::<8>()?;
        Some((Timestamp::from_micros(i64::from_be_bytes(*micros))?, Uuid::from_slice(key).ok()?))
    };
    read().ok_or_else(unknown)
}

/// The number before which a page begins, in a list that is ordered by numbers, the latest first.
pub(crate) fn read_number(cursor: Option<&str>) -> Result<i64, EngineError> {
    cursor.map_or(Ok(i64::MAX), |cursor| cursor.parse::<i64>().ok().filter(|n| *n > 0).ok_or_else(unknown))
}
