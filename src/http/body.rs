//! Request bodies: bounded after decompression, parsed once.

use axum::body::{Body, Bytes, HttpBody};
use axum::http::{HeaderMap, StatusCode, header};
use http_body_util::BodyExt;
use serde_json::Value;

use super::problem::Problem;
use metergate_domain::base::fields::received;
use metergate_domain::base::limits::{BODY_BYTES_MAX, BODY_DRAIN_BYTES_MAX};

/// Returns the media type in lower case without its parameters. The default is `application/json`.
pub(super) fn media_type(headers: &HeaderMap) -> String {
    let given = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let essence = given.unwrap_or("application/json").split(';').next().unwrap_or_default();
    essence.trim().to_ascii_lowercase()
}

pub(super) fn unsupported(media_type: &str, supported: &str) -> Problem {
    let detail = format!("the content type must be {supported}; got {}", received(media_type));
    Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", detail)
}

/// Reads a whole body, which must not be empty.
pub(super) async fn read(body: Body) -> Result<Bytes, Problem> {
    read_at_most(body, BODY_BYTES_MAX).await
}

/// Reads a whole body of at most `bytes_max`, which must not be empty.
pub(super) async fn read_at_most(body: Body, bytes_max: usize) -> Result<Bytes, Problem> {
    let bytes = read_bounded(body, bytes_max).await?;
    if is_empty(&bytes) {
        return Err(Problem::bad_request("empty_body", "the request body must not be empty"));
    }
    Ok(bytes)
}

pub(super) fn is_empty(bytes: &[u8]) -> bool {
    bytes.iter().all(u8::is_ascii_whitespace)
}

/// Reads a whole body, which may be empty.
pub(super) async fn read_any(body: Body) -> Result<Bytes, Problem> {
    read_bounded(body, BODY_BYTES_MAX).await
}

async fn read_bounded(body: Body, bytes_max: usize) -> Result<Bytes, Problem> {
    let mut body = body;
    // the announced length is usually right; the limit keeps a false one harmless
    let announced = usize::try_from(body.size_hint().lower()).unwrap_or(bytes_max);
    let mut bytes = Vec::with_capacity(announced.min(bytes_max));
    let mut drained = 0;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| {
            Problem::bad_request(
                "malformed_body",
                "the request body ends early or does not match its `Content-Encoding`; send it again",
            )
        })?;
        let Ok(data) = frame.into_data() else { continue };
        if bytes.len() + data.len() <= bytes_max && drained == 0 {
            bytes.extend_from_slice(&data);
            continue;
        }
        // reads on for a while, so that a client that is still sending receives the answer
        bytes = Vec::new();
        drained += data.len();
        if drained > BODY_DRAIN_BYTES_MAX {
            break;
        }
    }
    if drained > 0 {
        let detail = format!(
            "the request body must have at most {bytes_max} bytes after decompression; send it in parts"
        );
        return Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", detail));
    }
    Ok(Bytes::from(bytes))
}

/// Parses a JSON document.
pub(super) fn parse(bytes: &[u8]) -> Result<Value, Problem> {
    serde_json::from_slice(bytes).map_err(|why| {
        Problem::bad_request("malformed_json", format!("the request body is not valid JSON: {why}"))
    })
}

/// Reads and parses a JSON body.
pub(super) async fn json(headers: &HeaderMap, body: Body) -> Result<Value, Problem> {
    must_be_json(headers)?;
    parse(&read(body).await?)
}

fn must_be_json(headers: &HeaderMap) -> Result<(), Problem> {
    match media_type(headers).as_str() {
        "application/json" => Ok(()),
        other => Err(unsupported(other, "application/json")),
    }
}

/// Reads and parses a JSON body, or returns `None` for an empty body.
pub(super) async fn json_or_empty(headers: &HeaderMap, body: Body) -> Result<Option<Value>, Problem> {
    let bytes = read_any(body).await?;
    if is_empty(&bytes) {
        return Ok(None);
    }
    must_be_json(headers)?;
    parse(&bytes).map(Some)
}
