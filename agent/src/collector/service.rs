//! The `hopscope.v1.HopCollector` service: takes streams of events, keeps each once, acknowledges.
//!
//! An event that this version cannot read is acknowledged too, counted and logged: the agent would
//! send it again for ever otherwise.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use hopscope_proto::v1 as proto;
use hopscope_proto::v1::hop_collector_server::{HopCollector, HopCollectorServer};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use tracing::{info, warn};

use super::seen::Seen;
use crate::model::HopEvent;
use crate::serve::{ConvertError, Listener, ServeError, from_proto, reflection, server};

/// Events remembered so that a resent one is not kept twice: six agents' full push queues.
const SEEN_CAP: usize = 65_536;

/// Messages of one stream read ahead of the sink. Beyond it, flow control slows the agent down.
const READ_AHEAD: usize = 256;

/// Where events go. Called with events that are new; they are acknowledged once it returns `Ok`.
pub trait Sink: Send + 'static {
    /// Keeps one event. It may still be buffered.
    fn keep(&mut self, event: &HopEvent) -> io::Result<()>;
    /// Makes everything kept so far durable, as far as the sink can.
    fn flush(&mut self) -> io::Result<()>;
}

/// What all streams share.
#[derive(Debug)]
pub struct Collector<S> {
    store: Mutex<Store<S>>,
    failure: watch::Sender<Option<io::Error>>,
    counters: Counters,
}

#[derive(Debug)]
struct Store<S> {
    seen: Seen,
    sink: S,
}

#[derive(Debug, Default)]
struct Counters {
    kept: AtomicU64,
    duplicates: AtomicU64,
    unreadable: AtomicU64,
}

impl<S: Sink> Collector<S> {
    /// A collector that keeps events in `sink`.
    pub fn new(sink: S) -> Arc<Self> {
        Arc::new(Self {
            store: Mutex::new(Store {
                seen: Seen::new(SEEN_CAP),
                sink,
            }),
            failure: watch::Sender::new(None),
            counters: Counters::default(),
        })
    }

    /// Every counter with its name.
    pub fn counters(&self) -> [(&'static str, u64); 3] {
        [
            ("events_kept", self.counters.kept.load(Relaxed)),
            ("events_duplicate", self.counters.duplicates.load(Relaxed)),
            ("events_unreadable", self.counters.unreadable.load(Relaxed)),
        ]
    }

    /// Resolves once the sink has failed, with its error. The collector takes over nothing more.
    pub async fn failed(&self) -> io::Error {
        let mut failure = self.failure.subscribe();
        let _ = failure.wait_for(Option::is_some).await;
        let error = self.failure.send_replace(None);
        error.unwrap_or_else(|| io::Error::other("the sink failed"))
    }

    /// Keeps the new ones of a batch. All or nothing is acknowledged.
    fn take(&self, batch: &[HopEvent]) -> Result<(), Status> {
        let mut store = self.store.lock().unwrap_or_else(PoisonError::into_inner);
        let Store { seen, sink } = &mut *store;
        let mut kept = 0;
        let mut keep_all = || {
            for event in batch {
                if seen.insert(&event.node, &event.id) {
                    sink.keep(event).inspect_err(|_| seen.forget_newest())?;
                    kept += 1;
                }
            }
            sink.flush()
        };
        let outcome = keep_all();
        let duplicates = batch.len() as u64 - kept;
        self.counters.kept.fetch_add(kept, Relaxed);
        match outcome {
            Ok(()) => {
                self.counters.duplicates.fetch_add(duplicates, Relaxed);
                Ok(())
            }
            Err(error) => {
                let status = Status::unavailable(format!("the collector cannot write: {error}"));
                self.failure.send_replace(Some(error));
                Err(status)
            }
        }
    }

    fn unreadable(&self, error: &ConvertError, first_of_stream: bool) {
        self.counters.unreadable.fetch_add(1, Relaxed);
        if first_of_stream {
            warn!("an event cannot be read and is left out: {error}");
        }
    }
}

/// The service over one collector.
#[derive(Debug)]
pub struct CollectorService<S> {
    collector: Arc<Collector<S>>,
    stopping: watch::Receiver<bool>,
}

/// Acknowledgements of one stream.
pub type PublishStream = ReceiverStream<Result<proto::PublishResponse, Status>>;

/// A sequence number, and the event where it can be read.
type Numbered = (u64, Option<HopEvent>);

#[tonic::async_trait]
impl<S: Sink> HopCollector for CollectorService<S> {
    type PublishStream = PublishStream;

    async fn publish(
        &self,
        request: Request<Streaming<proto::PublishRequest>>,
    ) -> Result<Response<Self::PublishStream>, Status> {
        let peer = request.remote_addr();
        info!(?peer, "an agent has connected");
        let (numbered, batches) = mpsc::channel(READ_AHEAD);
        let (acknowledge, responses) = mpsc::channel(1);
        let collector = Arc::clone(&self.collector);
        let stopping = self.stopping.clone();
        tokio::spawn(read(
            request.into_inner(),
            numbered,
            stopping,
            Arc::clone(&collector),
        ));
        tokio::spawn(async move {
            if let Err(status) = write(collector, batches, &acknowledge).await {
                // The agent may be gone already.
                let _ = acknowledge.send(Err(status)).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(responses)))
    }
}

/// Reads until the stream ends, the writer has ended, or the collector stops.
async fn read<S: Sink>(
    mut stream: Streaming<proto::PublishRequest>,
    numbered: mpsc::Sender<Numbered>,
    mut stopping: watch::Receiver<bool>,
    collector: Arc<Collector<S>>,
) {
    let mut all_readable = true;
    loop {
        let message = tokio::select! {
            message = stream.message() => message,
            () = numbered.closed() => return,
            _ = stopping.wait_for(|stop| *stop) => return,
        };
        // An agent that vanishes breaks its stream; what it sent before is still taken over.
        let Ok(Some(message)) = message else { return };
        let event = message
            .event
            .ok_or(ConvertError::Missing { field: "event" });
        let event = event.and_then(from_proto);
        if let Err(error) = &event {
            collector.unreadable(error, std::mem::take(&mut all_readable));
        }
        if numbered.send((message.sequence, event.ok())).await.is_err() {
            return;
        }
    }
}

/// Keeps and acknowledges batch by batch.
async fn write<S: Sink>(
    collector: Arc<Collector<S>>,
    mut batches: mpsc::Receiver<Numbered>,
    acknowledge: &mpsc::Sender<Result<proto::PublishResponse, Status>>,
) -> Result<(), Status> {
    let mut acknowledged = 0;
    loop {
        let mut batch = Vec::new();
        if batches.recv_many(&mut batch, READ_AHEAD).await == 0 {
            return Ok(());
        }
        let newest = batch.iter().map(|(sequence, _)| *sequence).max();
        let events: Vec<_> = batch.into_iter().filter_map(|(_, event)| event).collect();
        let keeper = Arc::clone(&collector);
        // The sink may block, for instance on a pipe that nobody reads.
        tokio::task::spawn_blocking(move || keeper.take(&events))
            .await
            .map_err(|_| Status::internal("the sink panicked"))??;
        acknowledged = newest.unwrap_or(0).max(acknowledged);
        let response = proto::PublishResponse { acknowledged };
        if acknowledge.send(Ok(response)).await.is_err() {
            return Ok(());
        }
    }
}

/// Serves `collector` on `listener` until `stop` resolves.
pub async fn serve_collector<S: Sink>(
    listener: Listener,
    collector: Arc<Collector<S>>,
    stop: impl Future<Output = ()> + Send + 'static,
) -> Result<(), ServeError> {
    let (stopping, stopped) = watch::channel(false);
    let service = CollectorService {
        collector,
        stopping: stopped,
    };
    let (health, health_service) = tonic_health::server::health_reporter();
    health
        .set_serving::<HopCollectorServer<CollectorService<S>>>()
        .await;
    let reflection = || reflection("hopscope.v1.HopCollector");
    let router = server()
        .add_service(HopCollectorServer::new(service))
        .add_service(health_service)
        .add_service(reflection().build_v1()?)
        .add_service(reflection().build_v1alpha()?);
    let stop = async move {
        stop.await;
        health
            .set_not_serving::<HopCollectorServer<CollectorService<S>>>()
            .await;
        stopping.send_replace(true);
    };
    listener.serve(router, stop).await
}
