//! The resolutions of rollups: UTC hours, and UTC days that are summed up from them.

/// The length of the time span of a rollup, in UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RollupResolution {
    Hour,
    Day,
}

impl RollupResolution {
    pub(crate) const ALL: [Self; 2] = [Self::Hour, Self::Day];

    /// Returns the table of rollups.
    pub(crate) fn rollups(self) -> &'static str {
        match self {
            Self::Hour => "rollups",
            Self::Day => "day_rollups",
        }
    }

    /// Returns the table of the members that `unique_count` has counted.
    pub(crate) fn members(self) -> &'static str {
        match self {
            Self::Hour => "rollup_members",
            Self::Day => "day_rollup_members",
        }
    }

    /// Returns the word for the resolution, which is also the column of a rollup's start.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Hour => "hour",
            Self::Day => "day",
        }
    }

    /// Returns the start of the rollup of a time, as SQL.
    pub(crate) fn start_of(self, time: &str) -> String {
        format!("date_bin('1 {}', {time}, '2000-01-01T00:00:00Z')", self.word())
    }
}
