//! Wallets in a transaction. They are locked after all counters, in ascending order of subject. Due changes
//! are applied first, and all changes are written at the end.

use std::collections::{BTreeMap, BTreeSet};

use sqlx::PgConnection;
use uuid::Uuid;

use super::notices;
use crate::engine::clock::Clock;
use crate::store::credits::wallets::{self, Changes, ExpiredCreditLineRow};
use crate::store::{self, Scope, StoreError};
use metergate_domain::base::{Environment, Timestamp, Total};
use metergate_domain::catalog::Plan;
use metergate_domain::credits::wallet::{ExpiredCreditLine, Wallet};
use metergate_domain::credits::{GrantSchedule, Unit};
use metergate_domain::gate::{CatalogIndex, CreditLineKey, OnExpiry, PathSubject};
use metergate_domain::subjects::Subscription;

/// The subjects with credits to read, with their subscriptions.
pub(crate) type HolderSubscriptions = BTreeMap<i64, Option<Subscription>>;

pub(crate) fn add_holder(holders: &mut HolderSubscriptions, member: &PathSubject) {
    holders.entry(member.subject_id).or_insert_with(|| member.subscription.clone());
}

/// The context for loading wallets.
#[derive(Debug, Clone, Copy)]
pub(crate) struct WalletLoader<'a> {
    pub(crate) environment: Environment,
    pub(crate) terms: &'a CatalogIndex,
    pub(crate) clock: &'a Clock,
    /// A lower bound of the present time of the transaction.
    pub(crate) began: Timestamp,
}

/// Wallets under their locks.
#[derive(Debug)]
pub(crate) struct LockedWallets {
    pub(crate) wallets: BTreeMap<i64, Wallet>,
    /// The time of the database after the last lock.
    pub(crate) now: Timestamp,
    /// Reservations that hold credits and are due to be charged at their expiry.
    pub(crate) charged: Vec<Uuid>,
    /// The highest balance of each unit before and after the due changes.
    before: BTreeMap<i64, BTreeMap<Unit, Total>>,
    gone: Vec<CreditLineKey>,
    /// The subjects without a wallet and so without credits.
    without: BTreeSet<i64>,
}

fn plan_of<'a>(terms: &'a CatalogIndex, subscription: Option<&Subscription>) -> Option<&'a Plan> {
    terms.catalog.plan(&subscription?.plan)
}

/// Returns the grants of a usable subscription. An ended subscription grants nothing, even if its end is not
/// applied yet.
fn schedules<'a>(
    terms: &'a CatalogIndex,
    subscription: Option<&'a Subscription>,
    now: Timestamp,
) -> Vec<GrantSchedule<'a>> {
    let is_usable = |own: &&Subscription| own.status.may_use() && own.ended(&terms.catalog, now).is_none();
    let usable = subscription.filter(is_usable);
    let given = plan_of(terms, usable).map_or(&[][..], |plan| plan.credit_grants.as_slice());
    let schedule = |(credits, subscription)| GrantSchedule { credits, subscription };
    usable
        .into_iter()
        .flat_map(|usable| given.iter().map(move |credits| (credits, usable)))
        .map(schedule)
        .collect()
}

fn balances(wallets: &BTreeMap<i64, Wallet>) -> BTreeMap<i64, BTreeMap<Unit, Total>> {
    wallets.iter().map(|(id, wallet)| (*id, wallet.balances().clone())).collect()
}

impl<'a> WalletLoader<'a> {
    fn schedules_of(
        self,
        holders: &'a HolderSubscriptions,
        id: i64,
        now: Timestamp,
    ) -> Vec<GrantSchedule<'a>> {
        schedules(self.terms, holders.get(&id).and_then(Option::as_ref), now)
    }

    /// Locks the wallets of some subjects, creates those that a plan grants credits to, and applies the due
    /// changes. `named` lists grants to load even if they can no longer change.
    pub(crate) async fn open(
        self,
        connection: &mut PgConnection,
        holders: &HolderSubscriptions,
        named: &[Uuid],
    ) -> Result<LockedWallets, StoreError> {
        let ids: Vec<i64> = holders.keys().copied().collect();
        let (mut found, mut locked_at) = wallets::lock(connection, &ids).await?;
        let gives = |id: &&i64| !self.schedules_of(holders, **id, self.began).is_empty();
        let missing: Vec<i64> =
            ids.iter().filter(|id| !found.contains_key(id)).filter(gives).copied().collect();
        if !missing.is_empty() {
            wallets::insert_missing(&mut Scope::new(connection, self.environment), &missing).await?;
            let (more, at) = wallets::lock(connection, &missing).await?;
            found.extend(more);
            locked_at = at.or(locked_at);
        }
        let now = locked_at.map_or(self.began, |at| self.clock.now(self.environment, at).max(self.began));
        let mut wallets = wallets::open(connection, &found, named).await?;
        let without: BTreeSet<i64> = ids.into_iter().filter(|id| !found.contains_key(id)).collect();
        wallets.extend(without.iter().map(|id| (*id, Wallet::new(*id, None, Vec::new()))));
        let mut before = balances(&wallets);
        let lapsing: Vec<i64> =
            found.iter().filter(|(_, next)| next.is_some_and(|at| at <= now)).map(|(id, _)| *id).collect();
        let lines =
            if lapsing.is_empty() { Vec::new() } else { wallets::expired(connection, &lapsing, now).await? };
        if !lapsing.is_empty() {
            for (id, next) in wallets::next_lines(connection, &lapsing, now).await? {
                if let Some(wallet) = wallets.get_mut(&id) {
                    wallet.next_line = next;
                }
            }
        }
        let mut gone = Vec::new();
        let mut charged = BTreeSet::new();
        for ExpiredCreditLineRow { on_expiry, expired, subject_id } in &lines {
            match on_expiry {
                OnExpiry::Release => gone.push(CreditLineKey {
                    grant: expired.grant,
                    expires_at: expired.expires_at,
                    reservation: expired.reservation,
                }),
                OnExpiry::Commit => {
                    charged.insert(expired.reservation);
                    // the line stays due until the reservation is charged
                    if let Some(wallet) = wallets.get_mut(subject_id) {
                        wallet.next_line = wallet
                            .next_line
                            .map(|at| at.min(expired.expires_at))
                            .or(Some(expired.expires_at));
                    }
                }
            }
        }
        self.advance(&mut wallets, holders, &lines, now);
        // due changes may issue credits that the same transaction spends
        for (id, wallet) in &wallets {
            let most = before.entry(*id).or_default();
            for (unit, balance) in wallet.balances() {
                if most.get(unit).is_none_or(|most| most < balance) {
                    most.insert(unit.clone(), *balance);
                }
            }
        }
        Ok(LockedWallets { wallets, now, charged: charged.into_iter().collect(), before, gone, without })
    }

    /// Returns wallets from a snapshot as if the due changes had been applied.
    pub(crate) async fn look(
        self,
        snapshot: &mut PgConnection,
        holders: &HolderSubscriptions,
    ) -> Result<BTreeMap<i64, Wallet>, StoreError> {
        let ids: Vec<i64> = holders.keys().copied().collect();
        let mut found = wallets::find(snapshot, &ids).await?;
        let lapsing: Vec<i64> = found
            .iter()
            .filter(|(_, next)| next.is_some_and(|at| at <= self.began))
            .map(|(id, _)| *id)
            .collect();
        for id in ids {
            if !self.schedules_of(holders, id, self.began).is_empty() {
                found.entry(id).or_default();
            }
        }
        let mut wallets = wallets::open(snapshot, &found, &[]).await?;
        let lines = if lapsing.is_empty() {
            Vec::new()
        } else {
            wallets::expired(snapshot, &lapsing, self.began).await?
        };
        self.advance(&mut wallets, holders, &lines, self.began);
        Ok(wallets)
    }

    fn advance(
        self,
        wallets: &mut BTreeMap<i64, Wallet>,
        holders: &HolderSubscriptions,
        lines: &[ExpiredCreditLineRow],
        now: Timestamp,
    ) {
        for (id, wallet) in wallets {
            let of =
                lines.iter().filter(|line| line.subject_id == *id && line.on_expiry == OnExpiry::Release);
            let expired: Vec<ExpiredCreditLine> = of.map(|line| line.expired).collect();
            let schedules = self.schedules_of(holders, *id, now);
            wallet.advance(expired, &schedules, now);
        }
    }
}

/// Creates wallets; fails with a conflict if another transaction created and filled one of them first.
async fn make(scope: &mut Scope<'_>, new: &[i64]) -> Result<(), StoreError> {
    wallets::insert_missing(scope, new).await?;
    let (found, _) = wallets::lock(scope.connection, new).await?;
    let filled = wallets::open(scope.connection, &found, &[]).await?;
    if filled.values().any(|wallet| !wallet.grant_balances().is_empty()) {
        return Err(StoreError::Conflict(sqlx::Error::Protocol(
            "another transaction filled the wallet".to_owned(),
        )));
    }
    Ok(())
}

impl LockedWallets {
    /// Writes the changes of the wallets together with those of the caller.
    pub(crate) async fn write(
        &self,
        connection: &mut PgConnection,
        wallet_loader: WalletLoader<'_>,
        holders: &HolderSubscriptions,
        mut changes: Changes<'_>,
    ) -> Result<(), StoreError> {
        let wallets: Vec<&Wallet> = self.wallets.values().filter(|wallet| wallet.is_changed()).collect();
        let new: Vec<i64> =
            wallets.iter().map(|wallet| wallet.subject_id).filter(|id| self.without.contains(id)).collect();
        let scope = &mut Scope::new(connection, wallet_loader.environment);
        if !new.is_empty() {
            make(scope, &new).await?;
        }
        changes.gone.extend(&self.gone);
        wallets::write(scope, &Changes { wallets, ..changes }).await?;
        let mut found = Vec::new();
        for (id, wallet) in self.wallets.iter().filter(|(_, wallet)| wallet.is_changed()) {
            let plan = plan_of(wallet_loader.terms, holders.get(id).and_then(Option::as_ref));
            let alerts = plan.map_or(&[][..], |plan| plan.credit_alerts.as_slice());
            let before = self.before.get(id);
            found.extend(notices::due(alerts, *id, before, wallet.balances(), self.now));
        }
        store::credits::notices::insert(scope, &found).await
    }

    pub(crate) fn is_changed(&self) -> bool {
        !self.gone.is_empty() || self.wallets.values().any(Wallet::is_changed)
    }
}
