//! Usage on its way to a billing provider: accumulated in the fold; created as exports, which are
//! written before anything is sent; handed over, at most one at a time for a customer and meter; and
//! compared with what the provider says it has. One process at a time hands over for an environment; if
//! two ever do, what is written and the provider's own memory of identifiers keep it right.

mod accumulate;
mod create;
mod delivery_lookup;
mod exported_meters;
mod outbox;
mod rate_limit;
mod reconciliation;
mod run;
mod sending;

pub(crate) use outbox::{of_event, revive_readdressed};
pub use reconciliation::{Drift, Reconciled, ReconciledRow, ReconciliationQuery};
pub use run::Ran;
