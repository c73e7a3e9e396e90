//! The HTTP interface: credentials, bad input, its description, gateways.

pub(crate) mod access;
mod bad_input;
mod gateways;
mod interface;
