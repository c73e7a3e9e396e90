//! HTTP: every route on one screen, handlers of a few lines, one file per resource. This layer decides
//! nothing: it turns requests into calls of the engine, and the results into JSON or problems.

mod accept;
mod access;
mod body;
mod catalog;
mod credits;
mod csv;
mod events;
mod exports;
mod extract;
mod gateway;
mod invoice_page;
mod invoices;
mod operations;
mod prices;
mod problem;
mod query;
mod request_log;
mod reservations;
mod service;
mod spend_caps;
mod state;
mod stripe_compat;
mod stripe_errors;
mod stripe_forms;
mod subjects;
mod subscriptions;
mod usage;
mod webhooks;

use std::collections::BTreeSet;
use std::time::Duration;

use axum::http::{HeaderName, Method, header};
use axum::routing::{MethodFilter, MethodRouter, delete, get, on, post, put};
use axum::{Router, middleware};
use tower_http::cors::CorsLayer;

pub use access::Access;
pub use service::HttpService;
pub use state::{Api, HttpSettings};

use state::EXPORTS_RUN;

/// One line of the table of routes: method, path, permitted callers and handler.
#[derive(Debug)]
pub struct Route {
    pub method: Method,
    pub path: &'static str,
    pub access: Access,
    handler: MethodRouter<Api>,
}

impl Route {
    fn new(path: &'static str, access: Access, at: At) -> Self {
        Self { method: at.method, path, access, handler: at.handler }
    }
}

/// A method and its handler.
struct At {
    method: Method,
    handler: MethodRouter<Api>,
}

/// The methods that a gateway's client may use.
const ANY: MethodFilter = MethodFilter::GET
    .or(MethodFilter::HEAD)
    .or(MethodFilter::POST)
    .or(MethodFilter::PUT)
    .or(MethodFilter::PATCH)
    .or(MethodFilter::DELETE)
    .or(MethodFilter::OPTIONS);

macro_rules! at {
    (get $handler:path) => {
        At { method: Method::GET, handler: get($handler) }
    };
    (post $handler:path) => {
        At { method: Method::POST, handler: post($handler) }
    };
    (put $handler:path) => {
        At { method: Method::PUT, handler: put($handler) }
    };
    (any $handler:path) => {
        At { method: Method::GET, handler: on(ANY, $handler) }
    };
    (delete $handler:path) => {
        At { method: Method::DELETE, handler: delete($handler) }
    };
}

/// Returns the table of all routes.
pub fn routes() -> Vec<Route> {
    use Access::{EndUser, Gateway, Open, Payer, Publishable, Secret, Signed, StripeSdk};
    vec![
        Route::new("/v1/events", Secret, at!(post events::record)),
        Route::new("/v1/events", Secret, at!(get events::list)),
        Route::new("/v1/events/{id}", Secret, at!(get events::trace)),
        Route::new("/v1/events/{id}/void", Secret, at!(post events::void)),
        Route::new("/v1/billing/meter_events", StripeSdk, at!(post stripe_compat::record)),
        Route::new("/v1/billing/meter_event_adjustments", StripeSdk, at!(post stripe_compat::cancel)),
        Route::new("/v1/usage", EndUser, at!(get usage::usage)),
        Route::new("/v1/usage/top", Secret, at!(get usage::top)),
        Route::new("/v1/subjects", Secret, at!(get subjects::list)),
        Route::new("/v1/subjects/{subject}", Secret, at!(put subjects::put)),
        Route::new("/v1/subjects/{subject}", Secret, at!(get subjects::get)),
        Route::new("/v1/subjects/{subject}/usage", EndUser, at!(get usage::report)),
        Route::new("/v1/subjects/{subject}/subscription", Secret, at!(put subscriptions::put)),
        Route::new("/v1/subjects/{subject}/subscription", Secret, at!(get subscriptions::get)),
        Route::new("/v1/subjects/{subject}/subscription", Secret, at!(delete subscriptions::end)),
        Route::new("/v1/subjects/{subject}/spend-caps", Payer, at!(put spend_caps::put)),
        Route::new("/v1/subjects/{subject}/spend-caps", EndUser, at!(get spend_caps::get)),
        Route::new("/v1/subjects/{subject}/credits", EndUser, at!(get credits::balance)),
        Route::new("/v1/subjects/{subject}/credits/ledger", EndUser, at!(get credits::ledger)),
        Route::new("/v1/subjects/{subject}/credits/grants", EndUser, at!(get credits::grants)),
        Route::new("/v1/subjects/{subject}/credits/grants", Secret, at!(post credits::grant)),
        Route::new("/v1/subjects/{subject}/credits/grants/{id}/void", Secret, at!(post credits::void)),
        Route::new("/v1/notices", Secret, at!(get credits::notices)),
        Route::new("/v1/subjects/{subject}/invoices/upcoming", Secret, at!(get invoices::upcoming)),
        Route::new("/v1/invoices", Secret, at!(get invoices::list)),
        Route::new("/v1/invoices/{id}", Secret, at!(get invoices::get)),
        Route::new("/v1/check", Secret, at!(post reservations::check)),
        Route::new("/v1/reservations", Secret, at!(post reservations::reserve)),
        Route::new("/v1/reservations", Secret, at!(get reservations::list)),
        Route::new("/v1/reservations/{id}", Secret, at!(get reservations::get)),
        Route::new("/v1/reservations/{id}/commit", Secret, at!(post reservations::commit)),
        Route::new("/v1/reservations/{id}/release", Secret, at!(post reservations::release)),
        Route::new("/v1/reservations/{id}/extend", Secret, at!(post reservations::extend)),
        // gateways send their client's method, and some of them its path and query
        Route::new("/v1/gate", Gateway, at!(any gateway::gate)),
        Route::new("/v1/gate/{*path}", Gateway, at!(any gateway::gate_by_headers)),
        Route::new("/v1/exports", Secret, at!(get exports::list)),
        Route::new(EXPORTS_RUN, Secret, at!(post exports::run)),
        Route::new("/v1/exports/{id}/retry", Secret, at!(post exports::retry)),
        Route::new("/v1/reconciliation", Secret, at!(get exports::reconcile)),
        Route::new("/v1/catalog", Secret, at!(put catalog::apply)),
        Route::new("/v1/catalog", Secret, at!(get catalog::show)),
        Route::new("/v1/meters", Secret, at!(get catalog::meters)),
        Route::new("/v1/plans", Publishable, at!(get catalog::plans)),
        Route::new("/v1/quotes", Publishable, at!(post prices::quote)),
        Route::new("/v1/rates", Secret, at!(put prices::put_rates)),
        Route::new("/v1/rates", Secret, at!(get prices::rates)),
        // callers with the secret: the handler verifies the signature before anything else
        Route::new("/webhooks/stripe", Signed, at!(post webhooks::receive)),
        Route::new("/v1/webhook-events", Secret, at!(get webhooks::list)),
        Route::new("/healthz", Open, at!(get operations::healthz)),
        Route::new("/readyz", Open, at!(get operations::readyz)),
        Route::new("/metrics", Open, at!(get operations::metrics)),
        Route::new("/openapi.yaml", Open, at!(get operations::openapi)),
    ]
}

/// Builds the service that answers requests.
pub fn service(api: Api, settings: &HttpSettings) -> HttpService {
    // browsers may call the routes of publishable keys and end-user tokens
    let (mut plain, mut browsers) = (Router::new(), Router::new());
    let may_browse =
        |route: &Route| matches!(route.access, Access::EndUser | Access::Payer | Access::Publishable);
    // a path is in one of the two routers, with all its methods
    let browsed: BTreeSet<&'static str> = routes().iter().filter(|r| may_browse(r)).map(|r| r.path).collect();
    for route in routes() {
        let guard =
            access::RequestGuard { engine: api.engine.clone(), access: route.access, path: route.path };
        let guarded = route.handler.route_layer(middleware::from_fn_with_state(guard, access::admit));
        if browsed.contains(route.path) {
            browsers = browsers.route(route.path, guarded);
        } else {
            plain = plain.route(route.path, guarded);
        }
    }
    // a preflight matches no method of a route, so CORS also wraps the fallback for methods
    let browsers = browsers.method_not_allowed_fallback(problem::no_such_method).layer(cors(settings));
    let table = plain
        .method_not_allowed_fallback(problem::no_such_method)
        .merge(browsers)
        .merge(operations::docs())
        .fallback(problem::no_such_path)
        .with_state(api);
    HttpService::new(table, settings.request_max)
}

fn cors(settings: &HttpSettings) -> CorsLayer {
    CorsLayer::new()
        .allow_origin(settings.cors_origins.clone())
        .allow_methods([Method::GET, Method::POST, Method::PUT])
        .allow_headers([
            header::AUTHORIZATION,
            header::ACCEPT,
            header::CONTENT_TYPE,
            HeaderName::from_static("x-request-id"),
        ])
        .expose_headers([HeaderName::from_static("x-request-id"), header::RETRY_AFTER])
        .max_age(Duration::from_hours(1))
}
