//! Creates, changes and reads subjects.

use serde::Serialize;
use serde_json::{Map, Value};

use crate::engine::change::ChangeTransaction;
use crate::engine::error::EngineError;
use crate::engine::page::{Page, PageRequest};
use crate::engine::services::{Engine, detached};
use crate::store::subjects::subject::SubjectRow;
use crate::store::{self, Scope, StoreError};
use metergate_domain::base::fields;
use metergate_domain::base::limits::METADATA_BYTES_MAX;
use metergate_domain::base::names::{StripeCustomerId, SubjectId};
use metergate_domain::base::{Environment, ObjectParser, Parsed, Timestamp, Violation};
use metergate_domain::subjects::tree::validate_parent;

/// A change of a subject. An outer `None` keeps a field, an inner `None` clears it.
#[derive(Debug, Clone, Default)]
pub struct SubjectChange {
    pub parent: Option<Option<SubjectId>>,
    pub stripe_customer_id: Option<Option<StripeCustomerId>>,
    pub metadata: Option<Map<String, Value>>,
}

impl SubjectChange {
    pub fn read(value: Value) -> Parsed<Self> {
        let mut fields = ObjectParser::new(value)?;
        let parent = fields.nullable("parent", |v| Ok(SubjectId::parse(fields::text(v)?)?));
        let stripe_customer_id =
            fields.nullable("stripe_customer_id", |v| Ok(StripeCustomerId::parse(fields::text(v)?)?));
        let metadata = fields.nullable("metadata", |v| {
            let map = fields::object(v)?;
            fields::no_nul(&map)?;
            fields::no_monstrous_numbers(&map)?;
            if serde_json::to_string(&map).is_ok_and(|json| json.len() > METADATA_BYTES_MAX) {
                return Violation::only(
                    "too_long",
                    format!("must have at most {METADATA_BYTES_MAX} bytes as JSON"),
                );
            }
            Ok(map)
        });
        fields.finish()?;
        Ok(Self { parent, stripe_customer_id, metadata: metadata.map(Option::unwrap_or_default) })
    }
}

/// A subject as shown in answers.
#[derive(Debug, Clone, Serialize)]
pub struct SubjectView {
    pub subject: String,
    pub parent: Option<String>,
    /// The subject and its ancestors, nearest first.
    pub path: Vec<String>,
    pub stripe_customer_id: Option<String>,
    pub metadata: Map<String, Value>,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

impl From<SubjectRow> for SubjectView {
    fn from(row: SubjectRow) -> Self {
        Self {
            subject: row.subject,
            parent: row.parent,
            path: row.path,
            stripe_customer_id: row.stripe_customer_id,
            metadata: row.metadata,
            created_at: row.created_at,
            updated_at: row.updated_at,
        }
    }
}

impl Engine {
    /// Creates or changes a subject.
    pub async fn put_subject(
        &self,
        environment: Environment,
        subject: SubjectId,
        change: SubjectChange,
    ) -> Result<SubjectView, EngineError> {
        let (database, clock) = (self.database().clone(), self.inner.clock.clone());
        let wake = self.webhook_wake(environment);
        detached(async move {
            let mut opened = ChangeTransaction::begin(database.pool(), environment, &clock).await?;
            let mut names = vec![subject.to_string()];
            names.extend(change.parent.iter().flatten().map(ToString::to_string));
            names.sort_unstable();
            names.dedup();
            store::subjects::subject::insert_missing(&mut opened.scope(), &names).await?;
            let row = existing(&mut opened.scope(), &subject).await?;
            if let Some(parent) = &change.parent {
                move_under(&mut opened, &row, parent.as_ref()).await?;
            }
            if let Some(customer) = &change.stripe_customer_id {
                let customer = customer.as_ref().map(StripeCustomerId::as_str);
                set_customer(&mut opened, row.id, customer).await.map_err(taken_customer)?;
            }
            if let Some(metadata) = &change.metadata {
                store::subjects::subject::set_metadata(&mut opened.transaction, row.id, metadata).await?;
            }
            let row = existing(&mut opened.scope(), &subject).await?;
            opened.commit().await?;
            wake.notify_one();
            Ok(row.into())
        })
        .await
    }

    pub async fn get_subject(
        &self,
        environment: Environment,
        subject: &SubjectId,
    ) -> Result<SubjectView, EngineError> {
        let mut connection = self.database().pool().acquire().await?;
        let row =
            store::subjects::subject::find(&mut Scope::new(&mut connection, environment), subject.as_str())
                .await?;
        row.map(SubjectView::from).ok_or_else(|| EngineError::NotFound {
            code: "subject_not_found",
            detail: format!(
                "no subject has the id `{subject}`; record an event for it or create it with PUT"
            ),
        })
    }

    /// Returns a page of subjects, in the order of creation.
    pub async fn list_subjects(
        &self,
        environment: Environment,
        parent: Option<&SubjectId>,
        page: &PageRequest,
    ) -> Result<Page<SubjectView>, EngineError> {
        let after = page.place()?.unwrap_or(0);
        let parent = parent.map(SubjectId::as_str);
        let mut connection = self.database().pool().acquire().await?;
        let rows = store::subjects::subject::list(
            &mut Scope::new(&mut connection, environment),
            parent,
            after,
            page.rows_max(),
        )
        .await?;
        Ok(Page::from_rows(rows, page.limit, |row| row.id).map(SubjectView::from))
    }
}

/// Maps a subject to a customer, or to none. Subscriptions of that customer are applied again.
pub(crate) async fn set_customer(
    change: &mut ChangeTransaction<'_>,
    subject_id: i64,
    customer: Option<&str>,
) -> Result<(), StoreError> {
    let now = change.now;
    let scope = &mut change.scope();
    store::subjects::subject::set_customer(scope, subject_id, customer, now).await?;
    if let Some(customer) = customer {
        store::subjects::stripe_subscriptions::unsettle_customer(scope, customer).await?;
    }
    Ok(())
}

/// Reads a subject that must exist.
pub(crate) async fn existing(scope: &mut Scope<'_>, subject: &SubjectId) -> Result<SubjectRow, EngineError> {
    let row = store::subjects::subject::find(scope, subject.as_str()).await?;
    row.ok_or_else(|| EngineError::Internal("a subject that was just written does not exist".to_owned()))
}

/// Moves a subject below a parent that must exist, or makes it a root. Refuses cycles and paths that
/// are too long.
pub(crate) async fn move_under(
    change: &mut ChangeTransaction<'_>,
    row: &SubjectRow,
    parent: Option<&SubjectId>,
) -> Result<(), EngineError> {
    if row.parent.as_deref() == parent.map(SubjectId::as_str) {
        return Ok(());
    }
    let parent = match parent {
        None => None,
        Some(parent) => Some(existing(&mut change.scope(), parent).await?),
    };
    if let Some(parent) = &parent {
        let (height, is_below) =
            store::subjects::subject::subtree(&mut change.transaction, row.id, parent.id).await?;
        if let Some(violation) = validate_parent(parent.path.len(), height, is_below) {
            return Err(EngineError::invalid(violation));
        }
    }
    let moved_at = change.time_of_change().await?;
    let parent_id = parent.map(|parent| parent.id);
    Ok(store::subjects::subject::set_parent(&mut change.scope(), row.id, parent_id, moved_at).await?)
}

fn taken_customer(error: StoreError) -> EngineError {
    match error {
        StoreError::Constraint { constraint } if constraint == "subjects_customer" => EngineError::Conflict {
            code: "customer_taken",
            detail: "another subject is mapped to this customer; clear that mapping first".to_owned(),
        },
        other => other.into(),
    }
}
