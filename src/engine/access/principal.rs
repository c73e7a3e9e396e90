//! The caller that a credential stands for.

use metergate_domain::base::Environment;
use metergate_domain::base::names::SubjectId;

/// A caller with a valid credential.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Principal {
    pub environment: Environment,
    pub role: Role,
}

/// The rights of a caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Role {
    /// The application, with all rights.
    Secret,
    /// A web page of the application, which may read plans and quotes but no subject.
    Publishable,
    /// An end user, who may read their own subject within the scopes.
    EndUser { subject: SubjectId, scopes: Vec<String> },
}
