//! Events, usage queries and how they are read.

pub mod event;
pub mod query;
pub mod ranking;
pub mod read_plan;
pub mod stripe_compat;

pub use event::{Event, EventFilter, Properties};
pub use query::{
    Aggregate, Group, GroupBySubject, SubjectNames, Subjects, UsageQuery, UsageRow, UsageSlice, UsageState,
};
pub use ranking::{RankBy, RankPageRequest};
pub use read_plan::{PartialHour, Reading, Rollups};
pub use stripe_compat::{Adjustment, MeterEvent, ParsedMeterEvent};
