//! Every bound of the service, in one place, units last in the names.

use std::time::Duration;

/// A request body after decompression.
pub const BODY_BYTES_MAX: usize = 8 * 1024 * 1024;
/// What is read and thrown away of a body that is too large, so that the caller sees the answer.
pub const BODY_DRAIN_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Events in one array.
pub const BATCH_EVENTS_MAX: usize = 1_000;
/// Events in one NDJSON body, which is recorded as one transaction.
pub const NDJSON_EVENTS_MAX: usize = 10_000;
/// Fields of one form.
pub const FORM_FIELDS_MAX: usize = 1_000;
/// Brackets after the name of a form's field.
pub const FORM_LEVELS_MAX: usize = 4;
/// Event names and identifiers as Stripe takes them.
pub const STRIPE_NAME_CHARS_MAX: usize = 100;
/// Subjects, event ids and sources, event names, property names.
pub const NAME_CHARS_MAX: usize = 255;
/// Keys of meters, plans, limits.
pub const KEY_CHARS_MAX: usize = 100;
/// The properties of one event, as JSON text.
pub const PROPERTIES_BYTES_MAX: usize = 16 * 1024;
/// A number inside properties, in its own spelling.
pub const PROPERTY_NUMBER_CHARS_MAX: usize = 64;
/// The exponent of a number inside properties.
pub const PROPERTY_NUMBER_EXPONENT_MAX: i32 = 64;
/// A subject's metadata, as JSON text.
pub const METADATA_BYTES_MAX: usize = 16 * 1024;
/// The reason of a void or a release.
pub const REASON_CHARS_MAX: usize = 1_000;
/// A subject and its ancestors.
pub const PATH_LEVELS_MAX: usize = 8;
/// Dimensions of one meter.
pub const METER_DIMENSIONS_MAX: usize = 16;
/// Values allowed for one property of a filter.
pub const FILTER_VALUES_MAX: usize = 100;
/// Meters, and plans, in one catalog.
pub const CATALOG_ITEMS_MAX: usize = 1_000;
/// Spend caps of one subject.
pub const SPEND_CAPS_MAX: usize = 32;
/// Values of one meter in a quote.
pub const QUOTE_VALUES_MAX: usize = 10_000;
/// Tiers of one price.
pub const PRICE_TIERS_MAX: usize = 100;
/// Exchange rates in one call.
pub const RATES_MAX: usize = 1_000;
/// How far ahead of now an exchange rate may begin to hold.
pub const RATE_AHEAD_MAX: Duration = Duration::from_mins(5);
/// Exchange rates between the same two currencies that are looked at, the latest.
pub const RATES_OF_PAIR_MAX: i64 = 1_000;
/// Subjects that a ranking shows, page by page.
pub const TOP_RANKS_MAX: usize = 10_000;
/// Subjects that a ranking names beside its ranks, since it cannot tell where they belong.
pub const TOP_UNRANKED_MAX: usize = 100;
/// How far ahead a forecast looks by the days of the week, in days.
pub const FORECAST_DAYS_MAX: i64 = 400;
/// Days of a period that a report shows one by one, the latest.
pub const TREND_DAYS_MAX: usize = 400;
/// Different combinations of dimension values that one meter's rollups keep apart. Beyond it the
/// meter is read from its events: as exact, but slower.
pub const DIMENSION_SETS_PER_METER_MAX: i64 = 100_000;
/// Windows in one usage answer.
pub const USAGE_WINDOWS_MAX: usize = 50_000;
/// Rows in one usage answer.
pub const USAGE_ROWS_MAX: usize = 100_000;
/// Subjects named in one usage query.
pub const USAGE_SUBJECTS_MAX: usize = 100;
/// Holds of one reservation, and of one check.
pub const RESERVATION_HOLDS_MAX: usize = 32;
/// How long a reservation may hold without being extended.
pub const RESERVATION_TTL_SECONDS_MAX: u32 = 86_400;
/// How long it holds unless told.
pub const RESERVATION_TTL_SECONDS_DEFAULT: u32 = 60;
/// Reservations whose expiry is carried out in one transaction.
pub const SWEEP_RESERVATIONS_MAX: i64 = 500;
/// Calls on reservations in one transaction.
pub const TRANSACTION_CALLS_MAX: usize = 512;
/// Rows of a subscription's history that are shown, the latest.
pub const HISTORY_ROWS_MAX: i64 = 1_000;
/// Rows on a page of a list, unless asked.
pub const PAGE_ROWS_DEFAULT: u32 = 50;
/// Characters of a received value that an error message repeats.
pub const RECEIVED_CHARS_MAX: usize = 80;
/// Rows on a page of a list, at most.
pub const PAGE_ROWS_MAX: u32 = 1_000;
/// How far ahead of now an event may lie.
pub const EVENT_AHEAD_MAX: Duration = Duration::from_mins(5);
/// How long after its end a period may still get a new counter. Longer than any transaction: two that
/// run at once may see the end of a period on either side of their clocks.
pub const CLOSING: Duration = Duration::from_mins(5);
/// Characters of a credential worth looking at.
pub const CREDENTIAL_CHARS_MAX: usize = 8 * 1024;
/// Events in one transaction of a writer.
pub const TRANSACTION_EVENTS_MAX: usize = 4_000;
/// Events, or calls, waiting for a writer of one lane.
pub const QUEUE_ITEMS_MAX: usize = 40_000;
/// Bytes waiting for a writer of one lane.
pub const QUEUE_BYTES_MAX: usize = 32 * 1024 * 1024;
/// Events that are not folded yet before writers wait for the fold.
pub const UNFOLDED_EVENTS_MAX: i64 = 200_000;
/// Events folded in one transaction, but for a last batch that passes it.
pub const FOLD_EVENTS_MAX: i64 = 150_000;
/// Batches folded in one transaction.
pub const FOLD_BATCHES_MAX: i64 = 2_000;
/// The body of a webhook.
pub const WEBHOOK_BODY_BYTES_MAX: usize = 1024 * 1024;
/// How far from now a webhook may have been signed, either way.
pub const WEBHOOK_AGE_MAX: Duration = Duration::from_mins(5);
/// Characters of an id, a type or a version that a webhook names.
pub const WEBHOOK_NAME_CHARS_MAX: usize = 255;
/// Webhook events taken in one round.
pub const WEBHOOK_ROUND_EVENTS_MAX: i64 = 100;
/// Objects fetched from the biller at once.
pub const WEBHOOK_FETCHES_MAX: usize = 8;
/// How long an event that was taken is left to whoever took it.
pub const WEBHOOK_LEASE: Duration = Duration::from_mins(2);
/// How long a fetch that failed rests at most, and how often it is tried: a week, or so.
pub const WEBHOOK_PAUSE_MAX: Duration = Duration::from_mins(10);
pub const WEBHOOK_ATTEMPTS_MAX: i32 = 1_000;
/// Payloads of one second that are put in order.
pub const WEBHOOK_TIES_MAX: i64 = 100;
/// How long webhook events that have done what they do are kept, and how long those that wait for a
/// mapping, or failed.
pub const WEBHOOK_KEPT: Duration = Duration::from_hours(60 * 24);
pub const WEBHOOK_UNDONE_KEPT: Duration = Duration::from_hours(365 * 24);
/// Webhook events deleted in one transaction.
pub const WEBHOOK_DELETES_MAX: i64 = 10_000;
/// The highest priority of a grant of credits; the lowest burns first.
pub const CREDIT_PRIORITY_MAX: i32 = 1_000_000;
/// For how long bought credits may last.
pub const CREDIT_LIFE_DAYS_MAX: u64 = 36_525;
/// Periods of a recurring grant that are carried through one by one when nobody looked for as long.
pub const CREDIT_TURNS_MAX: usize = 1_000;
/// Grants of a subject that are open at once.
pub const CREDIT_GRANTS_OPEN_MAX: usize = 1_000;
/// Wallets in which what is due is carried out in one round.
pub const CREDIT_SWEEP_WALLETS_MAX: i64 = 500;
/// Windows that one reconciliation may have: a month of hours.
pub const RECONCILED_WINDOWS_MAX: usize = 744;
/// Writers of the gate in an environment.
pub const GATE_WRITERS: usize = 2;
/// Changes of a subscription that its bills are made of, the latest.
pub const INVOICE_TURNS_MAX: i64 = 10_000;
/// Drafts that are numbered before others are looked for.
pub const INVOICES_PER_LOOK_MAX: i64 = 1_000;
