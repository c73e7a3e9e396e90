//! Converts a row of the Azure LLM inference trace to an event. The only I/O is reading the input.
//!
//! The rows name no user and no model, so both are made up, by rules that depend on the row only
//! ([`RULE`]). The id is the row's content and its number among identical rows. A file loaded twice,
//! shuffled, or in batches of another size gives the same ids, and counts no event twice. For that,
//! identical rows must be in one file. The trace of 2023 has no identical rows.

use std::collections::HashMap;
use std::io::Read;

use serde_json::{Value, json};

pub(crate) const EVENT_NAME: &str = "llm_request";
pub(crate) const SOURCE: &str = "azure-llm-code-2023";
pub(crate) const RULE: &str = "\
subjects: the rows carry no user; BLAKE3 of the row picks one of dev_01 … dev_40
models:   by context tokens: code-2k up to 2,048, code-4k up to 4,096, code-8k above
ids:      the row's content and its number among identical rows";

const SUBJECTS: u64 = 40;
const HEADER: [&str; 3] = ["TIMESTAMP", "ContextTokens", "GeneratedTokens"];

/// A request of the trace, as an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TraceEvent {
    pub(crate) id: String,
    pub(crate) subject: String,
    pub(crate) model: &'static str,
    pub(crate) at: jiff::Timestamp,
    pub(crate) context_tokens: u64,
    pub(crate) generated_tokens: u64,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum TraceError {
    #[error("line {0}: {1}")]
    Csv(u64, csv::Error),
    #[error("the header must be TIMESTAMP,ContextTokens,GeneratedTokens; got {0}")]
    Header(String),
    #[error("line {line}: must have a {wanted}; got `{given}`")]
    Field { line: u64, wanted: &'static str, given: String },
}

/// Reads a whole trace, in the order of its rows.
pub(crate) fn read(input: impl Read) -> Result<Vec<TraceEvent>, TraceError> {
    let mut rows = csv::ReaderBuilder::new().trim(csv::Trim::All).from_reader(input);
    let header = rows.headers().map_err(|why| TraceError::Csv(1, why))?;
    if header != HEADER.as_slice() {
        return Err(TraceError::Header(header.iter().collect::<Vec<_>>().join(",")));
    }
    let mut occurrences: HashMap<String, u32> = HashMap::new();
    let mut events = Vec::new();
    let mut row = csv::StringRecord::new();
    loop {
        let line = rows.position().line();
        if !rows.read_record(&mut row).map_err(|why| TraceError::Csv(line, why))? {
            return Ok(events);
        }
        let content = format!("{}-{}-{}", &row[0], &row[1], &row[2]);
        let occurrence = occurrences.entry(content.clone()).or_default();
        *occurrence += 1;
        events.push(TraceEvent::of(&row, line, &content, *occurrence)?);
    }
}

impl TraceEvent {
    fn of(row: &csv::StringRecord, line: u64, content: &str, occurrence: u32) -> Result<Self, TraceError> {
        let field = |index: usize, wanted: &'static str| TraceError::Field {
            line,
            wanted,
            given: row[index].to_owned(),
        };
        let tokens = |index: usize| row[index].parse::<u64>().map_err(|_| field(index, "number of tokens"));
        // the trace has no time zone; it is read as UTC
        let at =
            format!("{}Z", &row[0]).parse().map_err(|_| field(0, "time such as 2023-11-16 18:17:03.97"))?;
        let context_tokens = tokens(1)?;
        Ok(Self {
            id: format!("{}-{occurrence}", content.replace(' ', "T")),
            subject: subject_of(content),
            model: model_of(context_tokens),
            at,
            context_tokens,
            generated_tokens: tokens(2)?,
        })
    }

    /// Returns the request at another time. It is another event, so its id contains the offset.
    #[must_use]
    pub(crate) fn moved(mut self, by: jiff::SignedDuration) -> Self {
        self.at += by;
        self.id = format!("{}+{}s", self.id, by.as_secs());
        self
    }

    /// Returns the body for `POST /v1/events`.
    pub(crate) fn to_json(&self) -> Value {
        json!({
            "id": self.id,
            "source": SOURCE,
            "event_name": EVENT_NAME,
            "subject": self.subject,
            "timestamp": self.at.to_string(),
            "properties": {
                "context_tokens": self.context_tokens,
                "generated_tokens": self.generated_tokens,
                "model": self.model,
            },
        })
    }
}

fn subject_of(content: &str) -> String {
    let digest = blake3::hash(content.as_bytes());
    let number = digest.as_bytes()[..8].iter().fold(0, |number, byte| number << 8 | u64::from(*byte));
    format!("dev_{:02}", number % SUBJECTS + 1)
}

fn model_of(context_tokens: u64) -> &'static str {
    match context_tokens {
        0..=2_048 => "code-2k",
        2_049..=4_096 => "code-4k",
        _ => "code-8k",
    }
}
