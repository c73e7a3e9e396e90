//! How long the buckets are in which rollups are kept: hours, and the days that are summed up from them.

/// Of UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RollupResolution {
    Hour,
    Day,
}

impl RollupResolution {
    pub(crate) const ALL: [Self; 2] = [Self::Hour, Self::Day];

    /// The table of rollups.
    pub(crate) fn rollups(self) -> &'static str {
        match self {
            Self::Hour => "rollups",
            Self::Day => "day_rollups",
        }
    }

    /// The table of the members that `unique_count` has seen.
    pub(crate) fn members(self) -> &'static str {
        match self {
            Self::Hour => "rollup_members",
            Self::Day => "day_rollup_members",
        }
    }

    /// Its word, and the column in which a bucket begins.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Hour => "hour",
            Self::Day => "day",
        }
    }

    /// When the bucket of a time begins, as SQL.
    pub(crate) fn start_of(self, time: &str) -> String {
        format!("date_bin('1 {}', {time}, '2000-01-01T00:00:00Z')", self.word())
    }
}
