//! The database refuses to change or remove movements of the ledger.

use serde_json::json;

#[tokio::test]
async fn ledger_rows_cannot_be_changed_or_removed() {
    let service = super::start().await;
    super::granted(&service, "a", &json!({"credit_unit": "credits", "amount": 5})).await;
    let pool = service.engine.database().pool();
    for (statement, why) in [
        ("update credit_ledger set amount = 1", "append-only"),
        ("delete from credit_ledger", "append-only"),
        ("truncate credit_ledger", "never emptied"),
    ] {
        let refused = sqlx::query(statement).execute(pool).await.unwrap_err().to_string();
        assert!(refused.contains(why), "{statement}: {refused}");
    }
    service.verify().await;
}
