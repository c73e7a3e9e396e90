//! Subjects, their tree and their subscriptions.

pub mod provider_subscription;
pub mod subscription;
pub mod tree;
