//! The HTTP interface: access, invalid input, the `OpenAPI` document, gateways.

pub(crate) mod access;
mod bad_input;
mod gateways;
mod interface;
