//! Subjects, customers and subscriptions.

mod plans;
mod subject;
