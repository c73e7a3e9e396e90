//! Metergate meters usage and gates it, beside the biller. One binary and one PostgreSQL.
//!
//! The rooms, from the door inwards; imports only ever point down this list:
//!
//! - [`app`]: command line, settings, start and stop; the only place where everything is put together
//! - [`http`]: the routes, one file per resource; turns requests into calls of the engine and back
//! - [`jobs`]: what runs on an interval: folding, expiries, exports
//! - [`engine`]: the use cases, and the writers that share transactions
//! - [`providers`]: billers that usage is handed to, behind one trait
//! - [`store`]: all SQL, and only SQL
//! - [`metergate_domain`]: pure rules: quantities, events, meters, windows. No I/O, no async, no clock
//!
//! [`embedded`] is the private PostgreSQL that runs when no `DATABASE_URL` is set.

pub mod app;
pub mod embedded;
pub mod engine;
pub mod http;
pub mod jobs;
pub mod providers;
pub mod store;
