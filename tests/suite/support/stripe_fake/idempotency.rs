//! Idempotency keys, which keep the first answer of an executed call for 24 hours.

use std::collections::HashMap;

use super::clock::DAY;
use super::errors::ApiError;
use super::http::Answer;

pub(super) const KEY_LENGTH_MAX: usize = 255;

#[derive(Debug)]
struct Kept {
    /// Method, path and parameters of the call.
    call: String,
    at: i64,
    is_in_use: bool,
    answer: Option<Answer>,
}

#[derive(Debug, Default)]
pub(super) struct Keys(HashMap<String, Kept>);

impl Keys {
    /// Returns the kept answer; without one, marks the key as in use.
    pub(super) fn take(&mut self, key: &str, call: &str, now: i64) -> Result<Option<Answer>, ApiError> {
        if self.0.get(key).is_some_and(|kept| !kept.is_in_use && now - kept.at >= DAY) {
            self.0.remove(key);
        }
        let Some(kept) = self.0.get_mut(key) else {
            let kept = Kept { call: call.to_owned(), at: now, is_in_use: true, answer: None };
            self.0.insert(key.to_owned(), kept);
            return Ok(None);
        };
        if kept.call != call {
            return Err(ApiError::idempotency(format!(
                "Keys for idempotent requests can only be used with the same parameters they were first used with. Try using a key other than '{key}' if you meant to execute a different request."
            )));
        }
        if kept.is_in_use {
            let message =
                format!("There is currently another in-progress request using this Idempotent Key: {key}.");
            return Err(ApiError::new(409, message).with_code("idempotency_key_in_use"));
        }
        if kept.answer.is_none() {
            kept.is_in_use = true;
        }
        Ok(kept.answer.clone())
    }

    pub(super) fn keep(&mut self, key: &str, answer: &Answer) {
        if let Some(kept) = self.0.get_mut(key) {
            kept.answer = Some(answer.clone());
        }
    }

    /// Releases the key at the end of its call. A key without an answer can be used again.
    pub(super) fn release(&mut self, key: &str) {
        if let Some(kept) = self.0.get_mut(key) {
            kept.is_in_use = false;
            if kept.answer.is_none() {
                self.0.remove(key);
            }
        }
    }
}
