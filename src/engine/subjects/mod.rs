//! Subjects, their place in the tree, and their subscriptions.

pub(crate) mod resolution;
pub(crate) mod subject;
pub(crate) mod subscription_changes;
pub(crate) mod subscriptions;
