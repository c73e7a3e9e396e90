//! Exported meters, with their addresses at the provider.

use metergate_domain::catalog::{StoredMeter, StripeMeter};

/// Returns the meters that have a `stripe` block.
pub(super) fn exported(meters: &[StoredMeter]) -> impl Iterator<Item = (&StoredMeter, &StripeMeter)> {
    meters.iter().filter_map(|stored| Some((stored, stored.meter.stripe.as_ref()?)))
}
