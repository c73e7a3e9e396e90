//! The catalog: its data ([`model`]), reading and checking of a document ([`validate`]), and the
//! changes that applying another one makes ([`diff`]).

pub mod diff;
pub mod meter;
pub mod model;
pub mod plan;
pub mod stripe_price_ids;
pub mod validate;
mod yaml;

pub use model::Catalog;
