//! What the tests stand on: a throwaway cluster for the run, a database of its own for each test,
//! the service in process or as processes, a connection that can be cut, and a fake of Stripe.

pub(crate) mod cluster;
pub(crate) mod contract;
pub(crate) mod proxy;
pub(crate) mod service;
pub(crate) mod stripe_fake;

pub(crate) use service::{TestService, at};
