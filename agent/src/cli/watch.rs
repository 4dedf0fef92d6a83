//! The loop between a source, the engine and the hub, on a thread of its own.
//!
//! Decides when the engine is told the time and when the status is renewed; the source decides what
//! time it is.

use std::borrow::Cow;
use std::error::Error;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::Duration;

use tokio::sync::oneshot;
use tracing::{debug, warn};

use crate::engine::{Engine, UpstreamTally};
use crate::live::{LiveConfig, LiveError, LiveSource};
use crate::model::{Input, Timestamp, UpstreamPattern};
use crate::record::{Recorder, StoreError};
use crate::serve::{Hub, StatusReport};
use crate::stats::ProbeStatus;

/// The longest wait for records, and the longest age of the status.
const REST: Duration = Duration::from_secs(1);

/// Upstreams whose traffic a status tells.
const MAX_UPSTREAMS: usize = 256;

/// What gives observations.
pub(super) trait Source {
    /// What can go wrong while it runs.
    type Error: Error + Send + Sync + 'static;

    /// Hands on everything observed, waiting at most `timeout` for the first, and returns the time
    /// up to which everything was handed on.
    fn pump(
        &mut self,
        timeout: Duration,
        sink: &mut dyn FnMut(Timestamp, Input<'_>),
    ) -> Result<Timestamp, Self::Error>;
    /// Shows every exchange with `upstreams` for so long.
    fn boost(&mut self, upstreams: &UpstreamPattern, time: Duration) -> Result<(), Self::Error>;
    /// Since when the client has waited for its answer that has waited longest, by network namespace.
    fn waiting(&self) -> Vec<(u64, Timestamp)>;
    /// What is attached.
    fn probes(&self) -> Vec<ProbeStatus>;
    /// What it did and lost.
    fn counters(&self) -> Vec<(&'static str, u64)>;
}

impl Source for LiveSource {
    type Error = LiveError;

    fn pump(
        &mut self,
        timeout: Duration,
        sink: &mut dyn FnMut(Timestamp, Input<'_>),
    ) -> Result<Timestamp, LiveError> {
        Self::pump(self, timeout, sink)
    }

    fn boost(&mut self, upstreams: &UpstreamPattern, time: Duration) -> Result<(), LiveError> {
        Self::boost(self, upstreams, time)
    }

    fn waiting(&self) -> Vec<(u64, Timestamp)> {
        Self::waiting(self)
    }

    fn probes(&self) -> Vec<ProbeStatus> {
        Self::probes(self)
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        Self::counters(self)
    }
}

/// The table of clients is walked no more often than this: it may be large.
const ASK_PAUSE: Duration = Duration::from_millis(250);

/// Carries observations into `engine` and events into `hub` until `stop` is set.
///
/// What is still in flight then is not judged: an exchange that outlives the agent has not failed.
pub(super) fn watch<S: Source>(
    source: &mut S,
    engine: &mut Engine,
    recorder: &mut Recorder,
    hub: &Hub,
    stop: &AtomicBool,
) -> Result<(), S::Error> {
    let mut last = Timestamp::default();
    let outcome = carry(source, engine, recorder, hub, stop, &mut last);
    // What was judged is told, whatever ended the loop.
    engine.flush();
    keep(engine, recorder, hub, last);
    if outcome.is_ok() {
        hub.set_status(report(source, engine, recorder));
    }
    outcome
}

/// The loop itself; `last` is the time up to which it came.
fn carry<S: Source>(
    source: &mut S,
    engine: &mut Engine,
    recorder: &mut Recorder,
    hub: &Hub,
    stop: &AtomicBool,
    last: &mut Timestamp,
) -> Result<(), S::Error> {
    let mut wait = Duration::ZERO;
    let mut reported = None;
    let mut asked: Option<Timestamp> = None;
    while !stop.load(Relaxed) {
        let now = source.pump(wait, &mut |at, input| {
            recorder.see(at, &input);
            engine.handle(at, input);
            // At once: the next packets of the hop may take the place of those that matter.
            keep(engine, recorder, hub, at);
        })?;
        *last = now;
        engine.handle_timeout(now);
        let rested = asked.is_none_or(|asked| now.since(asked) >= ASK_PAUSE);
        if rested && engine.asks_who_waits() {
            asked = Some(now);
            let oldest = source.waiting();
            engine.handle(now, Input::Waiting(&oldest));
        }
        keep(engine, recorder, hub, now);
        recorder.tick(now, |hop| engine.is_over(hop));
        for (upstreams, until) in recorder.new_boosts() {
            if let Err(error) = source.boost(&upstreams, until.since(now)) {
                warn!("{upstreams} is not boosted: {error}");
            }
        }
        let stale = reported.is_none_or(|reported| now.since(reported) >= REST);
        if stale || hub.status_wanted() {
            hub.set_status(report(source, engine, recorder));
            reported = Some(now);
        }
        let deadline = engine.poll_timeout();
        wait = deadline.map_or(REST, |deadline| deadline.since(now).min(REST));
    }
    Ok(())
}

/// Keeps the packets of what was decided, and publishes the events.
fn keep(engine: &mut Engine, recorder: &mut Recorder, hub: &Hub, now: Timestamp) {
    while let Some(event) = engine.poll_judged() {
        recorder.hold(event);
    }
    while let Some(mut event) = engine.poll_event() {
        complain(recorder.keep(&mut event, now));
        hub.publish(event);
    }
    while let Some((upstream, count)) = engine.poll_unseen() {
        recorder.skip_healthy(upstream, count);
    }
    while let Some(healthy) = engine.poll_healthy() {
        complain(recorder.keep_healthy(&healthy, now));
    }
}

/// Says that the recording stops. What is not recorded meanwhile is counted.
fn complain(kept: Result<(), StoreError>) {
    match kept {
        Ok(()) | Err(StoreError::Resting) => {}
        Err(error @ StoreError::Write { .. }) => warn!("{error}"),
        Err(error) => debug!("{error}"),
    }
}

/// The engine's names are short; its origin is put in front so that they cannot meet another's.
fn report<S: Source>(source: &S, engine: &Engine, recorder: &Recorder) -> StatusReport {
    let own = source.counters().into_iter().chain(recorder.counters());
    let mut counters: Vec<_> = own
        .map(|(name, value)| (Cow::Borrowed(name), value))
        .collect();
    let of_engine = engine.stats().counters().into_iter();
    counters.extend(of_engine.map(|(name, value)| (Cow::Owned(format!("engine_{name}")), value)));
    counters.push((Cow::Borrowed("engine_open_hops"), engine.open_hops() as u64));
    StatusReport {
        probes: source.probes(),
        counters,
        upstreams: busiest(engine),
    }
}

/// The upstreams with the most exchanges.
fn busiest(engine: &Engine) -> Vec<(SocketAddr, UpstreamTally)> {
    let mut all: Vec<_> = engine.upstreams().into_iter().collect();
    all.sort_by_key(|(_, tally)| u64::MAX - tally.exchanges);
    all.truncate(MAX_UPSTREAMS);
    all
}

/// The loop over the live source, running.
#[derive(Debug)]
pub(super) struct Watcher {
    thread: thread::JoinHandle<()>,
    stop: Arc<AtomicBool>,
    waker: crate::live::Waker,
    ended: oneshot::Receiver<Result<(), LiveError>>,
    /// What was attached at the start.
    pub(super) probes: Vec<ProbeStatus>,
}

impl Watcher {
    /// Loads and attaches the kernel programs and starts the loop; returns once it watches.
    pub(super) async fn start(
        config: LiveConfig,
        mut engine: Engine,
        mut recorder: Recorder,
        hub: Arc<Hub>,
    ) -> Result<Self, Box<dyn Error + Send + Sync>> {
        let (starting, started) = oneshot::channel();
        let (ending, ended) = oneshot::channel();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let body = move || {
            let mut source = match LiveSource::start(&config) {
                Ok(source) => source,
                Err(error) => {
                    // The receivers are gone only where the command is ending anyway.
                    let _ = starting.send(Err(error));
                    return;
                }
            };
            let waker = source.waker();
            hub.set_waker(move || waker.wake());
            if starting.send(Ok((source.waker(), source.probes()))).is_ok() {
                let _ = ending.send(watch(
                    &mut source,
                    &mut engine,
                    &mut recorder,
                    &hub,
                    &stopped,
                ));
            }
        };
        let thread = thread::Builder::new()
            .name("watch".to_owned())
            .spawn(body)?;
        let (waker, probes) = started.await.map_err(|_| PANICKED)??;
        Ok(Self {
            thread,
            stop,
            waker,
            ended,
            probes,
        })
    }

    /// Resolves when the loop has ended by itself, which it does only for an error.
    pub(super) async fn failed(&mut self) -> Box<dyn Error + Send + Sync> {
        match (&mut self.ended).await {
            Ok(Err(error)) => error.into(),
            Ok(Ok(())) | Err(_) => PANICKED.into(),
        }
    }

    /// Ends the loop and detaches everything.
    pub(super) async fn stop(self) {
        self.stop.store(true, Relaxed);
        self.waker.wake();
        // A panic of the thread was reported by the panic hook.
        let _ = tokio::task::spawn_blocking(move || self.thread.join()).await;
    }
}

const PANICKED: &str = "the watching thread panicked; the log has the place: please report it";

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;
    use crate::engine;
    use crate::limits::Limits;
    use crate::record::{RedactConfig, Redactor};
    use crate::serve::HubConfig;

    /// Gives the times of a script, then an error.
    struct Script {
        times: Vec<u64>,
        waits: Vec<Duration>,
    }

    impl Source for Script {
        type Error = io::Error;

        fn pump(
            &mut self,
            timeout: Duration,
            sink: &mut dyn FnMut(Timestamp, Input<'_>),
        ) -> io::Result<Timestamp> {
            self.waits.push(timeout);
            let now = self
                .times
                .pop()
                .ok_or_else(|| io::Error::other("the ring is gone"))?;
            let now = Timestamp::from_nanos(now);
            sink(now, Input::Lost { records: 1 });
            Ok(now)
        }

        fn boost(&mut self, _: &UpstreamPattern, _: Duration) -> io::Result<()> {
            Ok(())
        }

        fn waiting(&self) -> Vec<(u64, Timestamp)> {
            Vec::new()
        }

        fn probes(&self) -> Vec<ProbeStatus> {
            Vec::new()
        }

        fn counters(&self) -> Vec<(&'static str, u64)> {
            vec![("pumps", self.waits.len() as u64)]
        }
    }

    fn silent() -> Recorder {
        Recorder::without_store(Redactor::new(RedactConfig::default()))
    }

    fn pumps(hub: &Hub) -> Option<u64> {
        let status = hub.status();
        let counter = status.counters.iter().find(|(name, _)| name == "pumps");
        counter.map(|(_, value)| *value)
    }

    #[test]
    fn a_failing_source_ends_the_loop_with_its_error() {
        let hub = Hub::new(HubConfig::default());
        let mut engine = Engine::new(engine::Config::default(), Limits::default());
        let mut source = Script {
            // Read from the end: the status is renewed at once and a second later, not in between.
            times: vec![1_000_000_001, 500_000_000, 1],
            waits: Vec::new(),
        };
        let stop = AtomicBool::new(false);
        let error = watch(&mut source, &mut engine, &mut silent(), &hub, &stop).unwrap_err();
        assert_eq!(error.to_string(), "the ring is gone");
        assert_eq!(source.waits, [Duration::ZERO, REST, REST, REST]);
        assert_eq!(pumps(&hub), Some(3));
    }

    #[test]
    fn a_stop_ends_it_and_leaves_a_last_report() {
        let hub = Hub::new(HubConfig::default());
        let mut engine = Engine::new(engine::Config::default(), Limits::default());
        let mut source = Script {
            times: Vec::new(),
            waits: Vec::new(),
        };
        let stop = AtomicBool::new(true);
        watch(&mut source, &mut engine, &mut silent(), &hub, &stop).unwrap();
        assert_eq!(pumps(&hub), Some(0));
    }
}
