//! Basic values: names, quantities, times, windows, limits, and the parser of input.

pub mod digest;
pub mod environment;
pub mod fields;
pub mod limits;
pub mod names;
pub mod period;
pub mod quantity;
pub mod timestamp;
pub mod window;

pub use digest::Digest;
pub use environment::{Environment, NoEnvironment};
pub use fields::{NamedValues, ObjectParser, Parsed, ParsedValues, Parser, Violation, Violations};
pub use names::{BadName, EventSource};
pub use period::{Anchor, Cycle, Period};
pub use quantity::{NotAQuantity, Quantity, Total};
pub use timestamp::{NotATimestamp, Timestamp};
pub use window::{Span, Window, Zone};
