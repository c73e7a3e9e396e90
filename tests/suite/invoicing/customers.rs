//! The billed customer is the one that the usage was recorded for, regardless of the present mapping. One
//! customer owes the fees.

use serde_json::{Value, json};

use super::{Books, START, all_told, prices, told};

impl Books {
    async fn map(&self, subject: &str, customer: &Value) {
        self.put(&format!("/v1/subjects/{subject}"), &json!({"stripe_customer_id": customer})).await;
    }

    async fn of_customer(&self, customer: &str) -> Vec<String> {
        all_told(&super::invoices(&self.service, &format!("customer={customer}")).await)
    }
}

#[tokio::test]
async fn plans_in_two_currencies_within_a_period_make_two_invoices() {
    let dinar = json!({"key": "dinar", "prices": [
        {"key": "use", "meter": "m", "model": "per_unit", "currency": "kwd", "unit_amount": 7},
        {"key": "fee", "model": "flat", "currency": "kwd", "amount": 1000},
    ]});
    for [first, second] in [["pro", "dinar"], ["dinar", "pro"]] {
        let books = Books::open().await;
        let mut catalog = super::catalog(&prices());
        catalog["plans"].as_array_mut().unwrap().push(dinar.clone());
        books.service.apply(catalog).await;
        books.subscribe("acme", &json!({"plan": first})).await;
        books.bill().await;
        books.set_clock("2026-12-01T00:00:00Z");
        books.track("a", "acme", 10, "2026-11-30T00:00:00Z").await;
        books.subscribe("acme", &json!({"plan": second})).await;
        books.track("b", "acme", 3, "2026-12-01T00:00:00Z").await;
        // the upcoming invoice is that of the present plan
        let (now, before) = if second == "pro" { ("usd", "kwd") } else { ("kwd", "usd") };
        assert_eq!(books.upcoming("acme").await["currency"], now, "{before} before");
        books.set_clock("2026-12-20T11:00:00Z");
        assert_eq!(books.bill().await.1, 2, "{first}");
        assert_eq!(books.upcoming("acme").await["currency"], now, "{before} before");
        // both invoices are corrected
        books.track("late_a", "acme", 1, "2026-11-30T00:00:00Z").await;
        books.track("late_b", "acme", 2, "2026-12-01T00:00:00Z").await;
        books.set_clock("2027-01-20T11:00:00Z");
        assert_eq!(books.bill().await.1, 2, "{first}");
        assert_eq!(books.bill().await, (0, 0));
        let invoices = books.invoices("acme").await;
        for (currency, plan, unit, fee) in [("usd", "pro", 1, 500), ("kwd", "dinar", 7, 1000)] {
            let of_currency: Vec<&Value> = invoices
                .iter()
                .filter(|invoice| invoice["currency"] == currency && invoice["status"] == "final")
                .collect();
            let (used, late) = if plan == first { (10, 1) } else { (3, 2) };
            let [billed, corrected] = of_currency[..] else { panic!("{invoices:?}") };
            assert_eq!(billed["total"], used * unit + fee, "{first} {billed}");
            let present = if plan == second { fee } else { 0 };
            assert_eq!(corrected["total"], late * unit + present, "{first} {corrected}");
        }
    }
}

#[tokio::test]
async fn new_customers_are_billed_from_the_period_of_their_mapping() {
    let books = Books::open().await;
    for end in ["2026-12-20T11:00:00Z", "2027-01-20T11:00:00Z"] {
        books.set_clock(end);
        books.bill().await;
    }
    books.set_clock("2027-01-25T00:00:00Z");
    books.track("old", "acme", 5, "2027-01-24T00:00:00Z").await;
    books.map("acme", &json!("cus_new")).await;
    books.track("new", "acme", 7, "2027-01-25T00:00:00Z").await;
    // usage of any age counts for the customer at the time of recording
    books.track("late", "acme", 100, "2027-01-20T09:00:00Z").await;
    books.bill().await;
    assert_eq!(told(&books.upcoming("acme").await), "- draft 01-20..02-20 507: use 7 7, fee 0 500");
    books.set_clock("2027-02-20T11:00:00Z");
    books.bill().await;
    assert_eq!(books.bill().await.1, 0);
    assert_eq!(
        books.of_customer("cus_acme").await[..3],
        [
            "MG-000001 final 11-20..12-20 500: use 0 0, fee 0 500",
            "MG-000002 final 12-20..01-20 500: use 0 0, fee 0 500",
            "MG-000004 final 01-20..02-20 5: use 5 5",
        ]
    );
    assert_eq!(
        books.of_customer("cus_new").await,
        [
            "MG-000003 final 12-20..01-20 100: use 100 100",
            "MG-000005 final 01-20..02-20 507: use 7 7, fee 0 500",
            "- draft 02-20..03-20 500: use 0 0, fee 0 500",
        ]
    );
}

#[tokio::test]
async fn recorded_usage_is_billed_even_to_a_short_lived_customer() {
    for (next, fee) in [(json!("cus_next"), true), (Value::Null, false)] {
        let books = Books::open().await;
        books.put("/v1/subjects/brief", &json!({"stripe_customer_id": "cus_brief"})).await;
        books.subscribe("brief", &json!({"plan": "pro"})).await;
        books.track("a", "brief", 1100, START).await;
        books.map("brief", &next).await;
        books.track("b", "brief", 4, START).await;
        books.set_clock("2026-12-20T11:00:00Z");
        books.bill().await;
        let first = "final 11-20..12-20 1100: use 1100 1100";
        let of_brief = books.of_customer("cus_brief").await;
        assert!(of_brief.len() == 1 && of_brief[0].ends_with(first), "{of_brief:?}");
        let mut of_next = books.of_customer("cus_next").await;
        of_next.retain(|told| !told.contains("draft"));
        assert_eq!(of_next.len(), usize::from(fee), "{of_next:?}");
        assert!(of_next.iter().all(|told| told.ends_with("final 11-20..12-20 504: use 4 4, fee 0 500")));
        // a void is refunded to the customer that was billed
        books.service.post("/v1/events/a/void", &json!({})).await;
        books.set_clock("2027-01-20T11:00:00Z");
        books.bill().await;
        let of_brief = books.of_customer("cus_brief").await;
        assert!(of_brief[1].contains("final 12-20..01-20 -1100: use -1100 -1100 of MG-"), "{of_brief:?}");
    }
}

#[tokio::test]
async fn customers_below_a_plan_pay_by_the_nearest_subscription() {
    let books = Books::open().await;
    let unit = json!({"parent": "acme", "stripe_customer_id": "cus_unit"});
    books.put("/v1/subjects/unit", &unit).await;
    books.put("/v1/subjects/ann", &json!({"parent": "unit"})).await;
    books.put("/v1/subjects/bob", &json!({"parent": "acme"})).await;
    assert_eq!(books.bill().await, (1, 0));
    books.track("a", "ann", 30, START).await;
    books.track("b", "bob", 4, START).await;
    assert_eq!(told(&books.upcoming("unit").await), "- draft 11-20..12-20 30: use 30 30");
    assert_eq!(told(&books.upcoming("acme").await), "- draft 11-20..12-20 504: use 4 4, fee 0 500");
    books.bill().await;
    books.set_clock("2026-12-20T11:00:00Z");
    books.bill().await;
    let of_unit = books.of_customer("cus_unit").await;
    assert!(of_unit[0].ends_with("final 11-20..12-20 30: use 30 30"), "{of_unit:?}");
    let of_acme = books.of_customer("cus_acme").await;
    assert!(of_acme[0].ends_with("final 11-20..12-20 504: use 4 4, fee 0 500"), "{of_acme:?}");
}

#[tokio::test]
async fn customers_mapped_to_two_subjects_have_invoices_of_both() {
    let books = Books::open().await;
    books.track("a", "acme", 3, START).await;
    books.set_clock("2026-12-01T00:00:00Z");
    books.map("acme", &Value::Null).await;
    books.put("/v1/subjects/beta", &json!({"stripe_customer_id": "cus_acme"})).await;
    books.subscribe("beta", &json!({"plan": "team"})).await;
    books.track("b", "beta", 2, "2026-12-01T00:00:00Z").await;
    books.set_clock("2027-01-01T01:00:00Z");
    books.bill().await;
    let told = books.of_customer("cus_acme").await;
    assert_eq!(told[0], "MG-000001 final 11-20..12-20 503: use 3 3, fee 0 500");
    assert!(told.contains(&"MG-000002 final 12-01..01-01 20: use 2 20".to_owned()), "{told:?}");
}
