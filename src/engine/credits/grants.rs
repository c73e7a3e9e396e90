//! Grants of credits, issued once per external reference, and their voids.

use serde::Serialize;
use sqlx::PgConnection;
use uuid::Uuid;

use super::wallets::{HolderSubscriptions, LockedWallets, WalletLoader, add_holder};
use crate::engine::environment_cache::EnvironmentCache;
use crate::engine::error::EngineError;
use crate::engine::services::{Engine, detached};
use crate::store;
use crate::store::Scope;
use crate::store::credits::wallets::Changes;
use crate::store::credits::{grants, ledger, wallets};
use crate::store::subjects::subject::Which;
use metergate_domain::base::fields::received;
use metergate_domain::base::limits::CREDIT_GRANTS_OPEN_MAX;
use metergate_domain::base::names::SubjectId;
use metergate_domain::base::{Environment, Parsed, Period, Quantity, Timestamp, Total, Violation};
use metergate_domain::credits::wallet::{GrantBalance, GrantState};
use metergate_domain::credits::{GrantSource, Request, Rollover, Unit, VoidRequest, catalog, cost};
use metergate_domain::gate::{CatalogIndex, PathSubject};

/// A grant with its remaining balance.
#[derive(Debug, Clone, Serialize)]
pub struct GrantView {
    pub id: Uuid,
    pub subject: String,
    #[serde(flatten)]
    pub unit: Unit,
    pub amount: Quantity,
    pub available: Total,
    pub held: Total,
    pub status: &'static str,
    pub priority: i32,
    pub effective_at: Timestamp,
    pub expires_at: Option<Timestamp>,
    pub source: GrantSource,
    pub external_ref: Option<String>,
    /// The recurring series of its subject that the grant belongs to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub series: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub period: Option<Period>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub renews: Option<bool>,
    #[serde(skip_serializing_if = "Rollover::is_none")]
    pub rollover: Rollover,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refund_of: Option<i64>,
    pub reason: Option<String>,
    pub created_at: Timestamp,
    pub voided_at: Option<Timestamp>,
}

impl GrantView {
    pub(super) fn of(subject: &SubjectId, grant_balance: GrantBalance) -> Self {
        let GrantBalance { grant, available, held, state, .. } = grant_balance;
        let status = match state {
            GrantState::Upcoming => "upcoming",
            GrantState::Open => "active",
            GrantState::Ended if grant.voided_at.is_some() => "voided",
            GrantState::Ended => "expired",
        };
        Self {
            id: grant.id,
            subject: subject.to_string(),
            unit: grant.unit,
            amount: grant.amount,
            available,
            held,
            status,
            priority: grant.priority,
            effective_at: grant.effective_at,
            expires_at: grant.expires_at,
            source: grant.source,
            external_ref: grant.external_ref,
            series: grant.series,
            period: grant.recurrence.as_ref().map(|recurrence| recurrence.period),
            renews: grant.recurrence.as_ref().map(|recurrence| recurrence.renews),
            rollover: grant.rollover,
            refund_of: grant.refund_of,
            reason: grant.reason,
            created_at: grant.created_at,
            voided_at: grant.voided_at,
        }
    }
}

/// A transaction on a subject's wallet.
struct WalletTransaction {
    cache: std::sync::Arc<EnvironmentCache>,
    environment: Environment,
    began: Timestamp,
    member: PathSubject,
    holders: HolderSubscriptions,
}

impl WalletTransaction {
    /// Opens the transaction. With `make`, inserts the subject and its wallet if they are missing.
    async fn enter(
        engine: &Engine,
        scope: &mut Scope<'_>,
        subject: &SubjectId,
        make: bool,
    ) -> Result<Option<Self>, EngineError> {
        let opening = store::configuration::open_recording(scope).await?;
        let began = engine.inner.clock.now(scope.environment, opening.now);
        let cache = engine.inner.caches.at(scope, opening.versions).await?;
        let names = [subject.to_string()];
        if make {
            store::subjects::subject::insert_missing(scope, &names).await?;
        }
        let paths = store::subjects::subject::paths(scope, Which::Of(&names)).await?;
        let member = paths.into_iter().next().and_then(|path| path.members.into_iter().next());
        let Some(member) = member else { return Ok(None) };
        let mut holders = HolderSubscriptions::new();
        add_holder(&mut holders, &member);
        if make {
            wallets::insert_missing(scope, &[member.subject_id]).await?;
        }
        Ok(Some(Self { cache, environment: scope.environment, began, member, holders }))
    }

    fn wallet_loader<'a>(&'a self, engine: &'a Engine) -> WalletLoader<'a> {
        WalletLoader {
            environment: self.environment,
            terms: &self.cache.terms,
            clock: &engine.inner.clock,
            began: self.began,
        }
    }

    /// Returns a grant with its balance in the open wallet.
    fn view(&self, subject: &SubjectId, locked_wallets: &LockedWallets, id: Uuid) -> Option<GrantView> {
        let grant_balance = locked_wallets.wallets.get(&self.member.subject_id)?.grant_balance(id)?;
        Some(GrantView::of(subject, grant_balance.clone()))
    }
}

fn not_found() -> EngineError {
    EngineError::NotFound {
        code: "grant_not_found",
        detail: "the subject has no grant with this id; list its grants to see their ids".to_owned(),
    }
}

impl Engine {
    /// Grants credits. A repeated request with the same external reference returns the first grant.
    pub async fn grant_credits(
        &self,
        environment: Environment,
        subject: SubjectId,
        request: Request,
    ) -> Result<(GrantView, bool), EngineError> {
        let engine = self.clone();
        detached(async move {
            // another call may take the reference in between; the second round then returns its grant
            for _ in 0..2 {
                if let Some(replayed) = engine.granted_before(environment, &subject, &request).await? {
                    return Ok((replayed, true));
                }
                if let Some(made) = engine.try_grant(environment, &subject, &request).await? {
                    return Ok((made, false));
                }
            }
            Err(EngineError::Internal("an external reference is taken, but no grant has it".to_owned()))
        })
        .await
    }

    async fn granted_before(
        &self,
        environment: Environment,
        subject: &SubjectId,
        request: &Request,
    ) -> Result<Option<GrantView>, EngineError> {
        let Some(reference) = &request.external_ref else { return Ok(None) };
        let mut transaction = self.database().pool().begin().await?;
        let known = grants::of_reference(&mut Scope::new(&mut transaction, environment), reference).await?;
        let Some((subject_id, id, content)) = known else { return Ok(None) };
        if content != Some(request.content(subject.as_str())) {
            return Err(EngineError::Conflict {
                code: "external_ref_reused",
                detail: format!(
                    "`external_ref` must be unique per grant: {} belongs to another grant",
                    received(reference)
                ),
            });
        }
        let grant_balance = grants::live(&mut transaction, &[subject_id], &[id]).await?;
        let grant_balance = grant_balance.into_iter().find(|(_, grant_balance)| grant_balance.grant.id == id);
        transaction.commit().await?;
        Ok(grant_balance.map(|(_, grant_balance)| GrantView::of(subject, grant_balance)))
    }

    /// Tries to grant credits; returns none if the external reference is taken.
    async fn try_grant(
        &self,
        environment: Environment,
        subject: &SubjectId,
        request: &Request,
    ) -> Result<Option<GrantView>, EngineError> {
        let mut transaction = self.database().pool().begin().await?;
        let scope = &mut Scope::new(&mut transaction, environment);
        let Some(wallet_transaction) = WalletTransaction::enter(self, scope, subject, true).await? else {
            return Err(EngineError::Internal("a subject disappeared within its transaction".to_owned()));
        };
        validate_subject_unit(
            &wallet_transaction.cache.terms,
            &wallet_transaction.member,
            &request.unit,
            wallet_transaction.began,
        )?;
        let wallet_loader = wallet_transaction.wallet_loader(self);
        let mut locked_wallets =
            wallet_loader.open(scope.connection, &wallet_transaction.holders, &[]).await?;
        let subject_id = wallet_transaction.member.subject_id;
        if let Some(spend) = request.refund_of {
            validate_refund(scope.connection, subject_id, spend, request).await?;
        }
        let now = locked_wallets.now;
        let Some(wallet) = locked_wallets.wallets.get_mut(&subject_id) else {
            return Err(EngineError::Internal("a wallet disappeared within its transaction".to_owned()));
        };
        if wallet.grant_balances().len() >= CREDIT_GRANTS_OPEN_MAX {
            let detail = format!(
                "a subject must have at most {CREDIT_GRANTS_OPEN_MAX} open grants; void one or wait until one is used up"
            );
            return Err(EngineError::invalid(Violation::new("too_many", detail)));
        }
        if (wallet.all_of(&request.unit) + request.amount.into()).quantity().is_none() {
            let detail = "must keep the balance of the subject within the largest quantity; grant less";
            return Err(EngineError::invalid(Violation::new("balance_too_large", detail).under("amount")));
        }
        let grant = request.granted(Uuid::now_v7(), now)?;
        let content = Some(request.content(subject.as_str()));
        if !grants::insert(scope, subject_id, &grant, content).await? {
            return Ok(None);
        }
        let id = grant.id;
        wallet.give(grant, now);
        locked_wallets
            .write(scope.connection, wallet_loader, &wallet_transaction.holders, Changes::default())
            .await?;
        transaction.commit().await?;
        Ok(wallet_transaction.view(subject, &locked_wallets, id))
    }

    /// Voids a grant; its held amount stays held. A repeated call returns the same answer.
    pub async fn void_grant(
        &self,
        environment: Environment,
        subject: SubjectId,
        id: Uuid,
        request: VoidRequest,
    ) -> Result<(GrantView, bool), EngineError> {
        let engine = self.clone();
        detached(async move {
            let mut transaction = engine.database().pool().begin().await?;
            let wallet_transaction = WalletTransaction::enter(
                &engine,
                &mut Scope::new(&mut transaction, environment),
                &subject,
                false,
            )
            .await?;
            let wallet_transaction = wallet_transaction.ok_or_else(not_found)?;
            let wallet_loader = wallet_transaction.wallet_loader(&engine);
            let mut locked_wallets =
                wallet_loader.open(&mut transaction, &wallet_transaction.holders, &[id]).await?;
            let now = locked_wallets.now;
            let wallet = locked_wallets
                .wallets
                .get_mut(&wallet_transaction.member.subject_id)
                .ok_or_else(not_found)?;
            wallet.grant_balance(id).ok_or_else(not_found)?;
            let made = wallet.void(id, request.reason, now);
            if made {
                grants::set_voided(&mut transaction, &[(id, now)]).await?;
            }
            locked_wallets
                .write(&mut transaction, wallet_loader, &wallet_transaction.holders, Changes::default())
                .await?;
            transaction.commit().await?;
            let view = wallet_transaction.view(&subject, &locked_wallets, id).ok_or_else(not_found)?;
            Ok((view, !made))
        })
        .await
    }
}

/// Validates a refund under the lock of the wallet: it must use the unit of the spend, and at most the
/// unrefunded amount.
async fn validate_refund(
    connection: &mut PgConnection,
    subject_id: i64,
    spend: i64,
    request: &Request,
) -> Result<(), EngineError> {
    let Some((unit, amount)) = ledger::spend(connection, subject_id, spend).await? else {
        let detail = "must be the `id` of a spend in the ledger of this subject";
        return Err(EngineError::invalid(Violation::new("unknown_spend", detail).under("refund_of")));
    };
    if unit != request.unit {
        let detail = format!("must be the `id` of a spend in the unit of the grant; the spend was in {unit}");
        return Err(EngineError::invalid(Violation::new("refund_unit_mismatch", detail).under("refund_of")));
    }
    let refunded = grants::refunded(connection, &[subject_id], &[spend]).await?;
    let left = (amount - refunded.get(&spend).copied().unwrap_or_default()).or_zero();
    if Total::from(request.amount) > left {
        let detail = format!(
            "must be at most what is left of the spend to refund, which is {left}; got {}",
            request.amount
        );
        return Err(EngineError::invalid(Violation::new("refund_exceeds_spend", detail).under("amount")));
    }
    Ok(())
}

/// Validates that credits in a unit can cover usage of a subject.
fn validate_subject_unit(
    terms: &CatalogIndex,
    member: &PathSubject,
    unit: &Unit,
    now: Timestamp,
) -> Parsed<()> {
    if let Some(violation) = catalog::validate_unit(&terms.catalog, unit) {
        return Err(violation.into());
    }
    let (Unit::Currency(currency), Some(own)) = (unit, &member.subscription) else { return Ok(()) };
    let ended = own.ended(&terms.catalog, now);
    let own = ended.as_ref().unwrap_or(own);
    let Some(plan) = terms.catalog.plan(&own.plan) else { return Ok(()) };
    match cost::validate_money_limits(&plan.limits, &own.prices(&terms.catalog), *currency) {
        Some(violation) => Err(violation.into()),
        None => Ok(()),
    }
}
