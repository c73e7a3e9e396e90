//! Invoices: drafts with a customer and a period, and numbered invoices.

use std::collections::BTreeSet;

use serde_json::Value;
use sqlx::postgres::PgRow;
use sqlx::types::Json;
use sqlx::{FromRow, PgConnection, Row};
use uuid::Uuid;

use super::StoreError;
use crate::store::scope::Scope;
use metergate_domain::base::names::{StripeCustomerId, SubjectId};
use metergate_domain::base::{Span, Timestamp};
use metergate_domain::invoicing::{InvoiceFilter, InvoiceLine, RatingTerms};
use metergate_domain::pricing::{Currency, MinorUnits};

/// The first half of the advisory lock's key. The second half is the environment.
const LOCK: i32 = 0x4d47_0009;

/// A stored invoice.
#[derive(Debug, Clone)]
pub struct InvoiceRow {
    pub id: Uuid,
    pub customer_id: i64,
    pub stripe_customer_id: String,
    pub subject_id: i64,
    pub subject: String,
    pub currency: Currency,
    pub period: Span,
    pub created_at: Timestamp,
    /// None for a draft.
    pub numbered: Option<Numbered>,
    /// The biller's invoice for the same customer and period.
    pub provider: Option<ProviderInvoice>,
}

/// The final content of a numbered invoice.
#[derive(Debug, Clone)]
pub struct Numbered {
    pub number: i64,
    pub terms: Vec<RatingTerms>,
    pub lines: Vec<InvoiceLine>,
    pub total: MinorUnits,
    pub finalized_at: Timestamp,
}

/// The biller's invoice for a period; the total is in the currency's minor unit.
#[derive(Debug, Clone, FromRow)]
pub struct ProviderInvoice {
    #[sqlx(rename = "provider_id")]
    pub id: String,
    #[sqlx(rename = "provider_status")]
    pub status: String,
    #[sqlx(rename = "provider_total")]
    pub total: Option<i64>,
    #[sqlx(rename = "provider_subscription")]
    pub subscription: Option<String>,
}

/// A customer that may have to pay, and the subject that is or was mapped to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromRow)]
pub struct Payer {
    pub customer_id: i64,
    pub subject_id: i64,
}

/// A period and currency that need a draft.
#[derive(Debug, Clone)]
pub struct DraftOpening {
    pub id: Uuid,
    pub currency: Currency,
    pub period: Span,
}

impl DraftOpening {
    /// Returns one opening per currency.
    pub fn each(currencies: &BTreeSet<Currency>, period: Span) -> impl Iterator<Item = Self> {
        currencies.iter().map(move |currency| Self { id: Uuid::now_v7(), currency: *currency, period })
    }
}

fn unreadable(what: impl std::fmt::Debug) -> StoreError {
    StoreError::Refused(sqlx::Error::Decode(format!("a stored invoice is not valid: {what:?}").into()))
}

/// The columns of an invoice. The biller's invoice has the same customer and end; one with the same
/// start takes precedence.
const SELECT: &str = "select i.id, i.customer_id, c.stripe_customer_id, i.subject_id, s.subject, i.currency,
            i.period_from, i.period_to, i.created_at, i.number, i.terms, i.lines, i.total::text as total,
            i.finalized_at, p.id as provider_id, p.status as provider_status, p.total as provider_total,
            p.subscription as provider_subscription
     from invoices i
     join customers c on c.id = i.customer_id
     join subjects s on s.id = i.subject_id
     left join lateral (
         select p.* from stripe_invoices p
         where p.environment = i.environment and p.customer = c.stripe_customer_id and p.period_end = i.period_to
           and p.period_start < p.period_end and p.status <> 'deleted'
           and coalesce(p.currency, i.currency) = i.currency
         order by p.period_start = i.period_from desc, p.status <> 'void' desc, p.created_at desc, p.id limit 1)
         p on true";

/// The status as one word.
const STATUS: &str = "case when i.status = 'draft' then 'draft'
     when p.status in ('open', 'paid', 'void', 'uncollectible') then p.status else 'final' end";

fn read(row: &PgRow) -> Result<InvoiceRow, StoreError> {
    let currency: String = row.try_get("currency")?;
    let number: Option<i64> = row.try_get("number")?;
    let numbered = match number {
        None => None,
        Some(number) => {
            let Json(terms): Json<Vec<Value>> = row.try_get("terms")?;
            let Json(lines): Json<Vec<InvoiceLine>> = row.try_get("lines")?;
            let total: String = row.try_get("total")?;
            Some(Numbered {
                number,
                terms: terms
                    .into_iter()
                    .map(|terms| RatingTerms::read(terms).map_err(unreadable))
                    .collect::<Result<_, _>>()?,
                lines,
                total: MinorUnits::parse(&total).ok_or_else(|| unreadable(&total))?,
                finalized_at: row.try_get("finalized_at")?,
            })
        }
    };
    let provider: Option<String> = row.try_get("provider_id")?;
    let provider = provider.map(|_| ProviderInvoice::from_row(row)).transpose()?;
    Ok(InvoiceRow {
        id: row.try_get("id")?,
        customer_id: row.try_get("customer_id")?,
        stripe_customer_id: row.try_get("stripe_customer_id")?,
        subject_id: row.try_get("subject_id")?,
        subject: row.try_get("subject")?,
        currency: Currency::parse(&currency).map_err(unreadable)?,
        period: Span { from: row.try_get("period_from")?, to: row.try_get("period_to")? },
        created_at: row.try_get("created_at")?,
        numbered,
        provider,
    })
}

pub async fn find(scope: &mut Scope<'_>, id: Uuid) -> Result<Option<InvoiceRow>, StoreError> {
    let sql = format!("{SELECT} where i.environment = $1 and i.id = $2");
    let row = sqlx::query(sqlx::AssertSqlSafe(sql)).bind(scope.environment.code()).bind(id);
    row.fetch_optional(&mut *scope.connection).await?.as_ref().map(read).transpose()
}

/// Returns the invoices of a customer, the oldest period first: all drafts, and numbered invoices of
/// periods that ended after a time.
pub async fn of_payer(
    connection: &mut PgConnection,
    payer: Payer,
    ended_after: Timestamp,
) -> Result<Vec<InvoiceRow>, StoreError> {
    let sql = format!(
        "{SELECT} where i.customer_id = $1 and i.subject_id = $3 and (i.status = 'draft' or i.period_to > $2)
         order by i.period_from, i.currency"
    );
    let rows = sqlx::query(sqlx::AssertSqlSafe(sql))
        .bind(payer.customer_id)
        .bind(ended_after)
        .bind(payer.subject_id);
    rows.fetch_all(connection).await?.iter().map(read).collect()
}

/// Returns the end of the customer's last numbered period, and the time of the last numbering.
pub async fn billed_until(
    connection: &mut PgConnection,
    payer: Payer,
) -> Result<Option<(Timestamp, Timestamp)>, StoreError> {
    let (until, at): (Option<Timestamp>, Option<Timestamp>) = sqlx::query_as(
        "select max(period_to), max(finalized_at) from invoices
         where customer_id = $1 and subject_id = $2 and status = 'final'",
    )
    .bind(payer.customer_id)
    .bind(payer.subject_id)
    .fetch_one(connection)
    .await?;
    Ok(until.zip(at))
}

/// Returns a page of invoices before a position, the latest first.
pub async fn list(
    scope: &mut Scope<'_>,
    filter: &InvoiceFilter,
    before: (Timestamp, Uuid),
    limit: u32,
) -> Result<Vec<InvoiceRow>, StoreError> {
    let sql = format!(
        "{SELECT} where i.environment = $1 and (i.created_at, i.id) < ($2, $3)
         and ($4::text is null or s.subject = $4) and ($5::text is null or c.stripe_customer_id = $5)
         and ($6::text is null or {STATUS} = $6)
         order by i.created_at desc, i.id desc limit $7"
    );
    let rows = sqlx::query(sqlx::AssertSqlSafe(sql))
        .bind(scope.environment.code())
        .bind(before.0)
        .bind(before.1)
        .bind(filter.subject.as_ref().map(SubjectId::as_str))
        .bind(filter.customer.as_ref().map(StripeCustomerId::as_str))
        .bind(filter.status)
        .bind(i64::from(limit));
    rows.fetch_all(&mut *scope.connection).await?.iter().map(read).collect()
}

/// Returns customers with drafts that may be out of date. Their subject or one of its ancestors was
/// ever on one of the plans or had its own prices, or they have invoices already.
pub async fn payers(
    scope: &mut Scope<'_>,
    plans: &[String],
    now: Timestamp,
) -> Result<Vec<Payer>, StoreError> {
    let rows = sqlx::query_as(
        "select m.customer_id, m.subject_id
         from (select customer_id, subject_id, max(mapped_until) as mapped_until from customer_mappings
               group by customer_id, subject_id) m
         join subjects s on s.id = m.subject_id
         join paths p on p.id = s.path_id
         where s.environment = $1
           and (exists (select from subscription_history h
                        where h.subject_id = any(p.ancestors) and (h.plan = any($2) or h.prices <> '[]'))
                or exists (select from invoices i where i.customer_id = m.customer_id and i.subject_id = s.id))
           and not exists (select from invoices i where i.customer_id = m.customer_id and i.subject_id = s.id
                           and i.status = 'draft' and i.period_to > $3 and i.looked_at >= (
                               select greatest(m.mapped_until, max(above.moved_at), max(sub.updated_at))
                               from subjects above left join subscriptions sub on sub.subject_id = above.id
                               where above.id = any(p.ancestors)))
         order by m.customer_id, m.subject_id",
    )
    .bind(scope.environment.code())
    .bind(plans)
    .bind(now);
    Ok(rows.fetch_all(&mut *scope.connection).await?)
}

/// Returns the customer of a subject.
pub async fn payer(connection: &mut PgConnection, subject_id: i64) -> Result<Option<Payer>, StoreError> {
    let sql = "select customer_id, id as subject_id from subjects where id = $1 and customer_id is not null";
    Ok(sqlx::query_as(sql).bind(subject_id).fetch_optional(connection).await?)
}

/// Replaces the drafts of a customer with drafts of the given periods. Drafts stay if the invoice of
/// their period in another currency is numbered.
pub async fn set_drafts(
    scope: &mut Scope<'_>,
    payer: Payer,
    openings: &[DraftOpening],
    now: Timestamp,
) -> Result<u64, StoreError> {
    let (from, currencies) = places(openings);
    sqlx::query(
        "delete from invoices i where i.customer_id = $1 and i.status = 'draft' and i.subject_id = $2
           and not exists (select from invoices n where n.customer_id = $1 and n.subject_id = $2
                           and n.period_from = i.period_from and n.status = 'final')
           and (i.period_from, i.currency) not in (select * from unnest($3::timestamptz[], $4::text[]))",
    )
    .bind(payer.customer_id)
    .bind(payer.subject_id)
    .bind(&from)
    .bind(&currencies)
    .execute(&mut *scope.connection)
    .await?;
    open_drafts(scope, payer, openings, now).await
}

fn places(openings: &[DraftOpening]) -> (Vec<Timestamp>, Vec<String>) {
    openings.iter().map(|opening| (opening.period.from, opening.currency.code())).unzip()
}

/// Opens missing drafts, keeps the ids of existing ones, and returns the number of new drafts.
pub async fn open_drafts(
    scope: &mut Scope<'_>,
    payer: Payer,
    openings: &[DraftOpening],
    now: Timestamp,
) -> Result<u64, StoreError> {
    let (from, currencies) = places(openings);
    let opened: i64 = sqlx::query_scalar(
        "with given as (select * from unnest($5::uuid[], $6::text[], $7::timestamptz[], $8::timestamptz[])
                            as given (id, currency, period_from, period_to)),
         opened as (
             insert into invoices as i (id, environment, customer_id, subject_id, currency, period_from, period_to,
                                        status, created_at, looked_at)
             select id, $1, $2, $3, currency, period_from, period_to, 'draft', $4, $4
             from given order by period_from, currency
             on conflict on constraint invoices_period do update set
                 period_to = excluded.period_to, looked_at = excluded.looked_at where i.status = 'draft'
             returning xmax = 0 as is_new)
         select count(*) from opened where is_new",
    )
    .bind(scope.environment.code())
    .bind(payer.customer_id)
    .bind(payer.subject_id)
    .bind(now)
    .bind(openings.iter().map(|opening| opening.id).collect::<Vec<_>>())
    .bind(&currencies)
    .bind(&from)
    .bind(openings.iter().map(|opening| opening.period.to).collect::<Vec<_>>())
    .fetch_one(&mut *scope.connection)
    .await?;
    Ok(opened.unsigned_abs())
}

/// Returns drafts of periods that ended by a time, the oldest first.
pub async fn due(scope: &mut Scope<'_>, ended_by: Timestamp, limit: i64) -> Result<Vec<Uuid>, StoreError> {
    let found = sqlx::query_scalar(
        "select id from invoices where environment = $1 and status = 'draft' and period_to <= $2
         order by period_to, period_from, customer_id, currency limit $3",
    )
    .bind(scope.environment.code())
    .bind(ended_by)
    .bind(limit)
    .fetch_all(&mut *scope.connection)
    .await?;
    Ok(found)
}

/// The content of a final invoice.
#[derive(Debug, Clone, Copy)]
pub struct FinalInvoice<'a> {
    pub id: Uuid,
    pub period_to: Timestamp,
    pub terms: &'a [RatingTerms],
    pub lines: &'a [InvoiceLine],
    pub total: &'a MinorUnits,
    pub at: Timestamp,
}

/// Gives a draft the next number of its environment and its final content. Returns none if it is not
/// a draft any more.
pub async fn finalize(scope: &mut Scope<'_>, invoice: FinalInvoice<'_>) -> Result<Option<i64>, StoreError> {
    let terms: Vec<Value> = invoice.terms.iter().map(RatingTerms::to_json).collect();
    let number = sqlx::query_scalar(
        "with draft as (select id from invoices where id = $2 and status = 'draft' for update),
         given as (update invoice_numbers set last = last + 1 where environment = $1 and exists (select from draft)
                   returning last)
         update invoices i set status = 'final', number = given.last, period_to = $3, terms = $4, lines = $5,
                               total = $6::numeric, finalized_at = $7
         from draft, given where i.id = draft.id
         returning i.number",
    )
    .bind(scope.environment.code())
    .bind(invoice.id)
    .bind(invoice.period_to)
    .bind(Json(terms))
    .bind(Json(invoice.lines))
    .bind(invoice.total.to_string())
    .bind(invoice.at)
    .fetch_optional(&mut *scope.connection)
    .await?;
    Ok(number)
}

/// Deletes a draft without anything to bill.
pub async fn drop_draft(connection: &mut PgConnection, id: Uuid) -> Result<(), StoreError> {
    sqlx::query("delete from invoices where id = $1 and status = 'draft'")
        .bind(id)
        .execute(connection)
        .await?;
    Ok(())
}

/// Takes the invoice lock of an environment until [`unlock`] or the end of the connection. Returns
/// false if another connection holds the lock.
pub async fn try_lock(scope: &mut Scope<'_>) -> Result<bool, StoreError> {
    let locked = sqlx::query_scalar("select pg_try_advisory_lock($1, $2)")
        .bind(LOCK)
        .bind(i32::from(scope.environment.code()))
        .fetch_one(&mut *scope.connection)
        .await?;
    Ok(locked)
}

/// Releases the lock of [`try_lock`].
pub async fn unlock(scope: &mut Scope<'_>) -> Result<(), StoreError> {
    sqlx::query("select pg_advisory_unlock($1, $2)")
        .bind(LOCK)
        .bind(i32::from(scope.environment.code()))
        .execute(&mut *scope.connection)
        .await?;
    Ok(())
}
