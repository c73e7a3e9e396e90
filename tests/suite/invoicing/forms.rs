//! Invoices as CSV and as a page, access to them, and refused queries.

use axum::body::Body;
use axum::http::{Method, StatusCode};
use metergate::engine::access::keys::KeyKind;
use metergate_domain::base::Environment;
use serde_json::json;

use super::{Books, get};
use crate::support::TestService;
use crate::support::service::Answer;

impl Books {
    pub(super) async fn as_type(&self, path: &str, media_type: &str) -> Answer {
        let request = self.service.request(Method::GET, path).header("accept", media_type);
        self.service.send(request.body(Body::empty()).unwrap()).await
    }
}

const UPCOMING: &str = "/v1/subjects/acme/invoices/upcoming";

#[tokio::test]
async fn invoice_lines_are_available_as_csv() {
    let books = Books::open().await;
    books.track("a", "acme", 12, super::START).await;
    let answer = books.as_type(UPCOMING, "text/csv").await;
    assert_eq!(answer.headers["content-type"], "text/csv; charset=utf-8");
    let id = books.upcoming("acme").await["id"].as_str().unwrap().to_owned();
    let period = "2026-11-20T10:00:00Z,2026-12-20T10:00:00Z";
    assert_eq!(
        answer.text,
        format!(
            "invoice,number,status,subject,customer,kind,plan,price,meter,filter,period_start,period_end,corrects,\
             quantity,amount,rounded_amount,currency\n\
             {id},,draft,acme,cus_acme,usage,pro,use,m,,{period},,12,12,12,usd\n\
             {id},,draft,acme,cus_acme,fee,pro,fee,,,{period},,0,500,500,usd\n"
        )
    );
}

#[tokio::test]
async fn invoices_respond_in_the_preferred_media_type() {
    let books = Books::open().await;
    books.put("/v1/subjects/=1+1", &json!({"stripe_customer_id": "cus_formula"})).await;
    books.subscribe("=1+1", &json!({"plan": "pro"})).await;
    let usage = "/v1/usage?meter=m&from=2026-11-20T10:00:00Z&to=2026-11-21T10:00:00Z";
    for path in [UPCOMING, usage] {
        let answer = books.as_type(path, "application/json, text/csv;q=0.1").await;
        assert_eq!(answer.headers["content-type"], "application/json", "{path}: {}", answer.text);
        let answer = books.as_type(path, "application/json;q=0.1, text/csv").await;
        assert_eq!(answer.headers["content-type"], "text/csv; charset=utf-8", "{path}: {}", answer.text);
    }
    let answer = books.as_type("/v1/subjects/=1+1/invoices/upcoming", "text/csv").await;
    assert!(answer.text.contains(",draft,'=1+1,cus_formula,"), "{}", answer.text);
}

#[tokio::test]
async fn invoice_page_shows_currency_amounts_and_escapes_markup() {
    let cases = [("usd", "1,234.56&nbsp;USD"), ("jpy", "123,456&nbsp;JPY"), ("kwd", "123.456&nbsp;KWD")];
    for (currency, expected) in cases {
        let books = Books::open_with(&json!([{"key": "use", "meter": "m", "filter": {"model": ["<b>\"a\"&"]}, "model": "graduated", "currency": currency,
            "tiers": [{"up_to": 10, "unit_amount": "0.5"}, {"up_to": null, "unit_amount": 0, "flat_amount": 3}]},
            {"key": "fee", "model": "flat", "currency": currency, "amount": 123_456}]))
        .await;
        let name = "<script>alert('x')</script>";
        books
            .put(
                "/v1/subjects/%3Cscript%3Ealert('x')%3C%2Fscript%3E",
                &json!({"stripe_customer_id": "cus_\"><img src=x>"}),
            )
            .await;
        books.subscribe("%3Cscript%3Ealert('x')%3C%2Fscript%3E", &json!({"plan": "pro"})).await;
        let answer = books
            .as_type("/v1/subjects/%3Cscript%3Ealert('x')%3C%2Fscript%3E/invoices/upcoming", "text/html")
            .await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
        assert_eq!(answer.headers["content-type"], "text/html; charset=utf-8");
        assert!(answer.headers["content-security-policy"].to_str().unwrap().contains("default-src 'none'"));
        assert!(answer.text.contains(expected), "{}", answer.text);
        assert!(
            answer.text.contains("&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;"),
            "{name}: {}",
            answer.text
        );
        assert!(answer.text.contains("model: &lt;b&gt;&quot;a&quot;&amp;"), "{}", answer.text);
        for way_in in ["<script", "<img", "<b>", "javascript:", "http://", "https://"] {
            assert!(!answer.text.contains(way_in), "{way_in}: {}", answer.text);
        }
    }
}

#[tokio::test]
async fn lines_explain_their_amount() {
    let books = Books::open().await;
    let price = |key: &str, more: serde_json::Value| {
        let mut price = json!({"key": key, "meter": "m", "currency": "usd", "filter": {"model": [key]}});
        price.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        price
    };
    books.service.apply(json!({
        "meters": [{"key": "m", "display_name": "AI tokens", "event_name": "e", "aggregation": "sum", "dimensions": ["model"]}],
        "plans": [{"key": "pro", "name": "Pro plan", "prices": [
            price("one", json!({"model": "per_unit", "unit_amount": "0.5", "per_units": 1000, "free_units": 10})),
            price("two", json!({"model": "package", "unit_amount": 150, "per_units": 5000, "round": "up"})),
            price("three", json!({"model": "percentage", "rate": "2.5", "fixed_amount": 30, "event_minimum": 50, "event_maximum": 100_000})),
        ]}],
    })).await;
    let draft = books.upcoming("acme").await;
    assert_eq!(draft["lines"][0]["rates"].as_object().unwrap().len(), 3, "{draft}");
    assert_eq!(
        (&draft["lines"][0]["plan_name"], &draft["lines"][0]["meter_name"]),
        (&json!("Pro plan"), &json!("AI tokens"))
    );
    let page = books.as_type(UPCOMING, "text/html").await.text;
    for text in [
        "AI tokens",
        "plan Pro plan",
        "0.005 for 1,000, the first 10 free",
        "1.5 for each package of 5,000, rounded up",
        "2.5 %, and 0.3 an event, at least 0.5 an event, at most 1,000 an event",
        "2026-11-20 10:00:00 to 2026-12-20 10:00:00",
    ] {
        assert!(page.contains(text), "{text}: {page}");
    }
    // and unchanged after numbering
    books.set_clock("2026-12-20T11:00:00Z");
    books.bill().await;
    let invoice = &books.invoices("acme").await[0];
    assert_eq!(invoice["status"], "final");
    assert_eq!(invoice["lines"][0]["rates"], draft["lines"][0]["rates"]);
}

#[tokio::test]
async fn only_secret_keys_see_invoices() {
    let books = Books::open().await;
    let id = books.upcoming("acme").await["id"].as_str().unwrap().to_owned();
    let publishable =
        books.service.engine.create_key(Environment::Test, KeyKind::Publishable, "p").await.unwrap();
    let live = books.service.engine.create_key(Environment::Live, KeyKind::Secret, "l").await.unwrap();
    let token = TestService::token("acme", "usage:read");
    for path in ["/v1/invoices".to_owned(), format!("/v1/invoices/{id}"), UPCOMING.to_owned()] {
        for credential in [&publishable, &token] {
            let answer = books.service.get_as(credential, &path).await;
            assert_eq!(answer.status, StatusCode::FORBIDDEN, "{path}: {}", answer.text);
        }
        let answer = books.service.get_as("nobody", &path).await;
        assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{path}");
    }
    // another environment
    let answer = books.service.get_as(&live, &format!("/v1/invoices/{id}")).await;
    assert_eq!((answer.status, answer.code().as_str()), (StatusCode::NOT_FOUND, "invoice_not_found"));
    let answer = books.service.get_as(&live, "/v1/invoices?subject=acme").await;
    assert_eq!(answer.json()["data"], json!([]));
}

#[tokio::test]
async fn invalid_invoice_queries_are_refused_with_their_parameter() {
    let books = Books::open().await;
    let id = books.upcoming("acme").await["id"].as_str().unwrap().to_owned();
    let cases = [
        ("/v1/invoices/in_1".to_owned(), "invalid_id", "/id"),
        (format!("/v1/invoices/{id}?compare=stripe"), "invalid_choice", "/compare"),
        (format!("/v1/invoices/{id}?compare=provider&compare=provider"), "duplicate_parameter", "/compare"),
        (format!("/v1/invoices/{id}?expand=lines"), "unknown_parameter", "/expand"),
        ("/v1/invoices?status=late".to_owned(), "invalid_choice", "/status"),
        ("/v1/invoices?limit=0".to_owned(), "invalid_value", "/limit"),
        ("/v1/invoices?cursor=here".to_owned(), "invalid_cursor", "/cursor"),
        ("/v1/invoices?customer=".to_owned(), "empty", "/customer"),
        ("/v1/invoices?subject=".to_owned(), "empty", "/subject"),
        ("/v1/invoices?customer=%00".to_owned(), "nul_character", "/customer"),
        (format!("{UPCOMING}?at=now"), "unknown_parameter", "/at"),
    ];
    for (path, code, pointer) in cases {
        let answer = books.service.get(&path).await;
        assert_eq!(answer.status, StatusCode::UNPROCESSABLE_ENTITY, "{path}: {}", answer.text);
        let shown = answer.json();
        assert_eq!(
            (&shown["code"], &shown["errors"][0]["pointer"]),
            (&json!(code), &json!(pointer)),
            "{path}"
        );
    }
    let unknown = books.service.get("/v1/invoices/01890a5d-ac96-774b-bcce-b302099a8057").await;
    assert_eq!((unknown.status, unknown.code().as_str()), (StatusCode::NOT_FOUND, "invoice_not_found"));
}

#[tokio::test]
async fn lists_page_to_the_end_under_any_filter() {
    let books = Books::open().await;
    for n in 0..5 {
        books.enrol(&format!("s{n}"), "pro").await;
    }
    books.set_clock("2027-01-20T11:00:00Z");
    books.bill().await;
    for (query, expected) in [
        ("", 18),
        ("&status=final", 12),
        ("&status=draft", 6),
        ("&customer=cus_s3", 3),
        ("&subject=s3&status=final", 2),
    ] {
        let (mut seen, mut cursor) = (std::collections::BTreeSet::new(), String::new());
        loop {
            let page = get(&books.service, &format!("/v1/invoices?limit=5{query}{cursor}")).await;
            for invoice in page["data"].as_array().unwrap() {
                assert!(seen.insert(invoice["id"].to_string()), "{query}");
            }
            match page["next_cursor"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => break,
            }
        }
        assert_eq!(seen.len(), expected, "{query}");
    }
}

#[tokio::test]
async fn prices_may_name_stripe_prices() {
    let books = Books::open().await;
    let plan = |id: serde_json::Value| {
        json!({"plans": [{"key": "p", "prices": [
        {"key": "fee", "model": "flat", "currency": "usd", "amount": 1, "stripe_price_id": id}]}]})
    };
    for good in [json!("price_1"), json!({"test": "price_1", "live": "price_2"}), json!({"live": "price_2"})]
    {
        let answer = books.service.put("/v1/catalog?dry_run=true", &plan(good.clone())).await;
        assert_ne!(answer.code(), "wrong_type", "{good}: {}", answer.text);
    }
    for bad in [json!(5), json!(""), json!({"prod": "price_1"}), json!(["price_1"]), json!({"test": 5})] {
        let answer = books.service.put("/v1/catalog?dry_run=true", &plan(bad.clone())).await;
        assert_eq!(answer.status, StatusCode::UNPROCESSABLE_ENTITY, "{bad}: {}", answer.text);
        let pointer = answer.json()["errors"][0]["pointer"].as_str().unwrap().to_owned();
        assert!(pointer.starts_with("/plans/0/prices/0/stripe_price_id"), "{bad}: {pointer}");
    }
}
