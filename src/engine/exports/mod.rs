//! Export of usage to a billing provider, in four steps. The fold accumulates usage; exports are
//! created and written; then they are sent, one at a time per customer and meter; later they are
//! compared with the provider's sums.
//!
//! One process at a time sends for an environment. If two ever do, the stored state and the provider's
//! memory of identifiers prevent double counting.

pub(crate) mod accumulate;
pub(crate) mod create;
pub(crate) mod delivery_lookup;
pub(crate) mod exported_meters;
pub(crate) mod outbox;
pub(crate) mod rate_limit;
pub(crate) mod reconciliation;
pub(crate) mod run;
pub(crate) mod sending;

pub(crate) use outbox::{of_event, revive_readdressed};
