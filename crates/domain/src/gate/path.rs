//! Subjects on a path, nearest first, with their subscriptions and spend caps.

use super::counter::EffectiveFrom;
use crate::base::names::SubjectId;
use crate::base::timestamp::Timestamp;
use crate::pricing::cap::SpendCap;
use crate::subjects::subscription::Subscription;

/// A spend cap and the time from which it is in effect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CapTerms {
    pub cap: SpendCap,
    pub since: EffectiveFrom,
}

/// A subject on a path.
#[derive(Debug, Clone)]
pub struct PathSubject {
    pub subject_id: i64,
    pub subject: SubjectId,
    pub subscription: Option<Subscription>,
    /// The subject's own caps, without those of its plan.
    pub caps: Vec<CapTerms>,
    /// The time of its last move to another parent, if it ever moved.
    pub moved_at: Option<Timestamp>,
    /// The subject and its current ancestors, if they differ from this path.
    pub current_ancestors: Option<Box<[PathSubject]>>,
}

/// A subject and its ancestors, nearest first.
#[derive(Debug, Clone)]
pub struct Path {
    pub id: i64,
    /// The nearest customer on the path.
    pub customer_id: Option<i64>,
    pub members: Vec<PathSubject>,
}

impl PathSubject {
    /// Returns a subject without a subscription or caps.
    pub fn new(subject_id: i64, subject: SubjectId) -> Self {
        Self {
            subject_id,
            subject,
            subscription: None,
            caps: Vec::new(),
            moved_at: None,
            current_ancestors: None,
        }
    }
}

impl Path {
    /// Returns the path of a subject that does not exist yet.
    pub fn of_stranger(subject: &SubjectId) -> Self {
        Self { id: 0, customer_id: None, members: vec![PathSubject::new(0, subject.clone())] }
    }

    pub fn subject(&self) -> &str {
        self.members.first().map_or("", |member| member.subject.as_str())
    }

    /// Returns the subject at the top.
    pub fn root(&self) -> Option<&PathSubject> {
        self.members.last()
    }

    /// Returns the subject at `index` and its current ancestors, nearest first.
    pub fn ancestors_of(&self, index: usize) -> &[PathSubject] {
        match self.members.get(index).and_then(|member| member.current_ancestors.as_deref()) {
            Some(chain) => chain,
            None => self.members.get(index..).unwrap_or_default(),
        }
    }

    pub fn has_subscription(&self) -> bool {
        self.members.iter().any(|member| member.subscription.is_some())
    }

    /// Returns the nearest subscription and its subject.
    pub fn nearest(&self) -> Option<(&PathSubject, &Subscription)> {
        self.members.iter().find_map(|member| Some((member, member.subscription.as_ref()?)))
    }
}
