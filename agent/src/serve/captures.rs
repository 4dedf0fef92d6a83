//! The calls that hand out captures and change what is sampled.
//!
//! Decides who may call them, how much one answer holds, and how the refusals of whatever keeps the
//! captures look as gRPC statuses. What is kept, and how, is decided by the [`CaptureKeeper`].

use core::net::SocketAddr;
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use hopscope_proto::v1 as proto;
use hopscope_proto::v1::capture_filter::Outcome;
use thiserror::Error;
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};

use super::agent::{QUERY_BYTES, checked_filter};
use super::convert::timestamp_to_proto;
use super::filter::Filter;
use crate::model::{Cause, Timestamp, UpstreamPattern};

/// Bytes of a chunk. Small enough for any client, large enough that framing costs nothing.
const CHUNK_BYTES: usize = 64 * 1024;

/// Chunks that may wait for a client.
const CHUNKS_AHEAD: usize = 2;

/// Pulls at once. Each holds one capture in memory.
const PULLS: usize = 8;

/// The longest boost: one that is forgotten must not cost for ever.
const LONGEST_BOOST: Duration = Duration::from_hours(1);

/// One capture, as it is listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CaptureListing {
    /// Its id.
    pub id: String,
    /// When it ended.
    pub time: Timestamp,
    /// Cause of the event that it is evidence of; none for a healthy exchange.
    pub cause: Option<Cause>,
    /// Id of that event.
    pub event_id: Option<String>,
    /// The upstream.
    pub upstream: SocketAddr,
    /// Packets in it.
    pub packets: u32,
    /// Length of its pcapng.
    pub bytes: u64,
}

/// Which captures are wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CaptureFilter {
    events: Filter,
    /// Failed exchanges only, healthy ones only, or both.
    failed: Option<bool>,
}

impl CaptureFilter {
    /// Whether a capture of this time at this upstream is wanted; those of healthy exchanges have no
    /// cause.
    pub fn admits(&self, cause: Option<Cause>, time: Timestamp, upstream: SocketAddr) -> bool {
        self.failed.is_none_or(|failed| failed == cause.is_some())
            && self.events.admits(cause, time, upstream)
    }

    fn checked(filter: Option<proto::CaptureFilter>) -> Result<Self, Status> {
        let filter = filter.unwrap_or_default();
        let failed = match Outcome::try_from(filter.outcome) {
            Ok(Outcome::Unspecified) => None,
            Ok(Outcome::Failed) => Some(true),
            Ok(Outcome::Healthy) => Some(false),
            Err(_) => {
                let value = filter.outcome;
                return Err(Status::invalid_argument(format!(
                    "bad filter: `outcome` has the unknown value {value}: is the caller a newer \
                     version?"
                )));
            }
        };
        let events = checked_filter(Some(proto::EventFilter {
            causes: filter.causes,
            upstreams: filter.upstreams,
            since: filter.since,
        }))?;
        Ok(Self { events, failed })
    }
}

/// What is sampled for a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Boost {
    /// One of so many exchanges is kept.
    pub one_in: u32,
    /// Until then.
    pub until: Timestamp,
}

/// Why captures could not be had.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum CaptureError {
    /// Never there, or evicted since.
    #[error(
        "there is no capture {0}: it was evicted to make room, or never kept; list the captures to \
         see which are there"
    )]
    Gone(String),
    /// Too many boosts at once, or the like.
    #[error("{0}")]
    Refused(String),
    /// The disk failed.
    #[error("cannot read the captures: {0}")]
    Read(String),
}

impl From<CaptureError> for Status {
    fn from(error: CaptureError) -> Self {
        let code = match error {
            CaptureError::Gone(_) => Code::NotFound,
            CaptureError::Refused(_) => Code::ResourceExhausted,
            CaptureError::Read(_) => Code::Internal,
        };
        Self::new(code, error.to_string())
    }
}

/// What keeps the captures of an agent. Its methods may wait for the disk.
pub trait CaptureKeeper: Send + Sync + 'static {
    /// The captures that `filter` admits, oldest first.
    fn list(&self, filter: &CaptureFilter) -> Result<Vec<CaptureListing>, CaptureError>;
    /// A capture as pcapng: whole sections.
    fn read(&self, id: &str) -> Result<Vec<u8>, CaptureError>;
    /// Keeps one in `one_in` exchanges with `upstream` for a time, and says what is in force.
    fn boost(
        &self,
        upstream: UpstreamPattern,
        one_in: u32,
        duration: Duration,
    ) -> Result<Boost, CaptureError>;
}

/// The calls over one keeper, or none.
#[derive(Clone)]
pub(super) struct CaptureCalls {
    keeper: Option<Arc<dyn CaptureKeeper>>,
    pulls: Arc<Semaphore>,
}

impl CaptureCalls {
    pub(super) fn new(keeper: Option<Arc<dyn CaptureKeeper>>) -> Self {
        Self {
            keeper,
            pulls: Arc::new(Semaphore::new(PULLS)),
        }
    }

    fn keeper(&self) -> Result<Arc<dyn CaptureKeeper>, Status> {
        self.keeper.clone().ok_or_else(|| {
            Status::failed_precondition(
                "this agent keeps no captures: give `hopscope run` a --capture-dir",
            )
        })
    }

    pub(super) async fn list(
        &self,
        request: proto::ListCapturesRequest,
    ) -> Result<proto::ListCapturesResponse, Status> {
        let keeper = self.keeper()?;
        let filter = CaptureFilter::checked(request.filter)?;
        let held = blocking(move || keeper.list(&filter)).await?;
        let limit = match request.limit {
            0 => usize::MAX,
            limit => usize::try_from(limit).unwrap_or(usize::MAX),
        };
        let count = held.len();
        let mut captures = Vec::new();
        let mut bytes = 0;
        for capture in held.into_iter().rev().take(limit) {
            let capture = listing_to_proto(capture);
            // Tag and length of a repeated message take at most six bytes at this size.
            bytes += hopscope_proto::Message::encoded_len(&capture) + 6;
            if bytes > QUERY_BYTES {
                break;
            }
            captures.push(capture);
        }
        captures.reverse();
        let omitted = u32::try_from(count - captures.len()).unwrap_or(u32::MAX);
        Ok(proto::ListCapturesResponse { captures, omitted })
    }

    pub(super) async fn pull(
        &self,
        request: proto::PullCaptureRequest,
    ) -> Result<CaptureStream, Status> {
        let keeper = self.keeper()?;
        let by_filter = request.ids.is_empty();
        let unfiltered = request
            .filter
            .as_ref()
            .is_none_or(|filter| *filter == proto::CaptureFilter::default());
        if !by_filter && !unfiltered {
            return Err(Status::invalid_argument(
                "ids and a filter exclude each other: give the one or the other",
            ));
        }
        let filter = CaptureFilter::checked(request.filter)?;
        let lister = Arc::clone(&keeper);
        let held = blocking(move || lister.list(&filter)).await?;
        let held = held.into_iter().map(|capture| capture.id);
        let ids: Vec<_> = if by_filter {
            held.collect()
        } else {
            let mut wanted: HashSet<_> = request.ids.into_iter().collect();
            let held: Vec<_> = held.filter(|id| wanted.remove(id)).collect();
            if let Some(gone) = wanted.into_iter().min() {
                return Err(CaptureError::Gone(gone).into());
            }
            held
        };
        let Ok(permit) = Arc::clone(&self.pulls).try_acquire_owned() else {
            return Err(Status::resource_exhausted(format!(
                "{PULLS} pulls are running already: wait for one to end"
            )));
        };
        let (chunks, stream) = mpsc::channel(CHUNKS_AHEAD);
        tokio::spawn(async move {
            let _permit = permit;
            tokio::select! {
                // A client that has left shall not keep the disk busy.
                () = chunks.closed() => {}
                () = send(keeper, ids, by_filter, &chunks) => {}
            }
        });
        Ok(ReceiverStream::new(stream))
    }

    pub(super) async fn boost(
        &self,
        request: proto::BoostSamplingRequest,
    ) -> Result<proto::BoostSamplingResponse, Status> {
        let keeper = self.keeper()?;
        let invalid = |message: String| Status::invalid_argument(message);
        let upstream: UpstreamPattern = request
            .upstream
            .parse()
            .map_err(|error: crate::model::UpstreamPatternError| invalid(error.to_string()))?;
        let duration = request
            .duration
            .and_then(|duration| duration.try_into().ok());
        let duration: Duration = duration.unwrap_or_default();
        if duration.is_zero() || duration > LONGEST_BOOST {
            return Err(invalid(format!(
                "a boost cannot last {duration:?}: give more than nothing and at most {} minutes, \
                 and boost again when it is over",
                LONGEST_BOOST.as_secs() / 60
            )));
        }
        let one_in = request.one_in.max(1);
        let boost = blocking(move || keeper.boost(upstream, one_in, duration)).await?;
        Ok(proto::BoostSamplingResponse {
            one_in: boost.one_in,
            until: Some(timestamp_to_proto(boost.until)),
        })
    }
}

/// The chunks of a pull.
pub type CaptureStream = ReceiverStream<Result<proto::CaptureChunk, Status>>;

/// Sends captures one after another. Of those that a filter chose, one that was evicted since is left
/// out; one that was asked for by id is missed.
async fn send(
    keeper: Arc<dyn CaptureKeeper>,
    ids: Vec<String>,
    by_filter: bool,
    chunks: &mpsc::Sender<Result<proto::CaptureChunk, Status>>,
) {
    for id in ids {
        let reader = Arc::clone(&keeper);
        let wanted = id.clone();
        let bytes = match blocking(move || reader.read(&wanted)).await {
            Ok(bytes) => bytes,
            Err(error) if by_filter && error.code() == Code::NotFound => continue,
            Err(error) => {
                // A client that has left needs no reason.
                let _ = chunks.send(Err(error)).await;
                return;
            }
        };
        let mut capture_id = id;
        for data in bytes.chunks(CHUNK_BYTES) {
            let chunk = proto::CaptureChunk {
                data: data.to_vec(),
                capture_id: std::mem::take(&mut capture_id),
            };
            if chunks.send(Ok(chunk)).await.is_err() {
                return;
            }
        }
    }
}

/// Runs what may wait for the disk where nothing else waits for it.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, CaptureError> + Send + 'static,
) -> Result<T, Status> {
    match tokio::task::spawn_blocking(work).await {
        Ok(outcome) => Ok(outcome?),
        Err(_) => Err(Status::internal(
            "reading the captures panicked; the agent's log has the place: please report it",
        )),
    }
}

fn listing_to_proto(capture: CaptureListing) -> proto::CaptureInfo {
    proto::CaptureInfo {
        id: capture.id,
        time: Some(timestamp_to_proto(capture.time)),
        cause: capture.cause.map_or("", Cause::id).to_owned(),
        event_id: capture.event_id.unwrap_or_default(),
        upstream: Some(proto::hop_event::Upstream {
            address: capture.upstream.ip().to_string(),
            port: capture.upstream.port().into(),
            name: String::new(),
        }),
        packets: capture.packets,
        bytes: capture.bytes,
    }
}
