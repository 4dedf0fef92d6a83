//! Pushes events to one collector over `HopCollector.Publish`.
//!
//! Decides what survives a collector that is away: every event gets a sequence number and waits in a
//! bounded queue until the collector has acknowledged it; after a reconnect all that wait are sent
//! again. When the queue is full the *new* event is dropped and counted, for two reasons: what was
//! sent already must stay until it is acknowledged, and the first events of an incident explain it
//! while the agent's own ring still holds the newest. Dropped events use up their number, so the
//! collector can see the gap.

use std::collections::VecDeque;
use std::error::Error as _;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use hopscope_proto::v1 as proto;
use hopscope_proto::v1::hop_collector_client::HopCollectorClient;
use thiserror::Error;
use tokio::sync::{Notify, watch};
use tokio_stream::Stream;
use tracing::{debug, info, warn};

use super::convert::to_proto;
use super::hub::Hub;
use super::listen::{Endpoint, EndpointError};
use super::tls::reason;
use crate::model::HopEvent;

/// How to push to one collector.
#[derive(Clone, Debug)]
pub struct PushConfig {
    /// The collector.
    pub endpoint: Endpoint,
    /// Events kept until they are acknowledged.
    pub queue: usize,
    /// The first reconnect comes within this time; each further one within twice the time before.
    pub backoff: Duration,
    /// The longest wait before a reconnect.
    pub backoff_cap: Duration,
    /// A collector that acknowledges nothing for this long while events wait is reconnected to.
    pub patience: Duration,
}

impl PushConfig {
    /// The usual settings for one collector.
    pub fn new(endpoint: Endpoint) -> Self {
        Self {
            endpoint,
            queue: 10_000,
            backoff: Duration::from_millis(500),
            backoff_cap: Duration::from_secs(30),
            patience: Duration::from_secs(30),
        }
    }
}

/// Why a connection to a collector ended.
#[derive(Debug, Error)]
enum PushError {
    #[error("cannot connect: {}", in_flags_of_run(&reason(.0)))]
    Connect(#[source] tonic::transport::Error),
    #[error("{}", refusal(.0))]
    Refused(Box<tonic::Status>),
    #[error("it closed the stream")]
    Closed,
    #[error("nothing was acknowledged for {} s", .0.as_secs())]
    Silent(Duration),
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
}

/// What a collector said, or what became of the connection before it could.
fn refusal(status: &tonic::Status) -> String {
    match status.source() {
        Some(_) => in_flags_of_run(&reason(status)),
        None => format!("{}: {}", status.code(), status.message()),
    }
}

/// Reasons name the flags of commands that ask an agent; an agent has others for its collectors.
fn in_flags_of_run(reason: &str) -> String {
    ["ca", "cert", "key"]
        .iter()
        .fold(reason.to_owned(), |reason, flag| {
            reason.replace(&format!("--tls-{flag}"), &format!("--collector-tls-{flag}"))
        })
}

/// The events that one collector has not acknowledged yet.
#[derive(Debug)]
pub(super) struct PushQueue {
    cap: usize,
    state: Mutex<State>,
    progress: Notify,
    dropped: AtomicU64,
    sent: AtomicU64,
    acknowledged: AtomicU64,
    connects: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    /// In order of sequence, with gaps where events were dropped.
    waiting: VecDeque<(u64, Arc<HopEvent>)>,
    last_sequence: u64,
    /// Which connection may take events; an older one's stream ends.
    connection: u64,
    waker: Option<Waker>,
}

impl PushQueue {
    fn new(cap: usize) -> Arc<Self> {
        Arc::new(Self {
            cap,
            state: Mutex::default(),
            progress: Notify::new(),
            dropped: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            acknowledged: AtomicU64::new(0),
            connects: AtomicU64::new(0),
        })
    }

    pub(super) fn offer(&self, event: &Arc<HopEvent>) {
        let mut state = self.lock();
        state.last_sequence += 1;
        if state.waiting.len() >= self.cap {
            self.dropped.fetch_add(1, Relaxed);
            return;
        }
        let sequence = state.last_sequence;
        state.waiting.push_back((sequence, Arc::clone(event)));
        let waker = state.waker.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Forgets what the collector has taken over.
    fn acknowledge(&self, up_to: u64) {
        let mut state = self.lock();
        let taken = state
            .waiting
            .partition_point(|(sequence, _)| *sequence <= up_to);
        state.waiting.drain(..taken);
        drop(state);
        if taken > 0 {
            self.acknowledged.fetch_add(taken as u64, Relaxed);
            self.progress.notify_waiters();
        }
    }

    /// A stream over everything that waits, from the first, and what comes later. Streams handed
    /// out before end.
    fn stream(self: &Arc<Self>) -> PushStream {
        let mut state = self.lock();
        state.connection += 1;
        let connection = state.connection;
        let waker = state.waker.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
        self.connects.fetch_add(1, Relaxed);
        PushStream {
            queue: Arc::clone(self),
            connection,
            sent_up_to: Arc::default(),
        }
    }

    fn waiting(&self) -> usize {
        self.lock().waiting.len()
    }

    pub(super) fn counters(&self) -> [(&'static str, u64); 5] {
        [
            ("push_waiting", self.waiting() as u64),
            ("push_sent", self.sent.load(Relaxed)),
            ("push_acknowledged", self.acknowledged.load(Relaxed)),
            ("push_dropped", self.dropped.load(Relaxed)),
            ("push_connects", self.connects.load(Relaxed)),
        ]
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The request stream of one connection.
#[derive(Debug)]
struct PushStream {
    queue: Arc<PushQueue>,
    connection: u64,
    /// The last sequence number that this connection has sent.
    sent_up_to: Arc<AtomicU64>,
}

impl Stream for PushStream {
    type Item = proto::PublishRequest;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let mut state = self.queue.lock();
        if state.connection != self.connection {
            return Poll::Ready(None);
        }
        let sent = self.sent_up_to.load(Relaxed);
        let next = state
            .waiting
            .partition_point(|(sequence, _)| *sequence <= sent);
        let Some((sequence, event)) = state.waiting.get(next).cloned() else {
            state.waker = Some(cx.waker().clone());
            return Poll::Pending;
        };
        drop(state);
        self.sent_up_to.store(sequence, Relaxed);
        self.queue.sent.fetch_add(1, Relaxed);
        Poll::Ready(Some(proto::PublishRequest {
            sequence,
            event: Some(to_proto(&event)),
        }))
    }
}

/// A running push to one collector.
#[derive(Debug)]
pub struct Push {
    endpoint: Endpoint,
    queue: Arc<PushQueue>,
    stop: watch::Sender<bool>,
    task: tokio::task::JoinHandle<()>,
}

impl Push {
    /// Starts pushing everything that `hub` publishes from now on. Must be called on a tokio
    /// runtime.
    pub fn start(hub: &Hub, config: PushConfig) -> Self {
        let queue = PushQueue::new(config.queue);
        hub.add_push(Arc::clone(&queue));
        let (stop, stopped) = watch::channel(false);
        Self {
            endpoint: config.endpoint.clone(),
            task: tokio::spawn(run(Arc::clone(&queue), config, stopped)),
            queue,
            stop,
        }
    }

    /// Waits at most `grace` for the outstanding acknowledgements, then stops. Returns how many
    /// events the collector did not acknowledge.
    pub async fn stop(self, grace: Duration) -> usize {
        let drained = async {
            loop {
                let progress = self.queue.progress.notified();
                if self.queue.waiting() == 0 {
                    break;
                }
                progress.await;
            }
        };
        let in_time = tokio::time::timeout(grace, drained).await.is_ok();
        self.stop.send_replace(true);
        if self.task.await.is_err() {
            warn!(collector = %self.endpoint, "the push ended before it was stopped");
        }
        if in_time { 0 } else { self.queue.waiting() }
    }
}

async fn run(queue: Arc<PushQueue>, config: PushConfig, mut stopped: watch::Receiver<bool>) {
    let mut failures = 0;
    loop {
        let acknowledged = queue.acknowledged.load(Relaxed);
        let error = tokio::select! {
            outcome = connection(&queue, &config) => match outcome {
                Ok(never) => match never {},
                Err(error) => error,
            },
            _ = stopped.wait_for(|stop| *stop) => return,
        };
        if queue.acknowledged.load(Relaxed) > acknowledged {
            failures = 0;
        }
        let wait = backoff(&config, failures);
        // Only the first failure of a row is loud: an absent collector must not fill the log.
        if failures == 0 {
            warn!(
                collector = %config.endpoint,
                waiting = queue.waiting(),
                "push interrupted: {error}; trying again until the collector is back"
            );
        } else {
            debug!(collector = %config.endpoint, failures, ?wait, "push interrupted: {error}");
        }
        failures += 1;
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            _ = stopped.wait_for(|stop| *stop) => return,
        }
    }
}

/// Exponential backoff with full jitter: many agents must not come back to a collector at once.
fn backoff(config: &PushConfig, failures: u32) -> Duration {
    let ceiling = config
        .backoff
        .saturating_mul(2_u32.saturating_pow(failures.min(31)));
    ceiling.min(config.backoff_cap).mul_f64(fastrand::f64())
}

/// One connection, until it fails.
async fn connection(
    queue: &Arc<PushQueue>,
    config: &PushConfig,
) -> Result<std::convert::Infallible, PushError> {
    let channel = config
        .endpoint
        .tonic()?
        .connect()
        .await
        .map_err(PushError::Connect)?;
    let stream = queue.stream();
    let sent_up_to = Arc::clone(&stream.sent_up_to);
    let refused = |status| PushError::Refused(Box::new(status));
    // The collector may hold its answer's head back until the first event.
    let call = async {
        let response = HopCollectorClient::new(channel).publish(stream).await;
        response.map(tonic::Response::into_inner).map_err(refused)
    };
    let mut responses = attentive(queue, config.patience, call).await?;
    info!(collector = %config.endpoint, waiting = queue.waiting(), "pushing to the collector");
    loop {
        let next = async { responses.message().await.map_err(refused) };
        let response = attentive(queue, config.patience, next).await?;
        let response = response.ok_or(PushError::Closed)?;
        // A collector cannot have taken over what was never sent to it.
        let up_to = response.acknowledged.min(sent_up_to.load(Relaxed));
        queue.acknowledge(up_to);
    }
}

/// Waits for `answer`, but not beyond `patience` while events wait for it.
async fn attentive<T>(
    queue: &PushQueue,
    patience: Duration,
    answer: impl Future<Output = Result<T, PushError>>,
) -> Result<T, PushError> {
    let mut answer = std::pin::pin!(answer);
    let mut waited = false;
    loop {
        match tokio::time::timeout(patience, &mut answer).await {
            Ok(outcome) => return outcome,
            // Events that came in the middle of a span get a whole one.
            Err(_) if waited && queue.waiting() > 0 => return Err(PushError::Silent(patience)),
            Err(_) => waited = queue.waiting() > 0,
        }
    }
}
