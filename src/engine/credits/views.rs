//! What a subject has, and how it came to have it. Whatever is due by time is carried out before it is
//! looked at, so that an answer never depends on who came by.

use std::collections::BTreeMap;

use serde::Serialize;
use uuid::Uuid;

use super::grants::GrantView;
use super::wallets::{Cashier, Holders, add_holder};
use crate::domain::credits::accounts::{Account, Kind};
use crate::domain::credits::unit::Unit;
use crate::domain::credits::wallet::{State, Wallet};
use crate::domain::environment::Environment;
use crate::domain::gate::standing::Member;
use crate::domain::names::SubjectId;
use crate::domain::quantity::{Quantity, Total};
use crate::domain::timestamp::Timestamp;
use crate::engine::sight::Sight;
use crate::engine::{Engine, EngineError, cursor};
use crate::store::credit_ledger::LedgerRow;
use crate::store::{credit_grants, credit_ledger};

#[derive(Debug, Clone, Serialize)]
pub struct CreditsView {
    pub subject: String,
    pub at: Timestamp,
    pub balances: Vec<BalanceView>,
}

/// What there is of a unit.
#[derive(Debug, Clone, Serialize)]
pub struct BalanceView {
    #[serde(flatten)]
    pub unit: Unit,
    /// What can be burnt now.
    pub balance: Total,
    /// What open reservations hold.
    pub pending: Total,
    /// What is granted and has not taken effect.
    pub upcoming: Total,
    pub expiring: Vec<ExpiringView>,
}

/// What of a balance is lost if it is not used by then.
#[derive(Debug, Clone, Serialize)]
pub struct ExpiringView {
    pub grant: Uuid,
    pub amount: Total,
    pub expires_at: Timestamp,
}

#[derive(Debug, Clone, Serialize)]
pub struct GrantPage {
    pub data: Vec<GrantView>,
    pub next_cursor: Option<String>,
}

#[derive(Debug, Clone, Serialize)]
pub struct LedgerPage {
    pub data: Vec<MovementView>,
    pub next_cursor: Option<String>,
}

/// A movement: an amount, from one account to another.
#[derive(Debug, Clone, Serialize)]
pub struct MovementView {
    pub id: i64,
    pub at: Timestamp,
    pub kind: Kind,
    #[serde(flatten)]
    pub unit: Unit,
    pub amount: Total,
    /// What it does to the balance.
    pub change: Total,
    /// The balance after it.
    pub balance: Total,
    /// Both sides of it, which sum to nothing.
    pub entries: [Entry; 2],
    pub grant: Option<Uuid>,
    pub event: Option<String>,
    pub reservation: Option<String>,
    /// What it is for.
    pub used: Option<Used>,
    /// The movement that it takes back.
    pub refunds: Option<i64>,
    pub reason: Option<String>,
}

#[derive(Debug, Clone, Copy, Serialize)]
pub struct Entry {
    pub account: Account,
    pub amount: Total,
}

#[derive(Debug, Clone, Serialize)]
pub struct Used {
    pub meter: String,
    pub quantity: Quantity,
}

impl From<LedgerRow> for MovementView {
    fn from(row: LedgerRow) -> Self {
        let (debit, credit) = row.kind.accounts();
        let id = |key: Option<Uuid>, id: Option<String>| id.or(key.map(|key| key.to_string()));
        Self {
            id: row.id,
            at: row.at,
            kind: row.kind,
            unit: row.unit,
            amount: row.amount,
            change: row.kind.effect_on(Account::Available, row.amount),
            balance: row.balance,
            entries: [
                Entry { account: debit, amount: Total::default() - row.amount },
                Entry { account: credit, amount: row.amount },
            ],
            grant: row.grant,
            event: id(row.event_key, row.event_id),
            reservation: id(row.reservation, row.reservation_id),
            used: row.meter.zip(row.quantity).map(|(meter, quantity)| Used { meter, quantity }),
            refunds: row.refunds,
            reason: row.reason,
        }
    }
}

fn balances(wallet: &Wallet) -> Vec<BalanceView> {
    let mut by_unit: BTreeMap<&Unit, BalanceView> = BTreeMap::new();
    for purse in wallet.purses() {
        let unit = &purse.grant.unit;
        let shown = by_unit.entry(unit).or_insert_with(|| BalanceView {
            unit: unit.clone(),
            balance: Total::default(),
            pending: Total::default(),
            upcoming: Total::default(),
            expiring: Vec::new(),
        });
        shown.balance = shown.balance + purse.available;
        shown.pending = shown.pending + purse.held;
        if purse.state == State::Upcoming {
            shown.upcoming = shown.upcoming + purse.grant.amount.into();
        }
        if let Some(expires_at) = purse.grant.expires_at.filter(|_| purse.available > Total::default()) {
            shown.expiring.push(ExpiringView { grant: purse.grant.id, amount: purse.available, expires_at });
        }
    }
    let mut shown: Vec<BalanceView> = by_unit.into_values().collect();
    for balance in &mut shown {
        balance.expiring.sort_by_key(|expiring| (expiring.expires_at, expiring.grant));
    }
    shown
}

impl Engine {
    /// A snapshot in which a subject's wallet stands as time has left it, and that is written; the subject's
    /// number, where it has one.
    async fn settled_wallet(
        &self,
        environment: Environment,
        subject: &SubjectId,
    ) -> Result<(Sight, i64, Wallet), EngineError> {
        loop {
            let mut sight = self.sight(environment).await?;
            let path = sight.standing(subject).await?;
            let Some(member) = path.members.first() else { continue };
            let id = member.subject_id;
            // what a default plan would give is shown; it is given at the first contact
            let is_written = sight.is_as_written(member).await?;
            let own =
                Member { subscription: member.subscription.clone().filter(|_| is_written), ..member.clone() };
            if id != 0 && self.looked_at(&mut sight, &own).await?.is_changed() {
                drop(sight);
                self.settle_wallets(environment, vec![id]).await?;
                continue;
            }
            let wallet = self.looked_at(&mut sight, member).await?;
            return Ok((sight, id, wallet));
        }
    }

    /// The wallet of a subject as time has left it.
    async fn looked_at(&self, sight: &mut Sight, member: &Member) -> Result<Wallet, EngineError> {
        let mut holders = Holders::new();
        add_holder(&mut holders, member);
        let terms = std::sync::Arc::clone(&sight.terms);
        let (environment, began) = (sight.environment, sight.now);
        let cashier = Cashier { environment, terms: &terms, clock: &self.inner.clock, began };
        let wallets = cashier.look(&mut sight.snapshot, &holders).await?;
        let none = || Wallet::new(member.subject_id, None, Vec::new());
        Ok(wallets.into_values().next().unwrap_or_else(none))
    }

    /// What a subject has now.
    pub async fn credits(
        &self,
        environment: Environment,
        subject: &SubjectId,
    ) -> Result<CreditsView, EngineError> {
        let (sight, _, wallet) = self.settled_wallet(environment, subject).await?;
        Ok(CreditsView { subject: subject.to_string(), at: sight.now, balances: balances(&wallet) })
    }

    /// A page of what a subject was granted, the latest first.
    pub async fn list_grants(
        &self,
        environment: Environment,
        subject: &SubjectId,
        cursor: Option<&str>,
        limit: u32,
    ) -> Result<GrantPage, EngineError> {
        let before = cursor.map(cursor::read).transpose()?;
        let (mut sight, id, _) = self.settled_wallet(environment, subject).await?;
        let mut rows = credit_grants::list(&mut sight.snapshot, id, before, limit + 1).await?;
        let more = rows.len() > limit as usize;
        rows.truncate(limit as usize);
        let next_cursor =
            rows.last().filter(|_| more).map(|row| cursor::write(row.grant.created_at, row.grant.id));
        Ok(GrantPage { data: rows.iter().map(|row| GrantView::of(subject, row)).collect(), next_cursor })
    }

    /// A page of what moved, the latest first.
    pub async fn credit_ledger(
        &self,
        environment: Environment,
        subject: &SubjectId,
        cursor: Option<&str>,
        limit: u32,
    ) -> Result<LedgerPage, EngineError> {
        let before = cursor::read_number(cursor)?;
        let (mut sight, id, _) = self.settled_wallet(environment, subject).await?;
        let mut rows = credit_ledger::list(&mut sight.snapshot, environment, id, before, limit + 1).await?;
        let more = rows.len() > limit as usize;
        rows.truncate(limit as usize);
        let next_cursor = rows.last().filter(|_| more).map(|row| row.id.to_string());
        Ok(LedgerPage { data: rows.into_iter().map(MovementView::from).collect(), next_cursor })
    }
}
