//! Use cases, and the writers that share transactions. This layer knows the domain and the store, but
//! nothing of HTTP.

pub mod access;
mod catalog;
mod change;
pub mod clock;
mod credits;
pub mod cursor;
mod environment_cache;
pub mod error;
mod exports;
mod gate;
mod invoicing;
mod page;
pub(crate) mod pricing;
mod services;
mod settings;
mod snapshot;
pub(crate) mod subjects;
pub mod usage;
mod webhooks;
mod writers;

pub use catalog::{Applied, CatalogView};
pub use clock::Clock;
pub use credits::{CreditsView, GrantView, MovementView};
pub use error::EngineError;
pub use exports::{Drift, Ran, Reconciled, ReconciledRow, ReconciliationQuery as ReconciliationQuestion};
pub use gate::ReservationView;
pub use invoicing::{BillingRun, ComparedInvoice, ComparedLine, ComparedTotal, InvoiceView};
pub use page::{Page, PageRequest};
pub use pricing::costs::CostView;
pub use services::Engine;
pub use settings::EngineSettings;
pub use subjects::subject::{SubjectChange, SubjectView};
pub use subjects::subscriptions::SubscriptionView;
pub use usage::events::{EventTrace, EventView, Voided};
pub use usage::fold::Folded;
pub use usage::ingest::{EventOutcome, RecordResult};
pub use usage::ranking::TopPage;
pub use usage::report::{MeterUsage, Report, Viewer};
pub use usage::stripe_compat::RecordedMeterEvent;
pub use usage::verify::Verdict;

pub use crate::store::credits::notices::CreditNotice;
pub use crate::store::exports::ExportRow;
pub use crate::store::webhook_events::WebhookRow;

use services::detached;
