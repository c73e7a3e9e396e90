//! Stripe's meter event API: records each identifier once, for the subject of the customer in the
//! payload.

use std::sync::Arc;

use uuid::Uuid;

use super::events::Voided;
use super::ingest::prepared_event::{EventOutcome, Times, new_id};
use crate::engine::change::ChangeTransaction;
use crate::engine::error::EngineError;
use crate::engine::services::{Engine, detached};
use crate::engine::subjects::subject::{existing, move_under, set_customer};
use crate::store::subjects::subject::Which;
use crate::store::{self, Scope, configuration};
use metergate_domain::base::names::{EventId, StripeCustomerId, SubjectId};
use metergate_domain::base::{Environment, Timestamp, Violation};
use metergate_domain::gate::CatalogIndex;
use metergate_domain::usage::event::validate_time;
use metergate_domain::usage::stripe_compat::{meter, source};
use metergate_domain::usage::{Adjustment, Event, MeterEvent, ParsedMeterEvent};

/// A recorded meter event, new or repeated.
#[derive(Debug, Clone)]
pub struct RecordedMeterEvent {
    pub sent: MeterEvent,
    pub identifier: EventId,
    pub occurred_at: Timestamp,
    pub created_at: Timestamp,
    pub replayed: bool,
}

/// The subject that an event is recorded for.
enum PayloadOwner {
    Known(SubjectId),
    /// The subject must be created, mapped or moved first.
    FirstContact,
}

/// The stored reason of a void through this API.
const CANCEL_REASON: &str = "canceled by a meter event adjustment";

impl Engine {
    /// Records a meter event. A repeated identifier is an error. With the idempotency key of the
    /// first call it is a retry, which gets the answer of the first call.
    pub async fn record_meter_event(
        &self,
        environment: Environment,
        sent: MeterEvent,
        idempotency_key: Option<EventId>,
    ) -> Result<RecordedMeterEvent, EngineError> {
        let key = idempotency_key.as_ref();
        let identifier = sent.identity(key).unwrap_or_else(new_id);
        let event = self.locate(environment, &sent, &identifier, sent.statement(key)).await;
        let event = event.inspect_err(count_refused)?;
        let recorded = self.record(environment, vec![event], false, false).await?;
        let replayed = match recorded.outcomes.into_iter().next() {
            Some(EventOutcome::Accepted) => false,
            Some(EventOutcome::Duplicate) if key.is_some() => true,
            Some(EventOutcome::Rejected(violation)) if violation.code != "id_reused" => {
                return Err(EngineError::invalid(in_their_words(violation)));
            }
            _ if sent.identifier.is_none() => return Err(key_reused()),
            _ => return Err(exists(&identifier)),
        };
        let Some(Times { occurred_at, answered_at }) = recorded.times else {
            return Err(EngineError::Internal("a recorded event has no time".to_owned()));
        };
        let created_at = if sent.timestamp.is_some() { answered_at } else { occurred_at };
        Ok(RecordedMeterEvent { sent, identifier, occurred_at, created_at, replayed })
    }

    /// Voids a meter event. A repeated call has no further effect.
    pub async fn cancel_meter_event(
        &self,
        environment: Environment,
        adjustment: Adjustment,
    ) -> Result<Voided, EngineError> {
        let Adjustment { event_name, identifier } = adjustment;
        let mut snapshot = store::usage::snapshot(self.database().pool()).await?;
        let (terms, _) = self.in_force(&mut Scope::new(&mut snapshot, environment)).await?;
        snapshot.commit().await?;
        let own_name = meter(&terms, &event_name)?.event_name.as_str();
        let found = match self.trace_event(environment, &identifier, &source()).await {
            Ok(trace) => trace.event.event_name == own_name,
            Err(EngineError::NotFound { .. }) => false,
            Err(other) => return Err(other),
        };
        if !found {
            let detail = format!("no meter event of `{event_name}` has the identifier {identifier}");
            let violation = Violation::new("resource_missing", detail).under("identifier").under("cancel");
            return Err(EngineError::invalid(violation));
        }
        self.void_event(environment, identifier, source(), Some(CANCEL_REASON.to_owned())).await
    }

    /// Builds the event of a meter event, and creates and maps its subject at first contact.
    async fn locate(
        &self,
        environment: Environment,
        sent: &MeterEvent,
        identifier: &EventId,
        statement: Uuid,
    ) -> Result<Event, EngineError> {
        let mut snapshot = store::usage::snapshot(self.database().pool()).await?;
        let scope = &mut Scope::new(&mut snapshot, environment);
        let (terms, now) = self.in_force(scope).await?;
        let ParsedMeterEvent { customer, subject: named, event_name, value, properties } =
            sent.meaning(&terms)?;
        let whose = whose(scope, &customer, named.as_ref()).await?;
        snapshot.commit().await?;
        let subject = match whose {
            PayloadOwner::Known(subject) => subject,
            PayloadOwner::FirstContact => {
                // an event that will be refused must not create a subject
                let age_max = Some(self.inner.settings.event_age_max);
                let objection = sent.timestamp.and_then(|at| validate_time(at, now, age_max)).or_else(|| {
                    let mut meters = terms.meters_of(event_name.as_str());
                    meters.find_map(|stored| stored.meter.refuses(&properties))
                });
                if let Some(violation) = objection {
                    return Err(EngineError::invalid(in_their_words(violation)));
                }
                self.meet(environment, customer, named).await?
            }
        };
        let (id, source, timestamp) = (Some(identifier.clone()), source(), sent.timestamp);
        let statement = Some(statement);
        Ok(Event { id, source, event_name, subject, value, properties, timestamp, statement })
    }

    async fn in_force(&self, scope: &mut Scope<'_>) -> Result<(Arc<CatalogIndex>, Timestamp), EngineError> {
        let (versions, now) = configuration::versions(scope).await?;
        let cache = self.inner.caches.at(scope, versions).await?;
        Ok((Arc::clone(&cache.terms), self.inner.clock.now(scope.environment, now)))
    }

    /// Maps a customer without a subject, and puts a subject without a parent below it.
    async fn meet(
        &self,
        environment: Environment,
        customer: StripeCustomerId,
        named: Option<SubjectId>,
    ) -> Result<SubjectId, EngineError> {
        let (database, clock) = (self.database().clone(), self.inner.clock.clone());
        detached(async move {
            let mut transaction = database.pool().begin().await?;
            let scope = &mut Scope::new(&mut transaction, environment);
            configuration::lock_alone(scope).await?;
            // a concurrent call may have mapped the customer while this one waited for the lock
            if let PayloadOwner::Known(subject) = whose(scope, &customer, named.as_ref()).await? {
                return Ok(subject);
            }
            let mut change = ChangeTransaction::within(transaction, environment, &clock).await?;
            let payer = payer(&mut change, &customer).await?;
            let subject = match named {
                Some(named) if named != payer => {
                    adopt(&mut change, &named, &payer).await?;
                    named
                }
                _ => payer,
            };
            change.commit().await?;
            Ok(subject)
        })
        .await
    }
}

/// Finds the subject of an event: the named subject if the customer pays for it, or the subject
/// mapped to the customer.
async fn whose(
    scope: &mut Scope<'_>,
    customer: &StripeCustomerId,
    named: Option<&SubjectId>,
) -> Result<PayloadOwner, EngineError> {
    let mapped = store::subjects::subject::of_customer(scope, customer.as_str()).await?;
    let Some(named) = named else {
        return Ok(match mapped {
            Some((_, payer)) => PayloadOwner::Known(subject(payer)?),
            None => PayloadOwner::FirstContact,
        });
    };
    let only = [named.to_string()];
    let paths = store::subjects::subject::paths(scope, Which::Of(&only)).await?;
    let billed = paths.first().and_then(|path| path.customer_id);
    match (billed, mapped) {
        (Some(billed), Some((customer_id, _))) if billed == customer_id => {
            Ok(PayloadOwner::Known(named.clone()))
        }
        (Some(_), _) => Err(refused(named, "another customer pays for this subject")),
        (None, _) if paths.first().is_some_and(|path| path.members.len() > 1) => {
            Err(refused(named, "its parent has no customer; set `stripe_customer_id` of the parent"))
        }
        (None, _) => Ok(PayloadOwner::FirstContact),
    }
}

/// Returns the subject mapped to a customer, or maps the subject with the customer's id as its name.
async fn payer(
    change: &mut ChangeTransaction<'_>,
    customer: &StripeCustomerId,
) -> Result<SubjectId, EngineError> {
    let scope = &mut change.scope();
    if let Some((_, payer)) = store::subjects::subject::of_customer(scope, customer.as_str()).await? {
        return subject(payer);
    }
    let payer = subject(customer.to_string())?;
    store::subjects::subject::insert_missing(scope, &[payer.to_string()]).await?;
    let row = existing(scope, &payer).await?;
    if row.stripe_customer_id.is_some() {
        let detail = "must name a customer with a mapped subject; set `stripe_customer_id` of the subject";
        let violation = Violation::new("customer_unmapped", detail);
        return Err(EngineError::invalid(violation.under("payload")));
    }
    set_customer(change, row.id, Some(customer.as_str())).await?;
    Ok(payer)
}

/// Puts a subject without a parent below the customer's subject.
async fn adopt(
    change: &mut ChangeTransaction<'_>,
    named: &SubjectId,
    payer: &SubjectId,
) -> Result<(), EngineError> {
    let scope = &mut change.scope();
    store::subjects::subject::insert_missing(scope, &[named.to_string()]).await?;
    let row = existing(scope, named).await?;
    move_under(change, &row, Some(payer)).await.map_err(|error| match error {
        EngineError::Invalid(_) => refused(named, "it cannot be moved below the customer's own subject"),
        other => other,
    })
}

fn subject(name: String) -> Result<SubjectId, EngineError> {
    SubjectId::parse(name).map_err(|bad| EngineError::Internal(bad.to_string()))
}

fn refused(named: &SubjectId, why: &str) -> EngineError {
    let violation = Violation::new(
        "subject_not_of_customer",
        format!("must be a subject of the customer; got `{named}`: {why}"),
    );
    EngineError::invalid(violation.under("subject").under("payload"))
}

fn exists(identifier: &EventId) -> EngineError {
    EngineError::Conflict {
        code: "meter_event_exists",
        detail: format!("An event already exists with identifier {identifier}."),
    }
}

fn key_reused() -> EngineError {
    EngineError::Conflict {
        code: "idempotency_key_reused",
        detail: "Keys for idempotent requests can only be used with the same parameters they were first used with."
            .to_owned(),
    }
}

/// Converts a violation of the event into a violation of the meter event.
fn in_their_words(mut violation: Violation) -> Violation {
    if violation.code == "timestamp_too_old" {
        violation.code = "timestamp_too_far_in_past";
        "must not be older than the greatest accepted age of events".clone_into(&mut violation.detail);
    }
    if let Some(property) = violation.pointer.strip_prefix("/properties") {
        violation.pointer = format!("/payload{property}");
    }
    violation
}

/// Adds to the metrics an event that is rejected before it reaches a writer.
fn count_refused(error: &EngineError) {
    if matches!(error, EngineError::Invalid(_)) {
        metrics::counter!("metergate_events_total", "outcome" => "rejected").increment(1);
    }
}
