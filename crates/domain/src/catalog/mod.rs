//! The catalog: its data ([`model`]), reading and checking of a document ([`validate`]), and the
//! changes that applying another one makes ([`diff`]).

pub mod diff;
pub mod meter;
pub mod model;
pub mod plan;
pub mod stripe_price_ids;
pub mod validate;
mod yaml;

pub use diff::{Action, CatalogChange, CatalogItemKind, CatalogUse};
pub use meter::{Aggregation, Filter, Meter, StoredMeter, StripeFormula, StripeMeter};
pub use plan::{Enforcement, Limit, OnPlanChange, Overage, Plan, Unmatched};
pub use stripe_price_ids::StripePriceIds;

pub use model::Catalog;
