//! The meters, plans and credits of an environment as one document, with look-ups by key.

use serde::Serialize;

use super::meter::Meter;
use super::plan::Plan;
use crate::base::environment::Environment;
use crate::base::names::{ItemKey, MeterKey, PlanKey};
use crate::credits::offers::CreditPack;
use crate::credits::unit::CreditUnit;

/// A catalog in force.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Catalog {
    pub default_plan: Option<PlanKey>,
    pub meters: Vec<Meter>,
    pub plans: Vec<Plan>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub credit_units: Vec<CreditUnit>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub credit_packs: Vec<CreditPack>,
}

impl Catalog {
    pub fn meter(&self, key: &MeterKey) -> Option<&Meter> {
        self.meters.iter().find(|meter| meter.key == *key)
    }

    pub fn plan(&self, key: &PlanKey) -> Option<&Plan> {
        self.plans.iter().find(|plan| plan.key == *key)
    }

    pub fn credit_unit(&self, key: &ItemKey) -> Option<&CreditUnit> {
        self.credit_units.iter().find(|unit| unit.key == *key)
    }

    pub fn credit_pack(&self, key: &ItemKey) -> Option<&CreditPack> {
        self.credit_packs.iter().find(|pack| pack.key == *key)
    }

    /// Returns the plan of the first of the Stripe prices that belongs to any plan.
    pub fn plan_of_prices(&self, environment: Environment, prices: &[String]) -> Option<&Plan> {
        let plan_of =
            |id: &String| self.plans.iter().find(|plan| plan.stripe_price_ids.contains(environment, id));
        prices.iter().find_map(plan_of)
    }
}
