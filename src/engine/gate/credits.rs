//! The credits of a batch: wallets that extend limits, and wallets with credits that reservations hold.

use sqlx::PgConnection;
use uuid::Uuid;

use super::context::{BatchContext, CheckedCall, requests};
use crate::engine::credits::wallets::{HolderSubscriptions, LockedWallets, WalletLoader, add_holder};
use crate::store::StoreError;
use crate::store::credits::wallets::Changes;
use metergate_domain::base::Timestamp;
use metergate_domain::base::names::MeterKey;
use metergate_domain::gate::{CatalogIndex, Credits, GateState, Path, Reservation};
use metergate_domain::usage::Properties;

/// The wallets that a batch uses. None if it uses no wallets.
pub(super) struct BatchWallets<'a> {
    wallet_loader: WalletLoader<'a>,
    holders: HolderSubscriptions,
    opened: Option<LockedWallets>,
}

impl<'a> BatchWallets<'a> {
    /// Locks the needed wallets. The counters must be locked before.
    pub(super) async fn open(
        connection: &mut PgConnection,
        wallet_loader: WalletLoader<'a>,
        holders: HolderSubscriptions,
    ) -> Result<Self, StoreError> {
        let opened = if holders.is_empty() {
            None
        } else {
            Some(wallet_loader.open(connection, &holders, &[]).await?)
        };
        Ok(Self { wallet_loader, holders, opened })
    }

    /// Returns `now`, or the time of the last wallet lock if that is later.
    pub(super) fn not_before(&self, now: Timestamp) -> Timestamp {
        self.opened.as_ref().map_or(now, |opened| opened.now.max(now))
    }

    /// Moves the wallets into the state. Returns the expired reservations with held credits that must be
    /// charged and are not in the state.
    pub(super) fn lend(&mut self, state: &mut GateState<'_>) -> Vec<Uuid> {
        let Some(opened) = &mut self.opened else { return Vec::new() };
        state.credits.wallets = std::mem::take(&mut opened.wallets);
        opened.charged.iter().filter(|key| !state.reservations.contains_key(key)).copied().collect()
    }

    /// Writes the changes of the wallets from the state.
    pub(super) async fn write(
        &mut self,
        connection: &mut PgConnection,
        state: &mut GateState<'_>,
    ) -> Result<(), StoreError> {
        let Some(opened) = &mut self.opened else { return Ok(()) };
        let Credits { wallets, lines, paid } = std::mem::take(&mut state.credits);
        opened.wallets = wallets;
        let mut changes = Changes { paid, ..Changes::default() };
        for (key, line) in lines {
            match line {
                Some(line) => changes.lines.push((key, line)),
                None => changes.gone.push(key),
            }
        }
        opened.write(connection, self.wallet_loader, &self.holders, changes).await
    }
}

/// Returns the holders of credits that calls may spend, hold or release.
pub(super) fn holders(
    terms: &CatalogIndex,
    calls: &[CheckedCall<'_>],
    context: &BatchContext,
) -> HolderSubscriptions {
    let BatchContext { subject_paths, locked, paths } = context;
    let mut holders = HolderSubscriptions::new();
    if !terms.has_covered() && !locked.iter().any(Reservation::holds_credits) {
        return holders;
    }
    let mut add = |path: &Path, meter: &MeterKey, properties: &Properties| {
        for found in terms.matching(path, meter, properties).filter(|found| found.terms.is_covered()) {
            add_holder(&mut holders, found.member);
        }
    };
    for request in requests(calls) {
        let Some(path) = subject_paths.get(request.subject.as_str()) else { continue };
        request.asks.iter().for_each(|ask| add(path, &ask.meter, &ask.properties));
    }
    let placed =
        || locked.iter().filter_map(|reservation| Some((reservation, paths.get(&reservation.path_id)?)));
    for (reservation, path) in placed() {
        reservation.holds.iter().for_each(|hold| add(path, &hold.meter, &hold.properties));
    }
    for (reservation, path) in placed() {
        for cover in reservation.holds.iter().flat_map(|hold| &hold.covers) {
            let whose = path.members.iter().filter(|member| member.subject_id == cover.subject_id);
            whose.for_each(|member| add_holder(&mut holders, member));
        }
    }
    holders
}
