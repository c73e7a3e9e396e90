//! Credits of recorded usage. Usage above a quota spends credits, and a voided event returns them. Both
//! happen after the counters are written, under their locks.

use crate::engine::credits::tracked::Tracked;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use sqlx::PgConnection;
use uuid::Uuid;

use super::wallets::{HolderSubscriptions, LockedWallets, WalletLoader, add_holder};
use metergate_domain::credits::Cause;
use metergate_domain::credits::cost::share;

use crate::engine::gate::counters::Additions;
use crate::store::credits::wallets::Changes;
use crate::store::credits::{grants, ledger};
use crate::store::gate::counters::CounterRow;
use crate::store::{self, Scope, StoreError};
use metergate_domain::base::names::MeterKey;
use metergate_domain::base::{Quantity, Timestamp, Total};
use metergate_domain::gate::{
    Counter, CounterKey, GateState, Moment, OnExpiry, PaidShare, Path, Recorder, RequestedUse,
};
use metergate_domain::pricing::Amount;

impl WalletLoader<'_> {
    /// Covers recorded usage above quotas, event by event. `rows` are the counters after the events; the
    /// covered quantities are added to them.
    pub(crate) async fn cover_recorded<'t>(
        self,
        connection: &mut PgConnection,
        rows: &mut [CounterRow],
        additions: &Additions<'_>,
        tracked: impl Iterator<Item = Tracked<'t>> + Clone,
    ) -> Result<(), StoreError> {
        if rows.is_empty() || !self.terms.has_covered() {
            return Ok(());
        }
        let holders = self.over_quota(rows, tracked.clone());
        if holders.is_empty() {
            return Ok(());
        }
        let mut locked_wallets = self.open(connection, &holders, &[]).await?;
        let now = locked_wallets.now;
        let none = BTreeSet::new();
        let mut book = GateState::open(self.terms, Moment { now, age_max: Duration::ZERO, taken: &none });
        for row in &*rows {
            let mut level = row.level;
            level.used = level.used - additions.amount(row.key);
            book.counters.insert(row.key, Counter { level, next_expiry: row.next_expiry, becomes: None });
        }
        leave_out_expired(connection, &mut book, rows, now).await?;
        let before = book.counters.clone();
        book.credits.wallets = std::mem::take(&mut locked_wallets.wallets);
        for Tracked { path, stored, properties, quantity, at, event } in tracked {
            let meter = &stored.meter.key;
            let met: BTreeSet<CounterKey> = self
                .terms
                .matching(path, meter, properties)
                .filter_map(|found| Some(found.counter_at(at)?.key))
                .collect();
            for key in met {
                if let Some(counter) = book.counters.get_mut(&key) {
                    counter.level.used = counter.level.used + quantity.into();
                }
            }
            if quantity > Quantity::default() {
                book.cover_recorded(
                    path,
                    RequestedUse { meter, properties, quantity },
                    Recorder { reservation: None, event },
                    at,
                );
            }
        }
        let mut given = Vec::new();
        for row in rows.iter_mut() {
            let covered = |of: &BTreeMap<CounterKey, Counter>| {
                of.get(&row.key).map(|counter| counter.level.covered).unwrap_or_default()
            };
            let more = covered(&book.counters) - covered(&before);
            if more != Total::default() {
                given.push((row.key.subject_id, row.key.definition, row.since, more));
                row.level.covered = row.level.covered + more;
            }
        }
        locked_wallets.wallets = std::mem::take(&mut book.credits.wallets);
        let paid = std::mem::take(&mut book.credits.paid);
        drop(book);
        if !given.is_empty() {
            store::gate::counters::add_covered(connection, &given).await?;
        }
        locked_wallets.write(connection, self, &holders, Changes { paid, ..Changes::default() }).await
    }

    /// Returns the subjects with an exceeded limit that credits extend.
    fn over_quota<'t>(
        self,
        rows: &[CounterRow],
        tracked: impl Iterator<Item = Tracked<'t>>,
    ) -> HolderSubscriptions {
        let levels: BTreeMap<CounterKey, &CounterRow> = rows.iter().map(|row| (row.key, row)).collect();
        let mut holders = HolderSubscriptions::new();
        for Tracked { path, stored, properties, at, .. } in tracked {
            for found in self.terms.matching(path, &stored.meter.key, properties) {
                let row = found.counter_at(at).and_then(|counter| levels.get(&counter.key));
                let borne = row.map(|row| row.level.used + row.level.held - row.level.covered);
                let passes = found.quota().is_some_and(|quota| borne.unwrap_or_default() > quota.into());
                if passes && found.terms.is_covered() {
                    add_holder(&mut holders, found.member);
                }
            }
        }
        holders
    }

    /// Returns the credits spent for a voided event. `quantities` holds the voided quantity by meter. The
    /// last units of a use are the covered ones, as with a hold. Refunded amounts are not returned twice.
    pub(crate) async fn take_back(
        self,
        connection: &mut PgConnection,
        path: &Path,
        event: Uuid,
        quantities: &BTreeMap<MeterKey, Quantity>,
    ) -> Result<(), StoreError> {
        let spends = ledger::spent_for(&mut Scope::new(connection, self.environment), event).await?;
        if spends.is_empty() {
            return Ok(());
        }
        let mut holders = HolderSubscriptions::new();
        for spend in &spends {
            let member = path.members.iter().find(|member| member.subject_id == spend.subject_id);
            holders.entry(spend.subject_id).or_insert_with(|| member.and_then(|m| m.subscription.clone()));
        }
        let named: Vec<Uuid> = spends.iter().filter_map(|spend| spend.grant).collect();
        let mut locked_wallets: LockedWallets = self.open(connection, &holders, &named).await?;
        let now = locked_wallets.now;
        let ids: Vec<i64> = spends.iter().map(|spend| spend.id).collect();
        let whose: Vec<i64> = holders.keys().copied().collect();
        // read under the wallet locks, which every refund holds too
        let refunded = grants::refunded(connection, &whose, &ids).await?;
        // the quantity still to be returned, by subject and meter
        let mut left: BTreeMap<(i64, Option<String>), Quantity> = BTreeMap::new();
        for spend in spends.iter().rev() {
            let taken_back = spend.meter.as_deref().and_then(|meter| {
                quantities.iter().find(|(key, _)| key.as_str() == meter).map(|(_, quantity)| *quantity)
            });
            let left =
                left.entry((spend.subject_id, spend.meter.clone())).or_insert(taken_back.unwrap_or_default());
            let (Some(grant), Some(spent)) = (spend.grant, spend.quantity) else { continue };
            let quantity = spent.min(*left);
            *left = left.above(quantity);
            let kept = Amount::from(spent.above(quantity));
            let kept =
                if kept.is_zero() { Total::default() } else { share(spend.amount, &kept, &spent.into()) };
            let made_good = refunded.get(&spend.id).copied().unwrap_or_default();
            let amount = spend.amount - kept.max(made_good);
            if amount <= Total::default() {
                continue;
            }
            let used = quantities.keys().find(|key| Some(key.as_str()) == spend.meter.as_deref());
            let cause = Cause {
                event: Some(event),
                reservation: spend.reservation,
                used: used.map(|key| (key.clone(), quantity)),
                refunds: Some(spend.id),
                ..Cause::default()
            };
            if let Some(wallet) = locked_wallets.wallets.get_mut(&spend.subject_id) {
                wallet.refund(grant, amount, cause, now);
            }
        }
        let most = quantities.values().copied().max().unwrap_or_default();
        let paid = ledger::covers_of(&mut Scope::new(connection, self.environment), event).await?;
        let taken_back = |paid: PaidShare| {
            // the catalog knows the limit, even if the subject is on another plan now
            let of_meter = self.terms.limit_of(paid.definition);
            let quantity = of_meter.and_then(|terms| quantities.get(&terms.limit.meter).copied());
            let back = paid.quantity.min(quantity.unwrap_or(most).into());
            PaidShare { quantity: Total::default() - back, ..paid }
        };
        let paid: Vec<PaidShare> = paid.into_iter().map(taken_back).collect();
        let given: Vec<_> =
            paid.iter().map(|paid| (paid.subject_id, paid.definition, paid.at, paid.quantity)).collect();
        store::gate::counters::add_covered(connection, &given).await?;
        locked_wallets.write(connection, self, &holders, Changes { paid, ..Changes::default() }).await
    }
}

/// Removes expired hold lines from the counter states; the next writer of the counters removes the rows.
async fn leave_out_expired(
    connection: &mut PgConnection,
    state: &mut GateState<'_>,
    rows: &[CounterRow],
    now: Timestamp,
) -> Result<(), StoreError> {
    for (key, line) in store::gate::hold_lines::expired(connection, rows, now).await? {
        let counter = state.counters.get_mut(&key.counter).filter(|_| line.on_expiry == OnExpiry::Release);
        if let Some(counter) = counter {
            counter.level = counter.level.without_expired(&line);
        }
    }
    Ok(())
}
