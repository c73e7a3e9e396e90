//! Use cases, and the writers that share transactions. This layer knows the domain and the store, but
//! nothing of HTTP.

pub mod access;
pub(crate) mod catalog;
pub(crate) mod change;
pub mod clock;
pub(crate) mod credits;
pub mod cursor;
pub(crate) mod environment_cache;
pub mod error;
pub(crate) mod exports;
pub(crate) mod gate;
pub(crate) mod invoicing;
pub(crate) mod page;
pub(crate) mod pricing;
pub(crate) mod services;
pub(crate) mod settings;
pub(crate) mod snapshot;
pub(crate) mod subjects;
pub mod usage;
pub(crate) mod webhooks;
pub(crate) mod writers;

pub use catalog::{Applied, CatalogView};
pub use clock::Clock;
pub use credits::grants::GrantView;
pub use credits::views::{CreditsView, MovementView};
pub use error::EngineError;
pub use exports::reconciliation::{
    Drift, Reconciled, ReconciledRow, ReconciliationQuery as ReconciliationQuestion,
};
pub use exports::run::Ran;
pub use gate::reservations::ReservationView;
pub use invoicing::billing::BillingRun;
pub use invoicing::comparing::{ComparedInvoice, ComparedLine, ComparedTotal};
pub use invoicing::views::InvoiceView;
pub use page::{Page, PageRequest};
pub use pricing::costs::CostView;
pub use services::Engine;
pub use settings::EngineSettings;
pub use subjects::subject::{SubjectChange, SubjectView};
pub use subjects::subscriptions::SubscriptionView;
pub use usage::events::{EventTrace, EventView, Voided};
pub use usage::fold::Folded;
pub use usage::ingest::prepared_event::EventOutcome;
pub use usage::ingest::prepared_event::RecordResult;
pub use usage::ranking::TopPage;
pub use usage::report::{MeterUsage, Report, Viewer};
pub use usage::stripe_compat::RecordedMeterEvent;
pub use usage::verify::Verdict;

pub use crate::store::credits::notices::CreditNotice;
pub use crate::store::exports::ExportRow;
pub use crate::store::webhook_events::WebhookRow;
