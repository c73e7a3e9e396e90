//! How the domain's types travel to and from PostgreSQL, in its binary formats.

use sqlx::encode::IsNull;
use sqlx::error::BoxDynError;
use sqlx::postgres::{PgArgumentBuffer, PgHasArrayType, PgTypeInfo, PgValueFormat, PgValueRef};
use sqlx::{Decode, Encode, Postgres, Type};

use crate::domain::quantity::Quantity;
use crate::domain::timestamp::{MICROS_PER_SECOND, Timestamp};

/// 2000-01-01T00:00:00Z, from which PostgreSQL counts its microseconds.
const POSTGRES_EPOCH_MICROS: i64 = 946_684_800 * MICROS_PER_SECOND;

impl Type<Postgres> for Timestamp {
    fn type_info() -> PgTypeInfo {
        PgTypeInfo::with_name("timestamptz")
    }
}

impl PgHasArrayType for Timestamp {
    fn array_type_info() -> PgTypeInfo {
        PgTypeInfo::with_name("_timestamptz")
    }
}

impl Encode<'_, Postgres> for Timestamp {
    fn encode_by_ref(&self, buffer: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
        Encode::<Postgres>::encode(self.micros() - POSTGRES_EPOCH_MICROS, buffer)
    }
}

impl<'r> Decode<'r, Postgres> for Timestamp {
    fn decode(value: PgValueRef<'r>) -> Result<Self, BoxDynError> {
        if value.format() != PgValueFormat::Binary {
            return Err("timestamps are read in binary form".into());
        }
        let micros = <i64 as Decode<Postgres>>::decode(value)?;
        let micros = micros.checked_add(POSTGRES_EPOCH_MICROS).ok_or("an infinite timestamp")?;
        Self::from_micros(micros).ok_or_else(|| "a timestamp out of range".into())
    }
}

impl Type<Postgres> for Quantity {
    fn type_info() -> PgTypeInfo {
        PgTypeInfo::with_name("numeric")
    }
}

impl PgHasArrayType for Quantity {
    fn array_type_info() -> PgTypeInfo {
        PgTypeInfo::with_name("_numeric")
    }
}

impl Encode<'_, Postgres> for Quantity {
    /// `numeric` is a count of base-10000 digits, the weight of the first, a sign, the number of
    /// decimal digits after the point, and the digits (PostgreSQL's `numeric_send`).
    fn encode_by_ref(&self, buffer: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
        let nanos = self.nanos();
        let negative = nanos < 0;
        let (units, fraction) = (nanos.unsigned_abs() / 1_000_000_000, nanos.unsigned_abs() % 1_000_000_000);
        // five digits of the integer part and three of the fraction: 19 and 12 decimal places
        let (mut units, mut fraction) = (u64::try_from(units)?, u64::try_from(fraction)? * 1_000);
        let mut digits = [0_u16; 8];
        for digit in digits[..5].iter_mut().rev() {
            *digit = u16::try_from(units % 10_000)?;
            units /= 10_000;
        }
        for digit in digits[5..].iter_mut().rev() {
            *digit = u16::try_from(fraction % 10_000)?;
            fraction /= 10_000;
        }
        let mut scale: u16 = 9;
        let mut rest = nanos.unsigned_abs() % 1_000_000_000;
        while scale > 0 && rest.is_multiple_of(10) {
            rest /= 10;
            scale -= 1;
        }
        let first = digits.iter().position(|digit| *digit != 0).unwrap_or(digits.len());
        let end = digits.iter().rposition(|digit| *digit != 0).map_or(first, |last| last + 1);
        let weight = if first == digits.len() { 0 } else { 4 - i16::try_from(first)? };
        buffer.extend_from_slice(&u16::try_from(end - first)?.to_be_bytes());
        buffer.extend_from_slice(&weight.to_be_bytes());
        buffer.extend_from_slice(&(if negative { 0x4000_u16 } else { 0 }).to_be_bytes());
        buffer.extend_from_slice(&scale.to_be_bytes());
        for digit in &digits[first..end] {
            buffer.extend_from_slice(&digit.to_be_bytes());
        }
        Ok(IsNull::No)
    }
}
