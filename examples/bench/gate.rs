//! Reservations: the rate and the cost of holding and settling, compared with one SQL function that
//! holds.

use std::time::Duration;

use crate::http::{Expected, Load};
use crate::report::{Series, Table, median, rate, thousands};
use crate::rounds::Size;
use crate::stage::{BATCH_CONNECTIONS, CONNECTIONS, SINGLE_ACCEPTED, Stage};
use crate::{holds, large, pgbench};

/// The turns of each side in a round.
const TURNS: u32 = 3;
const HELD: [Expected; 1] = [Expected { status: 201, text: r#""allowed":true"# }];
const HELD_AND_COMMITTED: [Expected; 2] =
    [HELD[0], Expected { status: 200, text: r#""status":"committed""# }];
const PAIRS: &str = "reserve and commit, 64 connections";
const MEMBERS: &str = "reservations by members of one organisation";
const MIXED_HOLDS: &str = "reservations, 32 connections, while 32 others record";
const MIXED_EVENTS: &str = "single events of the same subjects meanwhile";
const PAID: &str = "reservations with prices, a cap and credits, over 1,000 subjects";
const PUT: [Expected; 1] = [Expected { status: 200, text: r#""subject":"# }];
const GRANTED: [Expected; 1] = [Expected { status: 201, text: r#""amount":"# }];

/// The service and `pgbench`.
#[derive(Debug, Default)]
struct Compared {
    service: Series,
    pgbench: Series,
    /// The service at half its rate in the same round.
    at_half: Series,
}

impl Compared {
    async fn round(
        &mut self,
        stage: &Stage<'_>,
        (duration, service_first): (Duration, bool),
        script: pgbench::Script,
        hold: impl Fn() -> [Vec<u8>; 1],
    ) -> anyhow::Result<()> {
        // short turns, because other load on the machine changes within seconds
        let turn = duration / TURNS;
        for number in 0..TURNS {
            let service_first = service_first == number.is_multiple_of(2);
            for service in [service_first, !service_first] {
                if service {
                    let load = Load::for_time(turn, &hold, &HELD, CONNECTIONS);
                    stage.measure(load).await?.note(&mut self.service, 1);
                } else {
                    stage.pgbench(script, turn, &mut self.pgbench).await?;
                }
            }
        }
        let half = median(&self.service.rates) / 2.0;
        let load = Load::at_rate(half, duration, &hold, &HELD, CONNECTIONS);
        stage.measure(load).await?.note(&mut self.at_half, 1);
        Ok(())
    }

    fn report(&self, what: &str, aim: &str, table: &mut Table) {
        let rates = format!("reservations {what}, 64 connections");
        let (service, pgbench) = ((&self.service, "calls/s"), (&self.pgbench, "tps"));
        table.add_rates(&rates, service, pgbench::NAME, pgbench, aim);
        let micros = format!("processor time per reservation, {what}");
        table.add_micros(&micros, &self.service, "`pgbench`", &self.pgbench);
        table.add_latency(&format!("an answer to a reservation at that rate, {what}"), &self.service);
        let offered = thousands(median(&self.at_half.rates));
        table.add_latency(&format!("at half of it ({offered} calls/s), {what}"), &self.at_half);
    }
}

#[derive(Debug, Default)]
pub(crate) struct Gate {
    spread: Compared,
    hot: Compared,
    pairs: Series,
    members: Series,
    /// Both loads at the same time.
    mixed_holds: Series,
    mixed_events: Series,
    /// Subjects with prices, and as many without.
    paid: Series,
    unpaid: Series,
}

/// Records an event of every subject, so that this process knows them all.
pub(crate) async fn know(stage: &Stage<'_>) -> anyhow::Result<()> {
    stage.know((0..holds::CALLERS).map(holds::caller).chain(holds::payers())).await?;
    stage.know_one(holds::HOT).await
}

/// Creates an organisation with members, and payers, on plans of their own. All others are on the
/// default plan.
pub(crate) async fn prepare(stage: &Stage<'_>) -> anyhow::Result<()> {
    for call in holds::found_organisation(&stage.key) {
        stage.drive(Load::all([call], &PUT, 1)).await?;
    }
    stage.drive(Load::all(holds::join_organisation(&stage.key), &PUT, BATCH_CONNECTIONS)).await?;
    stage.drive(Load::all(holds::enrol_payers(&stage.key), &PUT, BATCH_CONNECTIONS)).await?;
    stage.drive(Load::all(holds::grant_credits(&stage.key), &GRANTED, BATCH_CONNECTIONS)).await?;
    know(stage).await
}

/// Measures one call after the other on an otherwise idle machine.
pub(crate) async fn idle_latency(stage: &Stage<'_>, size: Size, table: &mut Table) -> anyhow::Result<()> {
    let calls = (0..size.idle_calls).map(|_| holds::reserve(&stage.key, &holds::random_caller()));
    let mut series = Series::default();
    series.note(&stage.drive(Load::all(calls, &HELD, 1)).await?, 1);
    table.add_latency(&format!("reservation, nothing else going on, {} calls", size.idle_calls), &series);
    Ok(())
}

impl Gate {
    /// Measures a round, and returns a line about it. Every other round begins with `pgbench`.
    pub(crate) async fn round(
        &mut self,
        stage: &Stage<'_>,
        size: Size,
        round: usize,
    ) -> anyhow::Result<String> {
        let (key, duration) = (stage.key.as_str(), size.duration);
        let order = (duration, round % 2 == 1);
        let spread = || [holds::reserve(key, &holds::random_caller())];
        self.spread.round(stage, order, pgbench::RESERVE_SPREAD, spread).await?;
        self.hot.round(stage, order, pgbench::RESERVE_HOT, || [holds::reserve(key, holds::HOT)]).await?;

        let pair = || holds::reserve_and_commit(key, &holds::random_caller());
        let load = Load::for_time(duration, pair, &HELD_AND_COMMITTED, CONNECTIONS);
        stage.measure(load).await?.note(&mut self.pairs, 1);

        let member = || [holds::reserve(key, &holds::random_member())];
        let load = Load::for_time(duration, member, &HELD, CONNECTIONS);
        stage.measure(load).await?.note(&mut self.members, 1);

        let payer = || [holds::reserve(key, &holds::random_payer())];
        let guest = || [holds::reserve(key, &holds::random_guest())];
        for number in 0..TURNS {
            let payers_first = round.is_multiple_of(2) == number.is_multiple_of(2);
            for pays in [payers_first, !payers_first] {
                if pays {
                    let load = Load::for_time(duration / TURNS, payer, &HELD, CONNECTIONS);
                    stage.measure(load).await?.note(&mut self.paid, 1);
                } else {
                    let load = Load::for_time(duration / TURNS, guest, &HELD, CONNECTIONS);
                    stage.measure(load).await?.note(&mut self.unpaid, 1);
                }
            }
        }

        let event = || [stage.post_events([holds::random_caller()])];
        let holds = Load::for_time(duration, spread, &HELD, CONNECTIONS / 2);
        let events = Load::for_time(duration, event, &SINGLE_ACCEPTED, CONNECTIONS / 2);
        let (holds, events) = tokio::try_join!(stage.drive(holds), stage.drive(events))?;
        stage.wait_until_folded().await?;
        self.mixed_holds.note(&holds, 1);
        self.mixed_events.note(&events, 1);
        Ok(format!(
            "spread {} calls/s, pgbench {}; hot {}, pgbench {}; pairs {}; members {}; paid {}, unpaid {}; mixed {} and {} events",
            self.spread.service.last(),
            self.spread.pgbench.last(),
            self.hot.service.last(),
            self.hot.pgbench.last(),
            self.pairs.last(),
            self.members.last(),
            self.paid.last(),
            self.unpaid.last(),
            self.mixed_holds.last(),
            self.mixed_events.last(),
        ))
    }

    pub(crate) fn report(&self, table: &mut Table) {
        self.spread.report("over 100,000 subjects", "1.0, better 1.5", table);
        self.hot.report("all on one subject", "10", table);
        table.add_alone(PAIRS, rate(&self.pairs.rates, "pairs/s"), "");
        table.add_latency("both calls of a pair", &self.pairs);
        table.add_alone(MEMBERS, rate(&self.members.rates, "calls/s"), "");
        let (paid, unpaid) = ((&self.paid, "calls/s"), (&self.unpaid, "calls/s"));
        table.add_rates(PAID, paid, "without", unpaid, "0.7");
        table.add_alone(MIXED_HOLDS, rate(&self.mixed_holds.rates, "calls/s"), "");
        table.add_alone(MIXED_EVENTS, rate(&self.mixed_events.rates, "calls/s"), "");
        table.add_refused("reservations", self.all());
    }

    pub(crate) fn report_large(&self, few: &Self, table: &mut Table) {
        let mut add = |what: &str, unit: &str, many: &Series, few: &Series, aim: &str| {
            table.add_large(&format!("{what}, {}", large::WHAT), many, few, unit, aim);
        };
        let (many, aim) = (self, "0.8");
        add("reservations over 100,000 subjects", "calls/s", &many.spread.service, &few.spread.service, aim);
        add("`pgbench` over 100,000 subjects", "tps", &many.spread.pgbench, &few.spread.pgbench, "");
        add("reservations on one subject", "calls/s", &many.hot.service, &few.hot.service, aim);
        add("`pgbench` on one subject", "tps", &many.hot.pgbench, &few.hot.pgbench, "");
        add(PAIRS, "pairs/s", &many.pairs, &few.pairs, aim);
        add(MEMBERS, "calls/s", &many.members, &few.members, aim);
        add(MIXED_HOLDS, "calls/s", &many.mixed_holds, &few.mixed_holds, aim);
        add(MIXED_EVENTS, "calls/s", &many.mixed_events, &few.mixed_events, aim);
    }

    fn all(&self) -> impl Iterator<Item = &Series> {
        let compared = [&self.spread, &self.hot].into_iter();
        let others =
            [&self.pairs, &self.members, &self.paid, &self.unpaid, &self.mixed_holds, &self.mixed_events];
        compared.flat_map(|both| [&both.service, &both.at_half]).chain(others)
    }
}
