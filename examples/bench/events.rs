//! The events of the benchmark, as requests for the service and as rows for `COPY`. All are built
//! before the clock runs.

use std::fmt::Write as _;
use std::time::{Duration, UNIX_EPOCH};

use jiff::Timestamp;
use rand::RngExt;
use uuid::{NoContext, Uuid};

pub(crate) const EVENT_NAME: &str = "ai_tokens";
pub(crate) const SUBJECTS: usize = 10_000;
pub(crate) const MODELS: [&str; 5] = ["gpt-4o", "gpt-4o-mini", "claude-sonnet", "gemini-flash", "llama-70b"];
pub(crate) const VALUE_MAX: u32 = 5_000;

pub(crate) fn subject(number: usize) -> String {
    format!("user_{number}")
}

pub(crate) fn now() -> Timestamp {
    let micros = UNIX_EPOCH.elapsed().map(|since| since.as_micros()).unwrap_or_default();
    Timestamp::from_microsecond(i64::try_from(micros).unwrap_or(i64::MAX)).unwrap_or(Timestamp::MAX)
}

/// Builds the body of a call with one event per subject: an array, or a single event for one subject.
pub(crate) fn body(subjects: impl IntoIterator<Item = String>) -> String {
    let mut rng = rand::rng();
    let mut body = String::new();
    let mut count = 0;
    for subject in subjects {
        let model = MODELS[rng.random_range(0..MODELS.len())];
        let value = rng.random_range(1..=VALUE_MAX);
        let separator = if count == 0 { "" } else { "," };
        // writing to a string cannot fail
        let _ = write!(
            body,
            r#"{separator}{{"id":"{}","event_name":"{EVENT_NAME}","subject":"{subject}","value":{value},"properties":{{"model":"{model}"}},"timestamp":"{}"}}"#,
            Uuid::now_v7(),
            now(),
        );
        count += 1;
    }
    if count == 1 { body } else { format!("[{body}]") }
}

pub(crate) fn random_subjects(count: usize) -> impl Iterator<Item = String> {
    let mut rng = rand::rng();
    (0..count).map(move |_| subject(rng.random_range(0..SUBJECTS)))
}

/// The rows of one transaction, as the service would write them.
#[derive(Debug)]
pub(crate) struct Chunk {
    pub(crate) batch_id: i64,
    pub(crate) event_name_id: i32,
    pub(crate) first: Timestamp,
    pub(crate) last: Timestamp,
    pub(crate) count: usize,
    pub(crate) keys: String,
    pub(crate) events: String,
}

/// The time of a chunk's events.
#[derive(Debug, Clone, Copy)]
pub(crate) enum When {
    /// The time at which the chunk is built.
    Now,
    /// Evenly spread over a range.
    Within(Timestamp, Timestamp),
}

/// The numbers that rows refer to in one database.
#[derive(Debug, Clone)]
pub(crate) struct Ids {
    pub(crate) event_name: i32,
    pub(crate) paths: Vec<i64>,
}

/// Builds the rows of events of random subjects.
pub(crate) fn chunk(ids: &Ids, batch_id: i64, count: usize, when: When) -> Chunk {
    let mut rng = rand::rng();
    let (mut keys, mut events) = (String::with_capacity(count * 120), String::with_capacity(count * 180));
    let (mut first, mut last) = (Timestamp::MAX, Timestamp::MIN);
    for ordinal in 0..count {
        let at = match when {
            When::Now => now(),
            When::Within(from, to) => between(from, to, ordinal, count),
        };
        let key = match when {
            When::Now => Uuid::now_v7(),
            When::Within(..) => {
                let since = Duration::try_from(at.as_duration()).unwrap_or_default();
                Uuid::new_v7(uuid::Timestamp::from_unix(NoContext, since.as_secs(), since.subsec_nanos()))
            }
        };
        let content = Uuid::from_u128(rng.random());
        let path = ids.paths[rng.random_range(0..ids.paths.len())];
        let value = rng.random_range(1..=VALUE_MAX);
        let model = MODELS[rng.random_range(0..MODELS.len())];
        let name = ids.event_name;
        // writing to a string cannot fail
        let _ = writeln!(keys, "0\t{key}\t{content}\t{at}\tt\t{batch_id}");
        let _ = writeln!(
            events,
            "{path}\t{at}\t{batch_id}\t\\N\t{key}\t{ordinal}\t{name}\t0\t1\t{value}\t{{\"model\": \"{model}\"}}\t\\N\t\\N"
        );
        (first, last) = (first.min(at), last.max(at));
    }
    Chunk { batch_id, event_name_id: ids.event_name, first, last, count, keys, events }
}

fn between(from: Timestamp, to: Timestamp, index: usize, count: usize) -> Timestamp {
    let (from, to) = (from.as_microsecond(), to.as_microsecond());
    let (index, count) = (i64::try_from(index).unwrap_or(0), i64::try_from(count).unwrap_or(1).max(1));
    Timestamp::from_microsecond(from + (to - from) / count * index).unwrap_or(Timestamp::MAX)
}

/// Returns the piece with a number of a range that is split into equal pieces.
pub(crate) fn piece(from: Timestamp, to: Timestamp, index: usize, count: usize) -> When {
    When::Within(between(from, to, index, count), between(from, to, index + 1, count))
}
