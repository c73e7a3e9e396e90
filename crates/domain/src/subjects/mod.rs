//! Subjects, their tree and their subscriptions.

pub mod provider_subscription;
pub mod subscription;
pub mod tree;

pub use provider_subscription::ProviderSubscription;
pub use subscription::{End, Subscription, SubscriptionParams, UnknownWord};
