//! Accounts of credits, and the movements between them. A movement transfers an amount from one account to
//! another, so the sum of all accounts is always zero. A balance is the sum of its movements.

use serde::Serialize;
use uuid::Uuid;

use super::unit::Unit;
use crate::base::names::MeterKey;
use crate::base::quantity::{Quantity, Total};
use crate::base::timestamp::Timestamp;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LedgerAccount {
    /// The source of grants; its balance is negative.
    Issued,
    Available,
    /// The amount held for open reservations.
    Held,
    Spent,
    Expired,
    Voided,
    /// The amount in transit from one period of a recurring grant to the next.
    Carried,
    /// The source of usage above a quota that no credits covered, in units of its meter. The other side is
    /// `Uncovered`.
    Tracked,
    Uncovered,
}

impl LedgerAccount {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Issued => "issued",
            Self::Available => "available",
            Self::Held => "held",
            Self::Spent => "spent",
            Self::Expired => "expired",
            Self::Voided => "voided",
            Self::Carried => "carried",
            Self::Tracked => "tracked",
            Self::Uncovered => "uncovered",
        }
    }
}

/// The kind of a movement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum MovementKind {
    Grant,
    Hold,
    Release,
    /// A spend of held credits.
    Settle,
    /// A spend of available credits, for usage without a hold.
    Spend,
    Refund,
    Expire,
    Void,
    CarryOut,
    CarryIn,
    Uncovered,
}

impl MovementKind {
    pub const WORDS: [(&'static str, Self); 11] = [
        ("grant", Self::Grant),
        ("hold", Self::Hold),
        ("release", Self::Release),
        ("settle", Self::Settle),
        ("spend", Self::Spend),
        ("refund", Self::Refund),
        ("expire", Self::Expire),
        ("void", Self::Void),
        ("carry_out", Self::CarryOut),
        ("carry_in", Self::CarryIn),
        ("uncovered", Self::Uncovered),
    ];

    pub fn as_str(self) -> &'static str {
        Self::WORDS.iter().find(|(_, kind)| *kind == self).map_or("", |(word, _)| word)
    }

    pub fn from_word(word: &str) -> Option<Self> {
        Self::WORDS.iter().find(|(known, _)| *known == word).map(|(_, kind)| *kind)
    }

    /// Returns the source account and the target account.
    pub fn accounts(self) -> (LedgerAccount, LedgerAccount) {
        match self {
            Self::Grant => (LedgerAccount::Issued, LedgerAccount::Available),
            Self::Hold => (LedgerAccount::Available, LedgerAccount::Held),
            Self::Release => (LedgerAccount::Held, LedgerAccount::Available),
            Self::Settle => (LedgerAccount::Held, LedgerAccount::Spent),
            Self::Spend => (LedgerAccount::Available, LedgerAccount::Spent),
            Self::Refund => (LedgerAccount::Spent, LedgerAccount::Available),
            Self::Expire => (LedgerAccount::Available, LedgerAccount::Expired),
            Self::Void => (LedgerAccount::Available, LedgerAccount::Voided),
            Self::CarryOut => (LedgerAccount::Available, LedgerAccount::Carried),
            Self::CarryIn => (LedgerAccount::Carried, LedgerAccount::Available),
            Self::Uncovered => (LedgerAccount::Tracked, LedgerAccount::Uncovered),
        }
    }

    /// Returns the change of an account by a movement of `amount`.
    pub fn effect_on(self, account: LedgerAccount, amount: Total) -> Total {
        let (from, to) = self.accounts();
        if account == to {
            amount
        } else if account == from {
            Total::default() - amount
        } else {
            Total::default()
        }
    }
}

/// The cause of a movement, apart from its grant.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Cause {
    pub event: Option<Uuid>,
    pub reservation: Option<Uuid>,
    /// The meter and quantity that the movement pays for.
    pub used: Option<(MeterKey, Quantity)>,
    /// The id of the movement that this one reverses.
    pub refunds: Option<i64>,
    pub reason: Option<String>,
}

/// One row of the ledger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Movement {
    pub kind: MovementKind,
    /// The grant; none for usage that no grant covered.
    pub grant: Option<Uuid>,
    pub unit: Unit,
    pub amount: Total,
    pub at: Timestamp,
    /// The available balance of the unit after the movement.
    pub balance: Total,
    pub cause: Cause,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_movement_sums_to_zero_over_all_accounts() {
        use LedgerAccount::{Available, Carried, Expired, Held, Issued, Spent, Tracked, Uncovered, Voided};
        let accounts = [Issued, Available, Held, Spent, Expired, Voided, Carried, Tracked, Uncovered];
        for (word, kind) in MovementKind::WORDS {
            let effects = accounts.map(|account| kind.effect_on(account, Total::from(5)));
            let sum = effects.iter().fold(Total::default(), |sum, effect| sum + *effect);
            assert_eq!(sum, Total::default(), "{word}");
            assert_eq!(effects.iter().filter(|effect| **effect != Total::default()).count(), 2, "{word}");
            assert_eq!((MovementKind::from_word(word), kind.as_str()), (Some(kind), word));
        }
    }
}
