//! Metergate meters usage and enforces limits next to a billing system. It is one binary with one
//! PostgreSQL database.
//!
//! The layers, from the outside in. Each imports only layers below it:
//!
//! - [`app`]: command line, settings, start and stop; the only module that connects the others
//! - [`http`]: the routes, one file per resource; converts requests into calls of the engine
//! - [`jobs`]: work on an interval: folding, expiries, exports
//! - [`engine`]: use cases, and the writers that share transactions
//! - [`providers`]: clients of billing systems, behind one trait
//! - [`store`]: all SQL, and nothing else
//! - [`metergate_domain`]: pure rules for quantities, events, meters and windows, without I/O, async
//!   or clock
//!
//! [`embedded`] is the private PostgreSQL that runs without a `DATABASE_URL`.

pub mod app;
pub mod embedded;
pub mod engine;
pub mod http;
pub mod jobs;
pub mod providers;
pub mod store;
