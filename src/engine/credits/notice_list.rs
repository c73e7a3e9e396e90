//! Listing credit notices: the use case.

use crate::engine::error::EngineError;
use crate::engine::page::{Page, PageRequest};
use crate::engine::services::Engine;
use crate::store;
use crate::store::Scope;
use crate::store::credits::notices::CreditNotice;
use metergate_domain::base::Environment;
use metergate_domain::credits::NoticeFilter;

impl Engine {
    /// Returns a page of notices, the latest first.
    pub async fn list_notices(
        &self,
        environment: Environment,
        filter: &NoticeFilter,
        page: &PageRequest,
    ) -> Result<Page<CreditNotice>, EngineError> {
        let before = page.before_number()?;
        let mut connection = self.database().pool().acquire().await?;
        let rows = store::credits::notices::list(
            &mut Scope::new(&mut connection, environment),
            filter,
            before,
            page.rows_max(),
        )
        .await?;
        Ok(Page::from_rows(rows, page.limit, |row| row.id))
    }
}
