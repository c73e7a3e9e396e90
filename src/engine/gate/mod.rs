//! Reservations: reserve, commit, release, extend and read. Calls share transactions on lanes of their own.

pub(crate) mod calls;
pub(crate) mod cap_headroom;
pub(crate) mod context;
pub(crate) mod counter_retention;
pub(crate) mod counters;
pub(crate) mod credits;
pub(crate) mod fast_path;
pub(crate) mod locked;
pub(crate) mod next_batch;
pub(crate) mod processor;
pub(crate) mod reservations;
pub(crate) mod routing;
pub(crate) mod settle;
