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

/// Writes the place of what was made at a time, in a list that is ordered by that and a key.
pub(crate) fn write(created_at: Timestamp, key: Uuid) -> String {
    encode(&[&created_at.micros().to_be_bytes(), key.as_bytes()])
}

pub(crate) fn read(cursor: &str) -> Result<(Timestamp, Uuid), EngineError> {
    let bytes = decode::<24>(cursor)?;
    let (micros, key) = bytes.split_first_chunk::<8>().ok_or_else(unknown)?;
    let at = Timestamp::from_micros(i64::from_be_bytes(*micros)).ok_or_else(unknown)?;
    Ok((at, Uuid::from_slice(key).map_err(|_| unknown())?))
}

/// Encodes the parts of a place.
pub(crate) fn encode(parts: &[&[u8]]) -> String {
    URL_SAFE_NO_PAD.encode(parts.concat())
}

/// Decodes a place of as many bytes.
pub(crate) fn decode<const BYTES: usize>(cursor: &str) -> Result<[u8; BYTES], EngineError> {
    let bytes = URL_SAFE_NO_PAD.decode(cursor).ok();
    bytes.and_then(|bytes| bytes.try_into().ok()).ok_or_else(unknown)
}

/// The number before which a page begins, in a list that is ordered by numbers, the latest first.
pub(crate) fn read_number(cursor: Option<&str>) -> Result<i64, EngineError> {
    cursor.map_or(Ok(i64::MAX), |cursor| cursor.parse::<i64>().ok().filter(|n| *n > 0).ok_or_else(unknown))
}
