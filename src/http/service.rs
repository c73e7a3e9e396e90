//! What every request passes before it comes to the table of routes, and its answer on the way back. One
//! service, and not a layer of the router for each: those cost a box and a copy of the request apiece.

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
use super::{ROUTES_WITHOUT_TIMEOUT, gateway, problem};

/// The whole interface, as a service.
#[derive(Debug, Clone)]
pub struct HttpService {
    table: Router,
    /// The same, for bodies that are compressed.
    decompressing: RequestDecompression<Router>,
    measures: RequestMetrics,
    request_max: Duration,
}

impl HttpService {
    pub(super) fn new(table: Router, request_max: Duration) -> Self {
        let decompressing = RequestDecompression::new(table.clone()).no_br().no_deflate();
        Self { table, decompressing, measures: RequestMetrics::default(), request_max }
    }

    /// In time, and whatever becomes of the handler.
    async fn answer(self, request: Request) -> Response {
        let is_unhurried = request.uri().path() == ROUTES_WITHOUT_TIMEOUT;
        let caught = AssertUnwindSafe(self.look_up(gateway::without_body(request))).catch_unwind();
        let answered = if is_unhurried {
            caught.await
        } else {
            match tokio::time::timeout(self.request_max, caught).await {
                Ok(answered) => answered,
                Err(_) => return StatusCode::SERVICE_UNAVAILABLE.into_response(),
            }
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
        let front = self.clone();
        Box::pin(async move {
            let measures = front.measures.clone();
            Ok(measures.observe(request, |request| front.answer(request)).await)
        })
    }
}
