//! All limits of the service; the unit is the last part of a name.

use std::time::Duration;

/// The size of a request body after decompression.
pub const BODY_BYTES_MAX: usize = 8 * 1024 * 1024;
/// The bytes of an oversized body that the server reads and discards, so that the client receives the
/// answer.
pub const BODY_DRAIN_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Events in one array.
pub const BATCH_EVENTS_MAX: usize = 1_000;
/// Events in one NDJSON body, which is recorded as one transaction.
pub const NDJSON_EVENTS_MAX: usize = 10_000;
/// Fields of one form.
pub const FORM_FIELDS_MAX: usize = 1_000;
/// Brackets after the name of a form's field.
pub const FORM_LEVELS_MAX: usize = 4;
/// The length of event names and identifiers that Stripe accepts.
pub const STRIPE_NAME_CHARS_MAX: usize = 100;
/// The length of subjects, event ids, sources, event names and property names.
pub const NAME_CHARS_MAX: usize = 255;
/// The length of the keys of meters, plans and limits.
pub const KEY_CHARS_MAX: usize = 100;
/// The properties of one event as JSON text.
pub const PROPERTIES_BYTES_MAX: usize = 16 * 1024;
/// The length of a number inside properties, as written.
pub const PROPERTY_NUMBER_CHARS_MAX: usize = 64;
/// The exponent of a number inside properties.
pub const PROPERTY_NUMBER_EXPONENT_MAX: i32 = 64;
/// The metadata of a subject as JSON text.
pub const METADATA_BYTES_MAX: usize = 16 * 1024;
/// The reason of a void or a release.
pub const REASON_CHARS_MAX: usize = 1_000;
/// The length of a path: a subject and its ancestors.
pub const PATH_LEVELS_MAX: usize = 8;
/// Dimensions of one meter.
pub const METER_DIMENSIONS_MAX: usize = 16;
/// The values that a filter allows for one property.
pub const FILTER_VALUES_MAX: usize = 100;
/// The meters of one catalog, and also its plans.
pub const CATALOG_ITEMS_MAX: usize = 1_000;
/// Spend caps of one subject.
pub const SPEND_CAPS_MAX: usize = 32;
/// Values of one meter in a quote.
pub const QUOTE_VALUES_MAX: usize = 10_000;
/// Tiers of one price.
pub const PRICE_TIERS_MAX: usize = 100;
/// Exchange rates in one call.
pub const RATES_MAX: usize = 1_000;
/// The longest time from now until an exchange rate takes effect.
pub const RATE_AHEAD_MAX: Duration = Duration::from_mins(5);
/// The exchange rates of one currency pair that are read, the latest first.
pub const RATES_OF_PAIR_MAX: i64 = 1_000;
/// The ranks of a ranking over all its pages.
pub const TOP_RANKS_MAX: usize = 10_000;
/// The subjects without a rank that an answer lists.
pub const TOP_UNRANKED_MAX: usize = 100;
/// The days ahead that a forecast computes from the days of the week.
pub const FORECAST_DAYS_MAX: i64 = 400;
/// The days that the trend of a report shows, the latest.
pub const TREND_DAYS_MAX: usize = 400;
/// The combinations of dimension values that the rollups of one meter may have. A meter with more is
/// read from its events: the result is as exact, but slower.
pub const DIMENSION_SETS_PER_METER_MAX: i64 = 100_000;
/// Windows in one usage answer.
pub const USAGE_WINDOWS_MAX: usize = 50_000;
/// Rows in one usage answer.
pub const USAGE_ROWS_MAX: usize = 100_000;
/// The subjects that one usage query may name.
pub const USAGE_SUBJECTS_MAX: usize = 100;
/// The holds of one reservation or check.
pub const RESERVATION_HOLDS_MAX: usize = 32;
/// The longest time-to-live of a reservation between two extensions.
pub const RESERVATION_TTL_SECONDS_MAX: u32 = 86_400;
/// The time-to-live of a reservation without `ttl_seconds`.
pub const RESERVATION_TTL_SECONDS_DEFAULT: u32 = 60;
/// The expired reservations that one transaction ends.
pub const SWEEP_RESERVATIONS_MAX: i64 = 500;
/// The reservation calls in one transaction.
pub const TRANSACTION_CALLS_MAX: usize = 512;
/// The rows of a subscription's history that are shown, the latest.
pub const HISTORY_ROWS_MAX: i64 = 1_000;
/// The rows on a page without `limit`.
pub const PAGE_ROWS_DEFAULT: u32 = 50;
/// The characters of a received value that an error message repeats.
pub const RECEIVED_CHARS_MAX: usize = 80;
/// The most rows on a page.
pub const PAGE_ROWS_MAX: u32 = 1_000;
/// The longest time from now to a future event.
pub const EVENT_AHEAD_MAX: Duration = Duration::from_mins(5);
/// The time after the end of a period in which it may get a new counter. It exceeds the length of any
/// transaction, because concurrent transactions may see the period's end on different sides of their
/// clocks.
pub const CLOSING: Duration = Duration::from_mins(5);
/// The longest credential that is looked up.
pub const CREDENTIAL_CHARS_MAX: usize = 8 * 1024;
/// The events in one transaction of a writer.
pub const TRANSACTION_EVENTS_MAX: usize = 4_000;
/// The events, or calls, that wait in one lane.
pub const QUEUE_ITEMS_MAX: usize = 40_000;
/// The bytes that wait in one lane.
pub const QUEUE_BYTES_MAX: usize = 32 * 1024 * 1024;
/// The unfolded events from which on writers wait for the fold.
pub const UNFOLDED_EVENTS_MAX: i64 = 200_000;
/// The events that one transaction folds. Its last batch may exceed the limit.
pub const FOLD_EVENTS_MAX: i64 = 150_000;
/// The batches that one transaction folds.
pub const FOLD_BATCHES_MAX: i64 = 2_000;
/// The size of a webhook's body.
pub const WEBHOOK_BODY_BYTES_MAX: usize = 1024 * 1024;
/// The greatest difference between now and the signature time of a webhook.
pub const WEBHOOK_AGE_MAX: Duration = Duration::from_mins(5);
/// The length of an id, a type or a version in a webhook.
pub const WEBHOOK_NAME_CHARS_MAX: usize = 255;
/// The webhook events that a worker claims at once.
pub const WEBHOOK_ROUND_EVENTS_MAX: i64 = 100;
/// The objects that are fetched from the biller at once.
pub const WEBHOOK_FETCHES_MAX: usize = 8;
/// The time for which a claimed event belongs to its worker.
pub const WEBHOOK_LEASE: Duration = Duration::from_mins(2);
/// The longest pause after a failed fetch, and the number of attempts: about a week.
pub const WEBHOOK_PAUSE_MAX: Duration = Duration::from_mins(10);
pub const WEBHOOK_ATTEMPTS_MAX: i32 = 1_000;
/// The payloads of one second that are put in order.
pub const WEBHOOK_TIES_MAX: i64 = 100;
/// The retention of settled webhook events, and of events that failed or wait for a mapping.
pub const WEBHOOK_KEPT: Duration = Duration::from_hours(60 * 24);
pub const WEBHOOK_UNDONE_KEPT: Duration = Duration::from_hours(365 * 24);
/// The webhook events that one transaction deletes.
pub const WEBHOOK_DELETES_MAX: i64 = 10_000;
/// The highest priority of a grant of credits. The lowest priority is consumed first.
pub const CREDIT_PRIORITY_MAX: i32 = 1_000_000;
/// The longest life of bought credits in days.
pub const CREDIT_LIFE_DAYS_MAX: u64 = 36_525;
/// The periods of a recurring grant that are applied one by one after a long pause.
pub const CREDIT_TURNS_MAX: usize = 1_000;
/// The open grants of one subject.
pub const CREDIT_GRANTS_OPEN_MAX: usize = 1_000;
/// The wallets in which one round applies due changes.
pub const CREDIT_SWEEP_WALLETS_MAX: i64 = 500;
/// The windows of one reconciliation: a month of hours.
pub const RECONCILED_WINDOWS_MAX: usize = 744;
/// The writers of the gate in an environment.
pub const GATE_WRITERS: usize = 2;
/// The changes of a subscription that its invoices are computed from, the latest.
pub const INVOICE_TURNS_MAX: i64 = 10_000;
/// The drafts that one round numbers.
pub const INVOICES_PER_LOOK_MAX: i64 = 1_000;
