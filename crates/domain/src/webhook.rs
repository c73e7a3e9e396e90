//! Webhook events and their facts, independent of the biller's formats.

use serde::Serialize;

use crate::base::timestamp::Timestamp;

/// The processing status of a webhook event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum WebhookStatus {
    Pending,
    Applied,
    Ignored,
    /// Waits for a mapping of its subscription.
    Unmapped,
    Failed,
}

impl WebhookStatus {
    pub const WORDS: [(&'static str, Self); 5] = [
        ("pending", Self::Pending),
        ("applied", Self::Applied),
        ("ignored", Self::Ignored),
        ("unmapped", Self::Unmapped),
        ("failed", Self::Failed),
    ];

    pub fn as_str(self) -> &'static str {
        Self::WORDS.iter().find(|(_, status)| *status == self).map_or("", |(word, _)| word)
    }
}

impl TryFrom<String> for WebhookStatus {
    type Error = String;

    fn try_from(word: String) -> Result<Self, String> {
        let known = Self::WORDS.iter().find(|(known, _)| *known == word);
        known
            .map(|(_, status)| *status)
            .ok_or_else(|| format!("`{word}` is not the status of a webhook event"))
    }
}

/// The facts of a received webhook event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WebhookNotice {
    pub id: String,
    pub kind: String,
    /// None if the event does not contain it.
    pub created: Option<Timestamp>,
    pub api_version: Option<String>,
    /// None if the event does not contain it.
    pub livemode: Option<bool>,
    pub object_id: Option<String>,
    pub customer: Option<String>,
}

/// The stored facts of a biller's invoice; amounts in the currency's minor unit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WebhookInvoice {
    pub id: String,
    pub customer: String,
    pub subscription: Option<String>,
    pub status: String,
    pub billing_reason: Option<String>,
    pub currency: Option<String>,
    pub total: Option<i64>,
    pub amount_due: Option<i64>,
    pub amount_paid: Option<i64>,
    pub attempt_count: Option<i32>,
    pub period_start: Option<Timestamp>,
    pub period_end: Option<Timestamp>,
    pub created_at: Timestamp,
}
