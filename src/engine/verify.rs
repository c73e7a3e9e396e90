//! Recounting: what the events say against what is kept beside them.

use super::{Engine, EngineError};
use crate::domain::environment::Environment;
use crate::store::verify::Differences;
use crate::store::{self};

/// What a recount found.
#[derive(Debug, Default)]
pub struct Verdict {
    pub events: i64,
    pub rollups: i64,
    pub differences: i64,
    /// The first differences, in words.
    pub shown: Vec<String>,
}

impl Engine {
    /// Recounts an environment in one snapshot; recording and folding go on meanwhile.
    pub async fn verify(&self, environment: Environment) -> Result<Verdict, EngineError> {
        let mut snapshot = store::usage::snapshot(self.database().pool()).await?;
        store::verify::allow_long(&mut snapshot).await?;
        let mut differences = Differences::default();
        let events = store::verify::keys(&mut snapshot, environment, &mut differences).await?;
        let mut rollups = 0;
        for stored in store::catalog::meters(&mut snapshot, environment).await? {
            rollups += store::verify::rollups(&mut snapshot, environment, &stored, &mut differences).await?;
        }
        snapshot.commit().await?;
        Ok(Verdict { events, rollups, differences: differences.count, shown: differences.shown })
    }
}
