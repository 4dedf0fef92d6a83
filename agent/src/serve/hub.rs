//! Where events leave the engine: the recent ones, the subscribers, the pushes to collectors, and
//! what the agent can say about itself.
//!
//! Decides what is kept and who is dropped. [`Hub::publish`] takes short locks only and never waits
//! for a reader.

use std::borrow::Cow;
use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use hopscope_proto::v1 as proto;
use hopscope_proto::{DecodeError, Message as _};
use thiserror::Error;
use tokio::sync::watch;

use super::captures::Captures;
use super::convert::{from_proto, to_proto};
use super::filter::Filter;
use super::push::PushQueue;
use super::queue::{Offer, Queue, Subscription};
use crate::engine::UpstreamTally;
use crate::model::{Cause, HopEvent, Timestamp};
use crate::stats::ProbeStatus;

/// Caps of the hub, and what it says about the agent.
#[derive(Clone, Debug)]
pub struct HubConfig {
    /// Recent events kept for queries.
    pub recent: usize,
    /// Events that may wait for one subscriber.
    pub subscriber_queue: usize,
    /// Subscribers at once. Each can hold a full queue, so this bounds memory.
    pub subscribers: usize,
    /// Name of the node.
    pub node: Arc<str>,
    /// Kernel release of the host.
    pub kernel: String,
    /// When the agent started.
    pub started: Timestamp,
}

impl Default for HubConfig {
    fn default() -> Self {
        Self {
            recent: 10_000,
            subscriber_queue: 1024,
            subscribers: 64,
            node: Arc::from("localhost"),
            kernel: String::new(),
            started: Timestamp::default(),
        }
    }
}

/// What is attached and every counter of the source and the engine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StatusReport {
    /// Sources of facts.
    pub probes: Vec<ProbeStatus>,
    /// Counters by name.
    pub counters: Vec<(Cow<'static, str>, u64)>,
    /// The upstreams with the most exchanges, by number of exchanges.
    pub upstreams: Vec<(SocketAddr, UpstreamTally)>,
}

/// An event as it goes over the wire: a fifth of what it takes otherwise, and in one piece.
#[derive(Clone, Debug)]
pub struct Encoded(Arc<[u8]>);

impl Encoded {
    fn of(event: &HopEvent) -> Self {
        Self(to_proto(event).encode_to_vec().into())
    }

    /// The event as a message. It fails only where the bytes are none.
    pub fn message(&self) -> Result<proto::HopEvent, DecodeError> {
        proto::HopEvent::decode(&*self.0)
    }

    /// Length of the message.
    pub fn bytes(&self) -> usize {
        self.0.len()
    }
}

/// The recent events that match a query.
#[derive(Clone, Debug, Default)]
pub struct Held {
    /// Oldest first.
    pub events: Vec<Encoded>,
    /// Matching events that the limit left out, the oldest.
    pub omitted: usize,
}

/// Why a subscription was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum SubscribeError {
    /// The cap on subscribers is reached.
    #[error("all {0} subscriptions are in use: end one, or query instead")]
    TooMany(usize),
    /// The agent is stopping.
    #[error("the agent is stopping")]
    Stopping,
}

/// How long a call waits for a fresh report of the engine's loop.
pub(super) const STATUS_PATIENCE: Duration = Duration::from_millis(250);

/// Shared by the engine's loop, which publishes, and the services, which read.
pub struct Hub {
    config: HubConfig,
    recent: Mutex<VecDeque<Encoded>>,
    failures: Mutex<BTreeMap<Cause, u64>>,
    readers: Mutex<Readers>,
    status: Mutex<StatusReport>,
    status_wanted: AtomicBool,
    status_generation: watch::Sender<u64>,
    waker: Mutex<Option<Box<dyn Fn() + Send + Sync>>>,
    captures: OnceLock<Captures>,
    counters: Counters,
}

#[derive(Default)]
struct Readers {
    subscribers: Vec<Arc<Queue>>,
    pushes: Vec<Arc<PushQueue>>,
    closed: bool,
}

#[derive(Debug, Default)]
struct Counters {
    events_published: AtomicU64,
    recent_evicted: AtomicU64,
    subscribers_accepted: AtomicU64,
    subscribers_refused: AtomicU64,
    subscribers_dropped: AtomicU64,
}

impl Hub {
    /// A hub that holds nothing yet.
    pub fn new(config: HubConfig) -> Arc<Self> {
        Arc::new(Self {
            recent: Mutex::default(),
            failures: Mutex::default(),
            readers: Mutex::default(),
            status: Mutex::default(),
            status_wanted: AtomicBool::new(false),
            status_generation: watch::Sender::new(0),
            waker: Mutex::default(),
            captures: OnceLock::new(),
            counters: Counters::default(),
            config,
        })
    }

    /// What it was made with.
    pub fn config(&self) -> &HubConfig {
        &self.config
    }

    /// Hands an event to everybody. Never waits.
    pub fn publish(&self, event: HopEvent) {
        let event = Arc::new(event);
        let encoded = Encoded::of(&event);
        self.counters.events_published.fetch_add(1, Relaxed);
        *lock(&self.failures).entry(event.cause).or_default() += 1;
        // The readers' lock is held over both steps: an event is either in the ring before a new
        // subscriber starts, or in its queue, or both, but never in neither.
        let mut readers = lock(&self.readers);
        self.remember(encoded);
        readers
            .subscribers
            .retain(|queue| match queue.offer(&event) {
                Offer::Taken => true,
                Offer::Overflowed => {
                    self.counters.subscribers_dropped.fetch_add(1, Relaxed);
                    false
                }
                Offer::Gone => false,
            });
        for push in &readers.pushes {
            push.offer(&event);
        }
    }

    fn remember(&self, event: Encoded) {
        let mut recent = lock(&self.recent);
        if self.config.recent == 0 {
            return;
        }
        if recent.len() >= self.config.recent {
            recent.pop_front();
            self.counters.recent_evicted.fetch_add(1, Relaxed);
        }
        recent.push_back(event);
    }

    /// How many events there were of each cause, by cause.
    pub fn failures(&self) -> Vec<(Cause, u64)> {
        let failures = lock(&self.failures);
        failures
            .iter()
            .map(|(cause, count)| (*cause, *count))
            .collect()
    }

    /// The recent events that `filter` lets through, at most `limit` of them, the newest.
    pub fn query(&self, filter: &Filter, limit: usize) -> Held {
        // Pointers are copied so that the publisher does not wait while the filter runs.
        let recent: Vec<_> = lock(&self.recent).iter().cloned().collect();
        let mut held = Held::default();
        let all = *filter == Filter::default();
        let wanted = |event: &Encoded| {
            let event = event.message().ok().map(from_proto);
            event.is_some_and(|event| event.is_ok_and(|event| filter.matches(&event)))
        };
        for event in recent.into_iter().rev() {
            if !(all || wanted(&event)) {
                continue;
            }
            if held.events.len() < limit {
                held.events.push(event);
            } else {
                held.omitted += 1;
            }
        }
        held.events.reverse();
        held
    }

    /// Events from now on.
    pub fn subscribe(&self) -> Result<Subscription, SubscribeError> {
        let mut readers = lock(&self.readers);
        if readers.closed {
            return Err(SubscribeError::Stopping);
        }
        readers.subscribers.retain(|queue| !queue.is_gone());
        if readers.subscribers.len() >= self.config.subscribers {
            self.counters.subscribers_refused.fetch_add(1, Relaxed);
            return Err(SubscribeError::TooMany(self.config.subscribers));
        }
        let (queue, subscription) = Queue::new(self.config.subscriber_queue);
        readers.subscribers.push(queue);
        self.counters.subscribers_accepted.fetch_add(1, Relaxed);
        Ok(subscription)
    }

    pub(super) fn add_push(&self, push: Arc<PushQueue>) {
        lock(&self.readers).pushes.push(push);
    }

    /// Ends every subscription and refuses new ones.
    pub fn close(&self) {
        let mut readers = lock(&self.readers);
        readers.closed = true;
        for queue in readers.subscribers.drain(..) {
            queue.close();
        }
    }

    /// Replaces what the agent says about its source and engine.
    pub fn set_status(&self, report: StatusReport) {
        *lock(&self.status) = report;
        self.status_wanted.store(false, Relaxed);
        self.status_generation
            .send_modify(|generation| *generation += 1);
    }

    /// Registers how to wake the engine's loop out of its wait.
    pub fn set_waker(&self, waker: impl Fn() + Send + Sync + 'static) {
        *lock(&self.waker) = Some(Box::new(waker));
    }

    /// Registers what keeps the captures, once, before the hub is served.
    pub fn set_captures(&self, captures: Captures) {
        // A second one would be a mistake of the caller's; the first stays.
        let _ = self.captures.set(captures);
    }

    pub(super) fn captures(&self) -> Option<Captures> {
        self.captures.get().cloned()
    }

    /// Whether somebody waits for [`Hub::set_status`].
    pub fn status_wanted(&self) -> bool {
        self.status_wanted.load(Relaxed)
    }

    /// The last report as it stands, with the hub's own counters.
    pub fn status(&self) -> StatusReport {
        let mut report = lock(&self.status).clone();
        report.counters.extend(self.counters());
        report
    }

    /// Like [`Hub::status`], after asking the engine's loop for a new report. A loop that does not
    /// answer within `patience` is answered for by its last one.
    pub async fn fresh_status(&self, patience: Duration) -> StatusReport {
        let mut generation = self.status_generation.subscribe();
        let woken = {
            let waker = lock(&self.waker);
            if let Some(wake) = waker.as_ref() {
                self.status_wanted.store(true, Relaxed);
                wake();
            }
            waker.is_some()
        };
        if woken {
            // Both outcomes lead to the newest report there is.
            let _ = tokio::time::timeout(patience, generation.changed()).await;
        }
        self.status()
    }

    /// The hub's own counters.
    fn counters(&self) -> Vec<(Cow<'static, str>, u64)> {
        let own = &self.counters;
        let (subscribers, pushes) = {
            let mut readers = lock(&self.readers);
            readers.subscribers.retain(|queue| !queue.is_gone());
            (readers.subscribers.len(), readers.pushes.clone())
        };
        let mut counters: Vec<(Cow<'static, str>, u64)> = [
            ("events_published", own.events_published.load(Relaxed)),
            ("events_recent", lock(&self.recent).len() as u64),
            ("events_recent_evicted", own.recent_evicted.load(Relaxed)),
            ("subscribers", subscribers as u64),
            (
                "subscribers_accepted",
                own.subscribers_accepted.load(Relaxed),
            ),
            ("subscribers_refused", own.subscribers_refused.load(Relaxed)),
            ("subscribers_dropped", own.subscribers_dropped.load(Relaxed)),
        ]
        .map(|(name, value)| (Cow::Borrowed(name), value))
        .into();
        let mut push_totals: Vec<(&'static str, u64)> = Vec::new();
        for push in pushes {
            for (name, value) in push.counters() {
                match push_totals.iter_mut().find(|(known, _)| *known == name) {
                    Some((_, total)) => *total += value,
                    None => push_totals.push((name, value)),
                }
            }
        }
        counters.extend(
            push_totals
                .into_iter()
                .map(|(name, value)| (Cow::Borrowed(name), value)),
        );
        counters
    }
}

impl fmt::Debug for Hub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hub")
            .field("config", &self.config)
            .field("counters", &self.counters)
            .finish_non_exhaustive()
    }
}

/// No code panics while it holds one of these locks, so a poisoned one still guards sound data.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
