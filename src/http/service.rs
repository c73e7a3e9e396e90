//! The service around the table of routes: decompression, the time limit, panics and the request log. It is
//! one service because every router layer would allocate and copy the request once more.

use std::convert::Infallible;
use std::panic::AssertUnwindSafe;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tower::{Service, ServiceExt};
use tower_http::decompression::RequestDecompression;

use super::request_log::RequestMetrics;
use super::state::ROUTES_WITHOUT_TIMEOUT;
use super::{gateway, problem};

/// The interface as a service.
#[derive(Debug, Clone)]
pub struct HttpService {
    table: Router,
    /// The table behind a layer that decompresses bodies.
    decompressing: RequestDecompression<Router>,
    measures: RequestMetrics,
    request_max: Duration,
}

impl HttpService {
    pub(super) fn new(table: Router, request_max: Duration) -> Self {
        let decompressing = RequestDecompression::new(table.clone()).no_br().no_deflate();
        Self { table, decompressing, measures: RequestMetrics::default(), request_max }
    }

    /// Answers within the time limit, even if the handler panics.
    async fn answer(self, request: Request) -> Response {
        let has_timeout = !ROUTES_WITHOUT_TIMEOUT.contains(&request.uri().path());
        let caught = AssertUnwindSafe(self.look_up(gateway::without_body(request))).catch_unwind();
        let answered = if has_timeout {
            match tokio::time::timeout(self.request_max, caught).await {
                Ok(answered) => answered,
                Err(_) => return StatusCode::SERVICE_UNAVAILABLE.into_response(),
            }
        } else {
            caught.await
        };
        answered.unwrap_or_else(problem::of_panic)
    }

    fn look_up(&self, request: Request) -> impl Future<Output = Response> + use<> {
        let is_compressed = request.headers().contains_key(header::CONTENT_ENCODING);
        let (mut table, decompressing) =
            (self.table.clone(), is_compressed.then(|| self.decompressing.clone()));
        async move {
            match decompressing {
                None => table.call(request).await.into_response(),
                Some(decompressing) => {
                    let answered = Box::pin(decompressing.oneshot(request)).await;
                    answered.map(|response| response.map(Body::new)).into_response()
                }
            }
        }
    }
}

impl Service<Request> for HttpService {
    type Response = Response;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request) -> Self::Future {
        let service = self.clone();
        Box::pin(async move {
            let measures = service.measures.clone();
            Ok(measures.around(request, |request| service.answer(request)).await)
        })
    }
}
