//! Cursors of lists: the position of the last row of a page, as text that is opaque to clients.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::engine::error::EngineError;
use metergate_domain::base::Violation;

/// Returns the error for a cursor that no list returned.
pub fn unknown() -> EngineError {
    let detail = "must be the `next_cursor` of the previous page of the same list";
    EngineError::invalid(Violation::new("invalid_cursor", detail).under("cursor"))
}

/// Encodes the position of a row in the order of its list.
pub fn write(place: &impl Serialize) -> String {
    // numbers, times and texts always serialise
    URL_SAFE_NO_PAD.encode(serde_json::to_vec(place).unwrap_or_default())
}

/// Decodes the position after which a page begins.
pub fn read<T: DeserializeOwned>(cursor: &str) -> Result<T, EngineError> {
    let bytes = URL_SAFE_NO_PAD.decode(cursor).map_err(|_| unknown())?;
    serde_json::from_slice(&bytes).map_err(|_| unknown())
}

#[cfg(test)]
mod tests {
    use super::*;
    use metergate_domain::base::Timestamp;
    use uuid::Uuid;

    #[test]
    fn cursors_decode_to_the_encoded_position() {
        let place = (Timestamp::from_micros(1_795_860_000_123_456).unwrap(), Uuid::from_u128(7));
        assert_eq!(read::<(Timestamp, Uuid)>(&write(&place)).unwrap(), place);
        for bad in ["", "x", "17", &write(&"17"), &write(&(1, 2))] {
            assert!(read::<i64>(bad).is_err(), "{bad}");
        }
        assert_eq!(read::<i64>(&write(&17)).unwrap(), 17);
    }
}
