//! Access by keys and tokens, and the separation of environments.

use axum::body::Body;
use axum::http::{Method, Request, StatusCode};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use metergate::engine::access::keys::KeyKind;
use metergate::http::{Access, routes};
use metergate_domain::base::Environment;
use serde_json::{Value, json};

use crate::support::TestService;
use crate::support::service::{LIVE_SECRET, TEST_SECRET, engine_settings};

const REPORT: &str = "/v1/subjects/user_1/usage";
const USAGE: &str = "/v1/usage?meter=m&from=2026-11-01T00:00:00Z&to=2026-12-01T00:00:00Z";

fn meters() -> Value {
    json!([{"key": "m", "event_name": "e", "aggregation": "sum"}])
}

/// Returns claims that are valid for an hour; tests change single fields.
fn claims() -> Value {
    json!({"sub": "user_1", "exp": 4_000_000_000_i64, "aud": "metergate", "scope": "usage:read"})
}

pub(crate) fn sign(claims: &Value, secret: &str) -> String {
    let key = EncodingKey::from_secret(secret.as_bytes());
    jsonwebtoken::encode(&Header::new(Algorithm::HS256), claims, &key).unwrap()
}

pub(crate) fn with(field: &str, value: Value) -> Value {
    let mut changed = claims();
    changed[field] = value;
    changed
}

fn without(field: &str) -> Value {
    let mut changed = claims();
    changed.as_object_mut().unwrap().remove(field);
    changed
}

#[tokio::test]
async fn every_route_except_open_ones_needs_a_credential() {
    let service = TestService::start().await;
    let publishable = service.engine.create_key(Environment::Test, KeyKind::Publishable, "").await.unwrap();
    let token = sign(&claims(), TEST_SECRET);
    let (rest, last) = service.key.split_at(service.key.len() - 1);
    let forged = format!("{rest}{}", if last == "x" { "y" } else { "x" });
    for route in routes() {
        let path = route.path.replace("{id}", "x").replace("{subject}", "user_1");
        let call = async |credential: Option<&str>| {
            let mut request = Request::builder().method(route.method.clone()).uri(&path);
            if let Some(credential) = credential {
                request = request.header("authorization", format!("Bearer {credential}"));
            }
            service.send(request.body(Body::empty()).unwrap()).await.status
        };
        let (nobody, liar) = (call(None).await, call(Some(&forged)).await);
        let (page, user) = (call(Some(&publishable)).await, call(Some(&token)).await);
        let name = format!("{} {path}", route.method);
        if route.access == Access::Open {
            assert!(nobody.is_success(), "{name}: {nobody}");
            continue;
        }
        if route.access == Access::Signed {
            assert!(
                nobody.is_client_error() || nobody == StatusCode::SERVICE_UNAVAILABLE,
                "{name}: {nobody}"
            );
            continue;
        }
        assert_eq!((nobody, liar), (StatusCode::UNAUTHORIZED, StatusCode::UNAUTHORIZED), "{name}");
        assert_eq!(page == StatusCode::FORBIDDEN, route.access != Access::Publishable, "{name}: {page}");
        assert_eq!(user == StatusCode::FORBIDDEN, route.access != Access::EndUser, "{name}: {user}");
    }
}

#[tokio::test]
async fn revoked_keys_stop_working_after_the_cache_time() {
    let service = TestService::start().await;
    let key = service.engine.create_key(Environment::Test, KeyKind::Secret, "to go").await.unwrap();
    assert_eq!(service.get_as(&key, "/v1/meters").await.status, StatusCode::OK);
    service.engine.revoke_key(&key).await.unwrap();
    // keys are cached for a millisecond here
    let refused = loop {
        let answer = service.get_as(&key, "/v1/meters").await;
        if answer.status != StatusCode::OK {
            break answer;
        }
        tokio::task::yield_now().await;
    };
    assert_eq!((refused.status, refused.code().as_str()), (StatusCode::UNAUTHORIZED, "unauthorized"));
    assert!(refused.headers.contains_key("www-authenticate"));
    let listed = service.engine.list_keys().await.unwrap();
    assert!(listed.iter().any(|listed| listed.name == "to go" && listed.revoked_at.is_some()));
    assert!(!format!("{listed:?}").contains(&key[20..]));
}

#[tokio::test]
async fn environments_do_not_see_each_other() {
    let service = TestService::with_meters(meters()).await;
    let live = service.engine.create_key(Environment::Live, KeyKind::Secret, "").await.unwrap();
    assert!(live.starts_with("mg_sk_live_"));
    service.record(&json!({"id": "x", "event_name": "e", "subject": "user_1", "value": 5})).await;
    for path in ["/v1/events/x", "/v1/subjects/user_1"] {
        assert_eq!(service.get(path).await.status, StatusCode::OK);
        assert_eq!(service.get_as(&live, path).await.status, StatusCode::NOT_FOUND);
    }
    assert_eq!(service.get_as(&live, USAGE).await.code(), "unknown_meter");
    assert_eq!(service.get_as(&live, "/v1/events").await.json()["data"], json!([]));
    assert_eq!(service.get_as(&live, "/v1/meters").await.json()["data"], json!([]));
    // a key cannot change its environment by its prefix
    let renamed = service.key.replace("_test_", "_live_");
    assert_eq!(service.get_as(&renamed, "/v1/meters").await.status, StatusCode::UNAUTHORIZED);
    // the same id can exist in both
    let body = json!({"id": "x", "event_name": "e", "subject": "user_1", "value": 6}).to_string();
    let request =
        Request::builder().method(Method::POST).uri("/v1/events").header("content-type", "application/json");
    let request = request.header("authorization", format!("Bearer {live}")).body(Body::from(body)).unwrap();
    assert_eq!(service.send(request).await.json()["accepted"], 1);
}

#[tokio::test]
async fn tokens_show_only_their_own_subject() {
    let service = TestService::with_meters(meters()).await;
    for subject in ["user_1", "user_2"] {
        service.record(&json!({"event_name": "e", "subject": subject, "value": 5})).await;
    }
    let token = sign(&claims(), TEST_SECRET);
    let cases = [
        (REPORT.to_owned(), StatusCode::OK),
        (USAGE.to_owned(), StatusCode::OK),
        (format!("{USAGE}&subject=user_1&group_by=subject"), StatusCode::OK),
        (format!("{USAGE}&subject=user_2"), StatusCode::FORBIDDEN),
        (format!("{USAGE}&subject=user_1&subject=user_2"), StatusCode::FORBIDDEN),
        (format!("{USAGE}&descendants=true"), StatusCode::FORBIDDEN),
        ("/v1/subjects/user_2/usage".to_owned(), StatusCode::FORBIDDEN),
        ("/v1/subjects/user_1".to_owned(), StatusCode::FORBIDDEN),
        ("/v1/events".to_owned(), StatusCode::FORBIDDEN),
    ];
    for (path, expected) in cases {
        let answer = service.get_as(&token, &path).await;
        assert_eq!(answer.status, expected, "{path}: {}", answer.text);
    }
    // a descendant is another subject, so the report for a token leaves it out
    service.put("/v1/subjects/kid", &json!({"parent": "user_1"})).await;
    service.record(&json!({"event_name": "e", "subject": "kid", "value": 7})).await;
    assert_eq!(service.get_as(&token, REPORT).await.json()["meters"][0]["value"], 5);
    assert_eq!(service.get(REPORT).await.json()["meters"][0]["value"], 12);
    let own = service.get_as(&token, &format!("{USAGE}&group_by=subject")).await.json();
    assert_eq!(own["data"].as_array().unwrap().len(), 1);
    assert_eq!(
        (own["data"][0]["subject"].clone(), own["data"][0]["value"].clone()),
        (json!("user_1"), json!(5))
    );
}

#[tokio::test]
async fn every_claim_of_a_token_is_checked() {
    let service = TestService::with_meters(meters()).await;
    let unsigned = |header: &str| {
        use base64::Engine as _;
        let encode = |text: &str| base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(text);
        format!("{}.{}.", encode(header), encode(&claims().to_string()))
    };
    let good = [
        sign(&claims(), TEST_SECRET),
        sign(&with("scope", json!(["other", "usage:read"])), TEST_SECRET),
        sign(&with("aud", json!(["other", "metergate"])), TEST_SECRET),
        sign(&with("environment", json!("test")), TEST_SECRET),
    ];
    for token in &good {
        assert_eq!(service.get_as(token, REPORT).await.status, StatusCode::OK);
    }
    let refused = [
        sign(&with("exp", json!(1_700_000_000)), TEST_SECRET),
        sign(&without("exp"), TEST_SECRET),
        sign(&without("sub"), TEST_SECRET),
        sign(&with("sub", json!("")), TEST_SECRET),
        sign(&without("aud"), TEST_SECRET),
        sign(&with("aud", json!("someone-else")), TEST_SECRET),
        sign(&with("nbf", json!(3_900_000_000_i64)), TEST_SECRET),
        sign(&with("environment", json!("live")), TEST_SECRET),
        sign(&claims(), "another-secret-that-is-long-enough-too"),
        unsigned(r#"{"alg":"none","typ":"JWT"}"#),
        unsigned(r#"{"alg":"HS256","typ":"JWT"}"#),
        "not.a.token".to_owned(),
        "x".repeat(10_000),
    ];
    for token in &refused {
        assert_eq!(service.get_as(token, REPORT).await.status, StatusCode::UNAUTHORIZED, "{token}");
    }
    let unscoped = sign(&with("scope", json!("caps:write")), TEST_SECRET);
    assert_eq!(service.get_as(&unscoped, REPORT).await.status, StatusCode::FORBIDDEN);
    // a token of the live environment is valid and shows live data
    let live = sign(&claims(), LIVE_SECRET);
    assert_eq!(service.get_as(&live, REPORT).await.json()["meters"], json!([]));
}

#[tokio::test]
async fn public_keys_are_bound_to_their_algorithm() {
    let (ed, ec) = (
        rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap(),
        rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap(),
    );
    let rsa = include_bytes!("../../data/rsa_private_for_tests_only.pem");
    let rsa_public = include_str!("../../data/rsa_public.pem").to_owned();
    let cases = [
        (
            ed.public_key_pem(),
            Algorithm::EdDSA,
            EncodingKey::from_ed_pem(ed.serialize_pem().as_bytes()).unwrap(),
        ),
        (
            ec.public_key_pem(),
            Algorithm::ES256,
            EncodingKey::from_ec_pem(ec.serialize_pem().as_bytes()).unwrap(),
        ),
        (rsa_public, Algorithm::RS256, EncodingKey::from_rsa_pem(rsa).unwrap()),
    ];
    for (public, algorithm, key) in cases {
        let mut settings = engine_settings();
        settings.tokens[0].1.hs256_secret = None;
        settings.tokens[0].1.public_key = Some(public.clone());
        let url = crate::support::cluster::database_url().await;
        let service = TestService::at_url(&url, settings).await;
        let token = jsonwebtoken::encode(&Header::new(algorithm), &claims(), &key).unwrap();
        assert_eq!(service.get_as(&token, REPORT).await.status, StatusCode::OK, "{algorithm:?}");
        // a public key must not work as a shared secret
        let confused = sign(&claims(), &public);
        assert_eq!(service.get_as(&confused, REPORT).await.status, StatusCode::UNAUTHORIZED, "{algorithm:?}");
    }
}

#[tokio::test]
async fn keys_of_a_jwks_document_are_fetched_and_renewed() {
    use jsonwebtoken::jwk::Jwk;
    let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let key = EncodingKey::from_ec_pem(pair.serialize_pem().as_bytes()).unwrap();
    let mut jwk = Jwk::from_encoding_key(&key, Algorithm::ES256).unwrap();
    jwk.common.key_id = Some("first".to_owned());
    let shared = json!({"kty": "oct", "kid": "shared", "alg": "HS256", "k": "dGhlLXNlY3JldC1vZi1ub2JvZHktYXQtYWxsLWF0LWFsbCE"});
    let document = json!({"keys": [jwk, shared]}).to_string();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/jwks", listener.local_addr().unwrap());
    let app = axum::Router::new().route("/jwks", axum::routing::get(move || async move { document }));
    tokio::spawn(async move { axum::serve(listener, app).await });

    let mut settings = engine_settings();
    settings.tokens[0].1.hs256_secret = None;
    settings.tokens[0].1.jwks_url = Some(url);
    let service = TestService::at_url(&crate::support::cluster::database_url().await, settings).await;
    let token = |kid: Option<&str>| {
        let mut header = Header::new(Algorithm::ES256);
        header.kid = kid.map(str::to_owned);
        jsonwebtoken::encode(&header, &claims(), &key).unwrap()
    };
    assert_eq!(service.get_as(&token(Some("first")), REPORT).await.status, StatusCode::OK);
    assert_eq!(service.get_as(&token(None), REPORT).await.status, StatusCode::OK, "the only key that fits");
    assert_eq!(service.get_as(&token(Some("other")), REPORT).await.status, StatusCode::UNAUTHORIZED);
    let mut header = Header::new(Algorithm::HS256);
    header.kid = Some("shared".to_owned());
    let secret = EncodingKey::from_base64_secret("dGhlLXNlY3JldC1vZi1ub2JvZHktYXQtYWxsLWF0LWFsbCE=").unwrap();
    let symmetric = jsonwebtoken::encode(&header, &claims(), &secret).unwrap();
    assert_eq!(service.get_as(&symmetric, REPORT).await.status, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn only_listed_origins_may_call_from_browsers() {
    let service = TestService::with_meters(meters()).await;
    let preflight = async |origin: &str, path: &str| {
        let request = Request::builder().method(Method::OPTIONS).uri(path).header("origin", origin);
        let request = request.header("access-control-request-method", "GET");
        let request = request.header("access-control-request-headers", "authorization");
        let answer = service.send(request.body(Body::empty()).unwrap()).await;
        answer.headers.get("access-control-allow-origin").map(|value| value.to_str().unwrap().to_owned())
    };
    for path in ["/v1/usage", REPORT, "/v1/plans"] {
        assert_eq!(
            preflight("https://app.example", path).await.as_deref(),
            Some("https://app.example"),
            "{path}"
        );
        assert_eq!(preflight("https://evil.example", path).await, None, "{path}");
    }
    assert_eq!(preflight("https://app.example", "/v1/events").await, None);
    let token = sign(&claims(), TEST_SECRET);
    let request = Request::builder().uri(REPORT).header("origin", "https://app.example");
    let request = request.header("authorization", format!("Bearer {token}")).body(Body::empty()).unwrap();
    let answer = service.send(request).await;
    assert_eq!(answer.headers["access-control-allow-origin"], "https://app.example");
}
