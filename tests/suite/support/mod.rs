//! Shared support: a throwaway cluster per run, a database per test, the service in process or as a process,
//! connections that can be cut, and a fake of Stripe.

pub(crate) mod cluster;
pub(crate) mod proxy;
pub(crate) mod service;
pub(crate) mod sources;
pub(crate) mod stripe_fake;

pub(crate) use service::{TestService, at};
