//! Tests of the writers, with a processor that panics on demand.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use sqlx::PgConnection;

use super::context::WriterContext;
use super::lane::{Lane, WriterTasks};
use super::months::Months;
use super::processor::{Attempt, BatchProcessor, Weight};
use crate::embedded::{Cluster, ServerPurpose};
use crate::engine::clock::{Clock, Offset};
use crate::engine::error::EngineError;
use crate::store::{Database, StoreError};
use metergate_domain::base::Environment;

const WAIT_MAX: Duration = Duration::from_secs(30);

/// The work of the test processor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    Echo(u32),
    Panic,
}

/// A processor that answers `Echo` with its number and panics at `Panic`. After a panic it reports on
/// `stopped` and waits for `resume`. So a test can look at the lane in between.
struct Echo {
    stopped: Sender<()>,
    resume: Arc<Mutex<Receiver<()>>>,
    /// The number of attempts of this instance.
    attempts: u32,
    writer_context: WriterContext,
}

impl BatchProcessor for Echo {
    type Work = Order;
    type Reply = (u32, u32);

    fn weigh(_: &Order) -> Weight {
        Weight { items: 1, bytes: 1 }
    }

    fn environment(&self) -> Environment {
        Environment::Test
    }

    fn writer_context(&self) -> &WriterContext {
        &self.writer_context
    }

    async fn rest(&self) {}

    fn restarted(&self) -> Self {
        self.stopped.send(()).unwrap();
        self.resume.lock().unwrap().recv().unwrap();
        let (stopped, resume) = (self.stopped.clone(), Arc::clone(&self.resume));
        Self { stopped, resume, attempts: 0, writer_context: self.writer_context.clone() }
    }

    async fn attempt(
        &mut self,
        connection: &mut PgConnection,
        work: &[&Order],
        _: &[i64],
    ) -> Result<Attempt<(u32, u32)>, StoreError> {
        self.attempts += 1;
        // The panic leaves a transaction open, which the next attempt must not find.
        sqlx::raw_sql("begin").execute(&mut *connection).await?;
        assert!(!work.contains(&&Order::Panic), "a test ordered this panic");
        let backend: i32 = sqlx::query_scalar("select pg_backend_pid()").fetch_one(&mut *connection).await?;
        assert!(backend > 0);
        sqlx::raw_sql("commit").execute(connection).await?;
        let reply = |order: &&Order| match order {
            Order::Echo(number) => (*number, self.attempts),
            Order::Panic => unreachable!("the assertion above excludes it"),
        };
        Ok(Attempt::Committed(work.iter().map(reply).collect()))
    }
}

struct LaneRig {
    lane: Lane<Echo>,
    writer_tasks: WriterTasks,
    stopped: Receiver<()>,
    resume: Sender<()>,
    _cluster: Cluster,
}

impl LaneRig {
    async fn start(writers: usize) -> Self {
        let folder = tempfile::Builder::new().prefix("metergate-test-").tempdir().unwrap().keep();
        let cluster = Cluster::start(&folder, None, ServerPurpose::Throwaway).await.unwrap();
        let database = Database::new(&cluster.url("postgres"), None, 1).unwrap();
        let ((stopped, has_stopped), (resume, resumed)) = (channel(), channel());
        let resumed = Arc::new(Mutex::new(resumed));
        let writer_context = WriterContext {
            database: database.clone(),
            clock: Clock::postgres(Offset::Ahead(Duration::ZERO)),
            caches: Arc::default(),
            tails: Arc::default(),
            age_max: Duration::from_hours(1),
            months: Months::default(),
        };
        let echo = || Echo {
            stopped: stopped.clone(),
            resume: Arc::clone(&resumed),
            attempts: 0,
            writer_context: writer_context.clone(),
        };
        let mut writer_tasks = WriterTasks::default();
        let processors = (0..writers).map(|_| echo()).collect();
        let lane = Lane::start("test_lane".to_owned(), 10, &database, processors, &mut writer_tasks);
        Self { lane, writer_tasks, stopped: has_stopped, resume, _cluster: cluster }
    }

    async fn submit(&self, order: Order) -> Result<(u32, u32), EngineError> {
        self.lane.submit(order, WAIT_MAX).await
    }

    async fn end(self) {
        self.lane.close();
        self.writer_tasks.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_fails_its_call_and_restarts_the_writer() {
    let rig = LaneRig::start(1).await;
    assert_eq!(rig.submit(Order::Echo(1)).await.unwrap(), (1, 1));
    assert_eq!(rig.submit(Order::Echo(2)).await.unwrap(), (2, 2));
    for round in 0..3 {
        let failed = rig.submit(Order::Panic).await;
        assert!(matches!(failed, Err(EngineError::Internal(_))), "{failed:?}");
        rig.stopped.recv().unwrap();
        assert_eq!(rig.writer_tasks.dead_lanes(), ["test_lane"]);
        rig.resume.send(()).unwrap();
        // The answer comes from a new processor on a new connection.
        assert_eq!(rig.submit(Order::Echo(round)).await.unwrap(), (round, 1));
        assert!(rig.writer_tasks.dead_lanes().is_empty());
    }
    rig.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_writer_keeps_the_lane_alive() {
    let rig = LaneRig::start(2).await;
    assert!(rig.submit(Order::Panic).await.is_err());
    rig.stopped.recv().unwrap();
    assert!(rig.writer_tasks.dead_lanes().is_empty());
    assert_eq!(rig.submit(Order::Echo(7)).await.unwrap().0, 7);
    // A stop waits for a writer that is about to restart.
    rig.resume.send(()).unwrap();
    rig.end().await;
}
