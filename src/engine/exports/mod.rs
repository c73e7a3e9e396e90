//! Export of usage to a billing provider, in four steps. The fold accumulates usage; exports are
//! created and written; then they are sent, one at a time per customer and meter; later they are
//! compared with the provider's sums.
//!
//! One process at a time sends for an environment. If two ever do, the stored state and the provider's
//! memory of identifiers prevent double counting.

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
