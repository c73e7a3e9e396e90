//! Customers and invoices of the provider, from its webhooks.

use sqlx::FromRow;

use crate::store::StoreError;
use crate::store::scope::Scope;
use metergate_domain::base::Timestamp;
use metergate_domain::webhook::WebhookInvoice;

#[derive(Debug, Clone, Default, FromRow)]
pub struct CustomerRow {
    /// The subject in the customer's metadata.
    pub subject: Option<String>,
    /// The subject of the customer's first checkout.
    pub reference: Option<String>,
    pub deleted: bool,
}

pub async fn find(scope: &mut Scope<'_>, id: &str) -> Result<Option<CustomerRow>, StoreError> {
    let row = sqlx::query_as(
        "select subject, reference, deleted from stripe_customers where environment = $1 and id = $2",
    )
    .bind(scope.environment.code())
    .bind(id)
    .fetch_optional(&mut *scope.connection)
    .await?;
    Ok(row)
}

/// Writes the subject in a customer's metadata, unless a later state is known.
pub async fn write(
    scope: &mut Scope<'_>,
    id: &str,
    subject: Option<&str>,
    event_created: Timestamp,
) -> Result<(), StoreError> {
    sqlx::query(
        "insert into stripe_customers as c (environment, id, subject, event_created) values ($1, $2, $3, $4)
         on conflict on constraint stripe_customers_pk do update set
             subject = excluded.subject, event_created = excluded.event_created
             where not c.deleted and c.event_created <= excluded.event_created",
    )
    .bind(scope.environment.code())
    .bind(id)
    .bind(subject)
    .bind(event_created)
    .execute(&mut *scope.connection)
    .await?;
    Ok(())
}

/// Records the subject of a customer's checkout. The first checkout counts.
pub async fn set_reference(scope: &mut Scope<'_>, id: &str, reference: &str) -> Result<(), StoreError> {
    sqlx::query(
        "insert into stripe_customers as c (environment, id, reference, event_created)
         values ($1, $2, $3, '-infinity')
         on conflict on constraint stripe_customers_pk do update set
             reference = coalesce(c.reference, excluded.reference)",
    )
    .bind(scope.environment.code())
    .bind(id)
    .bind(reference)
    .execute(&mut *scope.connection)
    .await?;
    Ok(())
}

/// Marks a customer as deleted for good.
pub async fn set_deleted(scope: &mut Scope<'_>, id: &str) -> Result<(), StoreError> {
    sqlx::query(
        "insert into stripe_customers (environment, id, deleted, event_created) values ($1, $2, true, '-infinity')
         on conflict on constraint stripe_customers_pk do update set deleted = true",
    )
    .bind(scope.environment.code())
    .bind(id)
    .execute(&mut *scope.connection)
    .await?;
    Ok(())
}

/// Writes an invoice, unless a later state is known. Of two states in one second, the later status in
/// an invoice's life wins, then the later payment attempt.
pub async fn write_invoice(
    scope: &mut Scope<'_>,
    invoice: &WebhookInvoice,
    event_created: Timestamp,
) -> Result<(), StoreError> {
    sqlx::query(
        "insert into stripe_invoices as i (environment, id, customer, subscription, status, billing_reason, currency, total,
                                           amount_due, amount_paid, attempt_count, period_start, period_end, created_at,
                                           event_created)
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)
         on conflict on constraint stripe_invoices_pk do update set
             customer = excluded.customer, subscription = excluded.subscription, status = excluded.status,
             billing_reason = excluded.billing_reason, currency = excluded.currency, total = excluded.total,
             amount_due = excluded.amount_due, amount_paid = excluded.amount_paid,
             attempt_count = excluded.attempt_count, period_start = excluded.period_start,
             period_end = excluded.period_end, event_created = excluded.event_created
             where (i.event_created, coalesce(array_position(array['draft', 'open'], i.status), 3),
                    coalesce(i.attempt_count, 0))
                <= (excluded.event_created, coalesce(array_position(array['draft', 'open'], excluded.status), 3),
                    coalesce(excluded.attempt_count, 0))",
    )
    .bind(scope.environment.code())
    .bind(&invoice.id)
    .bind(&invoice.customer)
    .bind(&invoice.subscription)
    .bind(&invoice.status)
    .bind(&invoice.billing_reason)
    .bind(&invoice.currency)
    .bind(invoice.total)
    .bind(invoice.amount_due)
    .bind(invoice.amount_paid)
    .bind(invoice.attempt_count)
    .bind(invoice.period_start)
    .bind(invoice.period_end)
    .bind(invoice.created_at)
    .bind(event_created)
    .execute(&mut *scope.connection)
    .await?;
    Ok(())
}
