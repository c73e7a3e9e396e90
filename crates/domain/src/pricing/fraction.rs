//! Exact fractions. Machine integers hold nearly all of them; larger ones use integers of any length.

use std::cmp::Ordering;
use std::fmt;
use std::ops::{Add, Div, Mul, Neg, Sub};
use std::str::FromStr;

use num_bigint::BigInt;
use num_rational::{BigRational, ParseRatioError, Ratio};
use num_traits::{CheckedAdd, CheckedDiv, CheckedMul, CheckedSub, Pow, Signed, ToPrimitive, Zero};

/// The most bits of the numerator or denominator of a small fraction: few enough that rounding cannot
/// overflow.
const SMALL_BITS: u32 = 120;

/// A reduced fraction. It is large only if it does not fit a small one, so equal fractions are equal values.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Fraction {
    Small(Ratio<i128>),
    Large(BigRational),
}

impl Fraction {
    pub(super) fn new(numerator: i128, denominator: i64) -> Self {
        let denominator = i128::from(denominator);
        if numerator % denominator == 0 {
            return Self::from(numerator / denominator);
        }
        small_enough(Ratio::new(numerator, denominator))
            .unwrap_or_else(|| Self::of(BigRational::new(BigInt::from(numerator), BigInt::from(denominator))))
    }

    /// Builds a fraction from integers of any length, small if it fits.
    pub(super) fn of(fraction: BigRational) -> Self {
        let halves = (fraction.numer().to_i128(), fraction.denom().to_i128());
        match halves {
            (Some(numerator), Some(denominator)) => {
                small_enough(Ratio::new_raw(numerator, denominator)).unwrap_or(Self::Large(fraction))
            }
            _ => Self::Large(fraction),
        }
    }

    /// Returns a power of ten.
    pub(super) fn ten_to(power: i32) -> Self {
        let small = 10_i128.checked_pow(power.unsigned_abs()).map(Ratio::from_integer);
        let small = small.map(|ten| if power < 0 { ten.recip() } else { ten }).and_then(small_enough);
        small.unwrap_or_else(|| Self::of(Pow::pow(BigRational::from_integer(BigInt::from(10)), power)))
    }

    fn large(&self) -> BigRational {
        match self {
            Self::Small(small) => BigRational::new_raw((*small.numer()).into(), (*small.denom()).into()),
            Self::Large(large) => large.clone(),
        }
    }

    /// Applies an operation to machine integers if both operands and the result fit. Otherwise applies
    /// it to integers of any length.
    fn with(
        &self,
        other: &Self,
        by_machine: impl Fn(&Ratio<i128>, &Ratio<i128>) -> Option<Ratio<i128>>,
        by_any: impl Fn(BigRational, BigRational) -> BigRational,
    ) -> Self {
        match (self, other) {
            (Self::Small(a), Self::Small(b)) => by_machine(a, b).and_then(small_enough),
            _ => None,
        }
        .unwrap_or_else(|| Self::of(by_any(self.large(), other.large())))
    }

    pub(super) fn is_zero(&self) -> bool {
        matches!(self, Self::Small(small) if small.is_zero())
    }

    pub(super) fn is_negative(&self) -> bool {
        match self {
            Self::Small(small) => small.is_negative(),
            Self::Large(large) => large.is_negative(),
        }
    }

    pub(super) fn is_integer(&self) -> bool {
        match self {
            Self::Small(small) => small.is_integer(),
            Self::Large(large) => large.is_integer(),
        }
    }

    /// Returns the number of fractional digits of the decimal; none if the decimal is endless.
    pub(super) fn decimals(&self) -> Option<u32> {
        let mut rest = match self {
            Self::Small(small) => (*small.denom()).into(),
            Self::Large(large) => large.denom().clone(),
        };
        let mut count = |factor: i32| {
            let mut times = 0;
            while (&rest % factor).is_zero() {
                rest /= factor;
                times += 1;
            }
            times
        };
        let digits = count(2).max(count(5));
        (rest == BigInt::from(1)).then_some(digits)
    }

    pub(super) fn abs(&self) -> Self {
        if self.is_negative() { -self } else { self.clone() }
    }

    pub(super) fn ceil(&self) -> Self {
        match self {
            Self::Small(small) => Self::Small(small.ceil()),
            Self::Large(large) => Self::of(large.ceil()),
        }
    }

    pub(super) fn floor(&self) -> Self {
        -&(-self).ceil()
    }

    /// Rounds half away from zero.
    pub(super) fn round(&self) -> BigInt {
        match self {
            Self::Small(small) => small.round().to_integer().into(),
            Self::Large(large) => large.round().to_integer(),
        }
    }

    /// Drops the fractional part.
    pub(super) fn to_integer(&self) -> BigInt {
        match self {
            Self::Small(small) => small.to_integer().into(),
            Self::Large(large) => large.to_integer(),
        }
    }
}

fn small_enough(fraction: Ratio<i128>) -> Option<Fraction> {
    let is_small = |half: &i128| half.unsigned_abs() >> SMALL_BITS == 0;
    (is_small(fraction.numer()) && is_small(fraction.denom())).then_some(Fraction::Small(fraction))
}

/// Applies an operation to integers directly: reducing the result would take longer than everything else.
fn integers(
    a: &Ratio<i128>,
    b: &Ratio<i128>,
    of_integers: impl Fn(i128, i128) -> Option<i128>,
) -> Option<Ratio<i128>> {
    let both = a.is_integer() && b.is_integer();
    both.then(|| of_integers(*a.numer(), *b.numer()).map(Ratio::from_integer)).flatten()
}

impl From<i128> for Fraction {
    fn from(integer: i128) -> Self {
        small_enough(Ratio::from_integer(integer))
            .unwrap_or_else(|| Self::Large(BigRational::from_integer(integer.into())))
    }
}

impl From<BigInt> for Fraction {
    fn from(integer: BigInt) -> Self {
        Self::of(BigRational::from_integer(integer))
    }
}

impl Add for &Fraction {
    type Output = Fraction;

    fn add(self, other: Self) -> Fraction {
        let small =
            |a: &Ratio<i128>, b: &Ratio<i128>| integers(a, b, i128::checked_add).or_else(|| a.checked_add(b));
        self.with(other, small, |a, b| a + b)
    }
}

impl Sub for &Fraction {
    type Output = Fraction;

    fn sub(self, other: Self) -> Fraction {
        let small =
            |a: &Ratio<i128>, b: &Ratio<i128>| integers(a, b, i128::checked_sub).or_else(|| a.checked_sub(b));
        self.with(other, small, |a, b| a - b)
    }
}

impl Mul for &Fraction {
    type Output = Fraction;

    fn mul(self, other: Self) -> Fraction {
        let small =
            |a: &Ratio<i128>, b: &Ratio<i128>| integers(a, b, i128::checked_mul).or_else(|| a.checked_mul(b));
        self.with(other, small, |a, b| a * b)
    }
}

/// Divides by a fraction that must not be zero.
impl Div for &Fraction {
    type Output = Fraction;

    fn div(self, other: Self) -> Fraction {
        self.with(other, CheckedDiv::checked_div, |a, b| a / b)
    }
}

impl Neg for &Fraction {
    type Output = Fraction;

    fn neg(self) -> Fraction {
        match self {
            Fraction::Small(small) => Fraction::Small(-small),
            Fraction::Large(large) => Fraction::Large(-large),
        }
    }
}

impl PartialOrd for Fraction {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Fraction {
    fn cmp(&self, other: &Self) -> Ordering {
        match (self, other) {
            (Self::Small(a), Self::Small(b)) if a.is_integer() && b.is_integer() => a.numer().cmp(b.numer()),
            (Self::Small(a), Self::Small(b)) => a.cmp(b),
            _ => self.large().cmp(&other.large()),
        }
    }
}

/// Writes `4` or `10/3`.
impl fmt::Display for Fraction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Small(small) => small.fmt(f),
            Self::Large(large) => large.fmt(f),
        }
    }
}

impl FromStr for Fraction {
    type Err = ParseRatioError;

    fn from_str(text: &str) -> Result<Self, ParseRatioError> {
        text.parse().map(Self::of)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Returns small fractions, some of which become large, and large fractions.
    fn fraction() -> impl Strategy<Value = BigRational> {
        let numerator = (any::<i128>(), 0_u32..127, 0_usize..8);
        (numerator, any::<u64>(), prop::bool::ANY).prop_map(
            |((digits, less, more), denominator, is_integer)| {
                let numerator = BigInt::from(digits >> less) << (8 * more);
                let denominator = if is_integer { 1 } else { denominator.max(1) };
                BigRational::new(numerator, denominator.into())
            },
        )
    }

    proptest! {
        #[test]
        fn small_and_large_representations_are_equal(a in fraction(), b in fraction()) {
            let (small_a, small_b) = (Fraction::of(a.clone()), Fraction::of(b.clone()));
            prop_assert_eq!(small_a.cmp(&small_b), a.cmp(&b));
            prop_assert_eq!(&small_a + &small_b, Fraction::of(&a + &b));
            prop_assert_eq!(&small_a - &small_b, Fraction::of(&a - &b));
            prop_assert_eq!(&small_a * &small_b, Fraction::of(&a * &b));
            if !b.is_zero() {
                prop_assert_eq!(&small_a / &small_b, Fraction::of(&a / &b));
            }
            prop_assert_eq!(-&small_a, Fraction::of(-&a));
            prop_assert_eq!(small_a.abs(), Fraction::of(a.abs()));
            prop_assert_eq!(small_a.ceil(), Fraction::of(a.ceil()));
            prop_assert_eq!(small_a.floor(), Fraction::of(a.floor()));
            prop_assert_eq!(small_a.round(), a.round().to_integer());
            prop_assert_eq!(small_a.to_integer(), a.to_integer());
            prop_assert_eq!(small_a.is_integer(), a.is_integer());
            let decimals = small_a.decimals().map(u32::cast_signed);
            prop_assert!(decimals.is_none_or(|digits| (&small_a * &Fraction::ten_to(digits)).is_integer()));
            prop_assert_eq!(small_a.is_zero(), a.is_zero());
            prop_assert_eq!(small_a.is_negative(), a.is_negative());
            prop_assert_eq!(small_a.to_string().parse::<Fraction>().unwrap(), small_a);
        }

        #[test]
        fn a_quotient_of_integers_is_reduced(numerator in any::<i128>(), denominator in 1_i64..) {
            let whole = BigRational::new(numerator.into(), denominator.into());
            prop_assert_eq!(Fraction::new(numerator, denominator), Fraction::of(whole));
        }
    }

    #[test]
    fn fractions_change_representation_when_they_stop_or_start_to_fit() {
        let huge = &Fraction::from(i128::MAX) * &Fraction::from(i128::MAX);
        assert!(matches!(huge, Fraction::Large(_)));
        let back = &huge / &Fraction::from(i128::MAX);
        assert_eq!(back, Fraction::from(i128::MAX));
        assert!(matches!(Fraction::from(1 << 119), Fraction::Small(_)));
        assert!(matches!(&Fraction::from(1 << 119) + &Fraction::from(1 << 119), Fraction::Large(_)));
        assert!(matches!(&back / &back, Fraction::Small(_)));
    }
}
