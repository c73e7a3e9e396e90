//! Conversions between the domain's types and PostgreSQL's binary formats.

use sqlx::encode::IsNull;
use sqlx::error::BoxDynError;
use sqlx::postgres::{PgArgumentBuffer, PgHasArrayType, PgRow, PgTypeInfo, PgValueFormat, PgValueRef};
use sqlx::{Decode, Encode, FromRow, Postgres, Row, Type};

use crate::base::environment::Environment;
use crate::base::quantity::{Quantity, Total};
use crate::base::timestamp::{MICROS_PER_SECOND, Timestamp};
use crate::credits::accounts::MovementKind;
use crate::credits::unit::Unit;

/// 2000-01-01T00:00:00Z, the origin of PostgreSQL's timestamps.
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
            return Err("timestamps must be in binary format".into());
        }
        let micros = <i64 as Decode<Postgres>>::decode(value)?;
        let micros =
            micros.checked_add(POSTGRES_EPOCH_MICROS).ok_or("a timestamp from the database is infinite")?;
        Self::from_micros(micros).ok_or_else(|| "a timestamp from the database is out of range".into())
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
    fn encode_by_ref(&self, buffer: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
        encode_nanos(self.nanos(), buffer)
    }
}

impl Type<Postgres> for Total {
    fn type_info() -> PgTypeInfo {
        PgTypeInfo::with_name("numeric")
    }
}

impl PgHasArrayType for Total {
    fn array_type_info() -> PgTypeInfo {
        PgTypeInfo::with_name("_numeric")
    }
}

impl Encode<'_, Postgres> for Total {
    fn encode_by_ref(&self, buffer: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
        encode_nanos(self.nanos(), buffer)
    }
}

impl<'r> Decode<'r, Postgres> for Total {
    fn decode(value: PgValueRef<'r>) -> Result<Self, BoxDynError> {
        if value.format() != PgValueFormat::Binary {
            return Err("quantities must be in binary format".into());
        }
        decode_nanos(value.as_bytes()?).map(Self::from_nanos)
    }
}

impl<'r> Decode<'r, Postgres> for Quantity {
    fn decode(value: PgValueRef<'r>) -> Result<Self, BoxDynError> {
        let total = <Total as Decode<Postgres>>::decode(value)?;
        total.quantity().ok_or_else(|| "a quantity from the database is out of range".into())
    }
}

/// Reads a unit of credits from the columns `unit` and `unit_key`.
impl FromRow<'_, PgRow> for Unit {
    fn from_row(row: &PgRow) -> sqlx::Result<Self> {
        let (kind, key): (String, String) = (row.try_get("unit")?, row.try_get("unit_key")?);
        let unreadable =
            || sqlx::Error::Decode(format!("a stored credit unit is not valid: {kind} {key}").into());
        Self::from_kept(&kind, &key).ok_or_else(unreadable)
    }
}

impl TryFrom<i16> for Environment {
    type Error = &'static str;

    fn try_from(code: i16) -> Result<Self, &'static str> {
        Self::ALL
            .into_iter()
            .find(|environment| environment.code() == code)
            .ok_or("a stored environment is unknown")
    }
}

impl TryFrom<String> for MovementKind {
    type Error = String;

    fn try_from(word: String) -> Result<Self, String> {
        Self::from_word(&word).ok_or_else(|| format!("a stored kind of movement is unknown: {word}"))
    }
}

/// The most base-10000 digits of the integer part and of the fraction of 128 bits of nano-units.
const INTEGER_GROUPS: usize = 8;
const FRACTION_GROUPS: usize = 3;
const NANOS: u128 = 1_000_000_000;

/// Encodes a `numeric` as PostgreSQL's `numeric_send` does: number of base-10000 digits, weight of
/// the first digit, sign, number of decimal digits after the point, then the digits.
fn encode_nanos(nanos: i128, buffer: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
    let magnitude = nanos.unsigned_abs();
    // nine decimal places take three groups, which have twelve
    let (mut units, mut fraction) = (magnitude / NANOS, (magnitude % NANOS) * 1_000);
    let mut digits = [0_u16; INTEGER_GROUPS + FRACTION_GROUPS];
    for digit in digits[..INTEGER_GROUPS].iter_mut().rev() {
        *digit = u16::try_from(units % 10_000)?;
        units /= 10_000;
    }
    for digit in digits[INTEGER_GROUPS..].iter_mut().rev() {
        *digit = u16::try_from(fraction % 10_000)?;
        fraction /= 10_000;
    }
    let mut scale: u16 = 9;
    let mut rest = magnitude % NANOS;
    while scale > 0 && rest.is_multiple_of(10) {
        rest /= 10;
        scale -= 1;
    }
    let first = digits.iter().position(|digit| *digit != 0).unwrap_or(digits.len());
    let end = digits.iter().rposition(|digit| *digit != 0).map_or(first, |last| last + 1);
    let weight =
        if first == digits.len() { 0 } else { i16::try_from(INTEGER_GROUPS - 1)? - i16::try_from(first)? };
    buffer.extend_from_slice(&u16::try_from(end - first)?.to_be_bytes());
    buffer.extend_from_slice(&weight.to_be_bytes());
    buffer.extend_from_slice(&(if nanos < 0 { 0x4000_u16 } else { 0 }).to_be_bytes());
    buffer.extend_from_slice(&scale.to_be_bytes());
    for digit in &digits[first..end] {
        buffer.extend_from_slice(&digit.to_be_bytes());
    }
    Ok(IsNull::No)
}

fn decode_nanos(bytes: &[u8]) -> Result<i128, BoxDynError> {
    let mut words = bytes.chunks_exact(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]]));
    let mut word = || words.next().ok_or("a numeric from the database ends early");
    let (count, weight, sign, _scale) = (word()?, word()?.cast_signed(), word()?, word()?);
    let negative = match sign {
        0 => false,
        0x4000 => true,
        _ => return Err("a numeric from the database is not a finite number".into()),
    };
    // in thousandths of nano-units, the unit of the last group
    let mut magnitude: i128 = 0;
    for place in 0..i32::from(count) {
        let power = i32::from(weight) - place + i32::try_from(FRACTION_GROUPS)?;
        let digit = i128::from(word()?);
        let Ok(power) = u32::try_from(power) else {
            return Err("a numeric from the database has more than nine decimal places".into());
        };
        let part = 10_000_i128.checked_pow(power).and_then(|unit| unit.checked_mul(digit));
        magnitude = part
            .and_then(|part| magnitude.checked_add(part))
            .ok_or("a numeric from the database is out of range")?;
    }
    let nanos = magnitude / 1_000;
    Ok(if negative { -nanos } else { nanos })
}
