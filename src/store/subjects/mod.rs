//! Tables of subjects, customers and subscriptions.

pub mod customer_mappings;
pub mod stripe_customers;
pub mod stripe_subscriptions;
pub mod subject;
pub mod subscriptions;
