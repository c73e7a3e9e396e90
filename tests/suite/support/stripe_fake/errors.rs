//! Errors in Stripe's form.

use serde_json::{Map, Value, json};

#[derive(Debug)]
pub(super) struct ApiError {
    pub(super) status: u16,
    kind: &'static str,
    code: Option<&'static str>,
    message: String,
    param: Option<String>,
    pub(super) header: Option<(&'static str, &'static str)>,
    /// The answer is kept under the idempotency key, because the call was executed.
    pub(super) is_kept: bool,
}

impl ApiError {
    pub(super) fn new(status: u16, message: impl Into<String>) -> Self {
        let kind = if status >= 500 { "api_error" } else { "invalid_request_error" };
        Self { status, kind, code: None, message: message.into(), param: None, header: None, is_kept: false }
    }

    pub(super) fn invalid(message: impl Into<String>) -> Self {
        Self::new(400, message)
    }

    pub(super) fn bad_param(param: &str, message: impl Into<String>) -> Self {
        Self { param: Some(param.to_owned()), ..Self::invalid(message) }
    }

    pub(super) fn missing_param(param: &str) -> Self {
        Self::bad_param(param, format!("Missing required param: {param}.")).with_code("parameter_missing")
    }

    pub(super) fn unknown_param(param: &str) -> Self {
        Self::bad_param(param, format!("Received unknown parameter: {param}")).with_code("parameter_unknown")
    }

    pub(super) fn not_found(what: &str, id: &str) -> Self {
        let message = format!("No such {what}: '{id}'");
        Self { param: Some("id".to_owned()), ..Self::new(404, message) }.with_code("resource_missing")
    }

    pub(super) fn idempotency(message: impl Into<String>) -> Self {
        Self { kind: "idempotency_error", ..Self::invalid(message) }
    }

    pub(super) fn with_code(self, code: &'static str) -> Self {
        Self { code: Some(code), ..self }
    }

    pub(super) fn with_header(self, name: &'static str, value: &'static str) -> Self {
        Self { header: Some((name, value)), ..self }
    }

    pub(super) fn kept(self) -> Self {
        Self { is_kept: true, ..self }
    }

    pub(super) fn body(&self) -> Value {
        let mut error = Map::new();
        error.insert("type".to_owned(), json!(self.kind));
        error.insert("message".to_owned(), json!(self.message));
        if let Some(code) = self.code {
            error.insert("code".to_owned(), json!(code));
        }
        if let Some(param) = &self.param {
            error.insert("param".to_owned(), json!(param));
        }
        json!({ "error": error })
    }
}
