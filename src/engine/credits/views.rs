//! The credits of a subject and their history. Due changes are applied before a read, so an answer never
//! depends on earlier readers.

use std::collections::BTreeMap;

use serde::Serialize;
use uuid::Uuid;

use super::grants::GrantView;
use super::wallets::{HolderSubscriptions, WalletLoader, add_holder};
use crate::engine::error::EngineError;
use crate::engine::page::{Page, PageRequest};
use crate::engine::services::Engine;
use crate::engine::snapshot::ReadSnapshot;
use crate::store::credits::ledger::LedgerRow;
use crate::store::credits::{grants, ledger};
use metergate_domain::base::names::SubjectId;
use metergate_domain::base::{Environment, Quantity, Timestamp, Total};
use metergate_domain::credits::wallet::{GrantState, Wallet};
use metergate_domain::credits::{LedgerAccount, MovementKind, Unit};
use metergate_domain::gate::PathSubject;

#[derive(Debug, Clone, Serialize)]
pub struct CreditsView {
    pub subject: String,
    pub at: Timestamp,
    pub balances: Vec<BalanceView>,
}

/// The balance of a unit.
#[derive(Debug, Clone, Serialize)]
pub struct BalanceView {
    #[serde(flatten)]
    pub unit: Unit,
    /// The amount that can be burnt now.
    pub balance: Total,
    /// The amount that open reservations hold.
    pub pending: Total,
    /// The amount of grants that have not taken effect.
    pub upcoming: Total,
    pub expiring: Vec<ExpiringView>,
}

/// A part of a balance that expires.
#[derive(Debug, Clone, Serialize)]
pub struct ExpiringView {
    pub grant: Uuid,
    pub amount: Total,
    pub expires_at: Timestamp,
}

/// A movement of an amount from one account to another.
#[derive(Debug, Clone, Serialize)]
pub struct MovementView {
    pub id: i64,
    pub at: Timestamp,
    pub kind: MovementKind,
    #[serde(flatten)]
    pub unit: Unit,
    pub amount: Total,
    /// The change of the balance.
    pub change: Total,
    /// The balance after the movement.
    pub balance: Total,
    /// The entries of both accounts, which sum to zero.
    pub entries: [LedgerEntry; 2],
    pub grant: Option<Uuid>,
    pub event: Option<String>,
    pub reservation: Option<String>,
    /// The usage that the movement pays for.
    pub used: Option<UsedQuantity>,
    /// The id of the movement that this one reverses.
    pub refunds: Option<i64>,
    pub reason: Option<String>,
}

#[derive(Debug, Clone, Copy, Serialize)]
pub struct LedgerEntry {
    pub account: LedgerAccount,
    pub amount: Total,
}

#[derive(Debug, Clone, Serialize)]
pub struct UsedQuantity {
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
            change: row.kind.effect_on(LedgerAccount::Available, row.amount),
            balance: row.balance,
            entries: [
                LedgerEntry { account: debit, amount: Total::default() - row.amount },
                LedgerEntry { account: credit, amount: row.amount },
            ],
            grant: row.grant,
            event: id(row.event_key, row.event_id),
            reservation: id(row.reservation, row.reservation_id),
            used: row.meter.zip(row.quantity).map(|(meter, quantity)| UsedQuantity { meter, quantity }),
            refunds: row.refunds,
            reason: row.reason,
        }
    }
}

fn balances(wallet: &Wallet) -> Vec<BalanceView> {
    let mut by_unit: BTreeMap<&Unit, BalanceView> = BTreeMap::new();
    for grant_balance in wallet.grant_balances() {
        let unit = &grant_balance.grant.unit;
        let shown = by_unit.entry(unit).or_insert_with(|| BalanceView {
            unit: unit.clone(),
            balance: Total::default(),
            pending: Total::default(),
            upcoming: Total::default(),
            expiring: Vec::new(),
        });
        shown.balance = shown.balance + grant_balance.available;
        shown.pending = shown.pending + grant_balance.held;
        if grant_balance.state == GrantState::Upcoming {
            shown.upcoming = shown.upcoming + grant_balance.grant.amount.into();
        }
        if let Some(expires_at) =
            grant_balance.grant.expires_at.filter(|_| grant_balance.available > Total::default())
        {
            shown.expiring.push(ExpiringView {
                grant: grant_balance.grant.id,
                amount: grant_balance.available,
                expires_at,
            });
        }
    }
    let mut shown: Vec<BalanceView> = by_unit.into_values().collect();
    for balance in &mut shown {
        balance.expiring.sort_by_key(|expiring| (expiring.expires_at, expiring.grant));
    }
    shown
}

impl Engine {
    /// Writes the due changes of a subject's wallet and returns a snapshot that contains them. Also returns
    /// the row id of the subject, if it exists.
    async fn settled_wallet(
        &self,
        environment: Environment,
        subject: &SubjectId,
    ) -> Result<(ReadSnapshot, i64, Wallet), EngineError> {
        loop {
            let mut snapshot = self.read_snapshot(environment).await?;
            let path = snapshot.subject_path(subject).await?;
            let Some(member) = path.members.first() else { continue };
            let id = member.subject_id;
            // the grant of a default plan is shown here and issued at the first contact
            let is_written = snapshot.is_as_written(member).await?;
            let own = PathSubject {
                subscription: member.subscription.clone().filter(|_| is_written),
                ..member.clone()
            };
            if id != 0 && self.looked_at(&mut snapshot, &own).await?.is_changed() {
                drop(snapshot);
                self.settle_wallets(environment, vec![id]).await?;
                continue;
            }
            let wallet = self.looked_at(&mut snapshot, member).await?;
            return Ok((snapshot, id, wallet));
        }
    }

    /// Returns the wallet of a subject with the due changes applied.
    async fn looked_at(
        &self,
        snapshot: &mut ReadSnapshot,
        member: &PathSubject,
    ) -> Result<Wallet, EngineError> {
        let mut holders = HolderSubscriptions::new();
        add_holder(&mut holders, member);
        let terms = std::sync::Arc::clone(&snapshot.terms);
        let (environment, began) = (snapshot.environment, snapshot.now);
        let wallet_loader = WalletLoader { environment, terms: &terms, clock: &self.inner.clock, began };
        let wallets = wallet_loader.look(&mut snapshot.snapshot, &holders).await?;
        let none = || Wallet::new(member.subject_id, None, Vec::new());
        Ok(wallets.into_values().next().unwrap_or_else(none))
    }

    /// Returns the balances of a subject.
    pub async fn credits(
        &self,
        environment: Environment,
        subject: &SubjectId,
    ) -> Result<CreditsView, EngineError> {
        let (snapshot, _, wallet) = self.settled_wallet(environment, subject).await?;
        Ok(CreditsView { subject: subject.to_string(), at: snapshot.now, balances: balances(&wallet) })
    }

    /// Returns a page of the grants of a subject, the latest first.
    pub async fn list_grants(
        &self,
        environment: Environment,
        subject: &SubjectId,
        page: &PageRequest,
    ) -> Result<Page<GrantView>, EngineError> {
        let before = page.place()?;
        let (mut snapshot, id, _) = self.settled_wallet(environment, subject).await?;
        let rows = grants::list(&mut snapshot.snapshot, id, before, page.rows_max()).await?;
        let page = Page::from_rows(rows, page.limit, |row| (row.grant.created_at, row.grant.id));
        Ok(page.map(|row| GrantView::of(subject, row)))
    }

    /// Returns a page of the movements of a subject, the latest first.
    pub async fn credit_ledger(
        &self,
        environment: Environment,
        subject: &SubjectId,
        page: &PageRequest,
    ) -> Result<Page<MovementView>, EngineError> {
        let before = page.before_number()?;
        let (mut snapshot, id, _) = self.settled_wallet(environment, subject).await?;
        let rows = ledger::list(&mut snapshot.scope(), id, before, page.rows_max()).await?;
        Ok(Page::from_rows(rows, page.limit, |row| row.id).map(MovementView::from))
    }
}
