//! The calls that hand out captures and change what is sampled.
//!
//! Decides who may call them, how much one answer holds, and how the refusals of whatever keeps the
//! captures look as gRPC statuses. What is kept, and how, is decided in [`crate::record`].

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use hopscope_proto::v1 as proto;
use hopscope_proto::v1::capture_filter::Outcome;
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};

use super::agent::{QUERY_BYTES, checked_filter};
use super::convert::timestamp_to_proto;
use crate::model::{Cause, Timestamp, UpstreamPattern, UpstreamPatternError};
use crate::record::{CaptureFilter, CaptureId, CaptureInfo, Sampler, Store, StoreError};

/// Bytes of a chunk. Small enough for any client, large enough that framing costs nothing.
const CHUNK_BYTES: usize = 64 * 1024;

/// Chunks that may wait for a client.
const CHUNKS_AHEAD: usize = 2;

/// Pulls at once. Each holds one capture in memory.
const PULLS: usize = 8;

/// The longest boost: one that is forgotten must not cost for ever.
const LONGEST_BOOST: Duration = Duration::from_hours(1);

/// What keeps the captures of an agent, and what chooses the healthy ones among them.
#[derive(Clone, Debug)]
pub struct Captures {
    store: Arc<Store>,
    sampler: Arc<Sampler>,
    /// The clock by which the sampler lives.
    now: fn() -> Timestamp,
}

impl Captures {
    /// Captures of `store`, more of them by `sampler`.
    pub fn new(store: Arc<Store>, sampler: Arc<Sampler>, now: fn() -> Timestamp) -> Self {
        Self {
            store,
            sampler,
            now,
        }
    }
}

fn checked(filter: Option<proto::CaptureFilter>) -> Result<CaptureFilter, Status> {
    let filter = filter.unwrap_or_default();
    let failed = match Outcome::try_from(filter.outcome) {
        Ok(Outcome::Unspecified) => None,
        Ok(Outcome::Failed) => Some(true),
        Ok(Outcome::Healthy) => Some(false),
        Err(_) => {
            let value = filter.outcome;
            return Err(Status::invalid_argument(format!(
                "bad filter: `outcome` has the unknown value {value}: is the caller a newer version?"
            )));
        }
    };
    let events = checked_filter(Some(proto::EventFilter {
        causes: filter.causes,
        upstreams: filter.upstreams,
        since: filter.since,
        unexplained: false,
    }))?;
    events
        .of_captures(failed)
        .map_err(|error| Status::invalid_argument(error.to_string()))
}

fn not_read(error: &StoreError) -> Status {
    let code = match error {
        StoreError::Gone(_) | StoreError::FileGone { .. } => Code::NotFound,
        StoreError::Damaged { .. } => Code::DataLoss,
        _ => Code::Internal,
    };
    Status::new(code, error.to_string())
}

/// The calls over what keeps captures, if anything does.
#[derive(Clone, Debug)]
pub(super) struct CaptureCalls {
    captures: Option<Captures>,
    pulls: Arc<Semaphore>,
}

impl CaptureCalls {
    pub(super) fn new(captures: Option<Captures>) -> Self {
        Self {
            captures,
            pulls: Arc::new(Semaphore::new(PULLS)),
        }
    }

    fn captures(&self) -> Result<&Captures, Status> {
        self.captures.as_ref().ok_or_else(|| {
            Status::failed_precondition(
                "this agent keeps no captures: let `hopscope run` keep some, without --no-captures and \
                 in a --capture-dir that it can write to",
            )
        })
    }

    pub(super) fn list(
        &self,
        request: proto::ListCapturesRequest,
    ) -> Result<proto::ListCapturesResponse, Status> {
        let captures = self.captures()?;
        let held = captures.store.list(&checked(request.filter)?);
        let limit = match request.limit {
            0 => usize::MAX,
            limit => usize::try_from(limit).unwrap_or(usize::MAX),
        };
        let count = held.len();
        let mut captures = Vec::new();
        let mut bytes = 0;
        for capture in held.into_iter().rev().take(limit) {
            let capture = info_to_proto(capture);
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

    pub(super) fn pull(&self, request: proto::PullCaptureRequest) -> Result<CaptureStream, Status> {
        let captures = self.captures()?;
        let filter = request.filter.unwrap_or_default();
        let by_filter = request.ids.is_empty();
        if !by_filter && filter != proto::CaptureFilter::default() {
            return Err(Status::invalid_argument(
                "ids and a filter exclude each other: give the one or the other",
            ));
        }
        let held = captures.store.list(&checked(Some(filter))?);
        let mut wanted: HashSet<_> = request.ids.into_iter().collect();
        let ids = held.into_iter().map(|info| info.id);
        let ids: Vec<_> = ids
            .filter(|id| by_filter || wanted.remove(&id.to_string()))
            .collect();
        if let Some(gone) = wanted.into_iter().min() {
            return Err(Status::not_found(format!(
                "there is no capture {gone}: it was deleted to make room or for its age, or never \
                 was; list the captures to see which are there"
            )));
        }
        let Ok(permit) = Arc::clone(&self.pulls).try_acquire_owned() else {
            return Err(Status::resource_exhausted(format!(
                "{PULLS} pulls are running already: wait for one to end"
            )));
        };
        let (chunks, stream) = mpsc::channel(CHUNKS_AHEAD);
        let store = Arc::clone(&captures.store);
        tokio::spawn(async move {
            let _permit = permit;
            tokio::select! {
                // A client that has left shall not keep the disk busy.
                () = chunks.closed() => {}
                () = send(store, ids, by_filter, &chunks) => {}
            }
        });
        Ok(ReceiverStream::new(stream))
    }

    pub(super) fn boost(
        &self,
        request: &proto::BoostSamplingRequest,
    ) -> Result<proto::BoostSamplingResponse, Status> {
        let captures = self.captures()?;
        let upstreams: UpstreamPattern = request
            .upstream
            .parse()
            .map_err(|error: UpstreamPatternError| Status::invalid_argument(error.to_string()))?;
        let duration = request.duration.and_then(|span| span.try_into().ok());
        let duration: Duration = duration.unwrap_or_default();
        if duration.is_zero() || duration > LONGEST_BOOST {
            return Err(Status::invalid_argument(format!(
                "a boost cannot last {duration:?}: give more than nothing and at most {} minutes, \
                 and boost again when it is over",
                LONGEST_BOOST.as_secs() / 60
            )));
        }
        let one_in = request.one_in.max(1);
        let now = (captures.now)();
        let until = now.after(duration);
        captures
            .sampler
            .boost(upstreams, one_in, until, now)
            .map_err(|error| Status::resource_exhausted(error.to_string()))?;
        Ok(proto::BoostSamplingResponse {
            one_in,
            until: Some(timestamp_to_proto(until)),
        })
    }
}

/// The chunks of a pull.
pub type CaptureStream = ReceiverStream<Result<proto::CaptureChunk, Status>>;

/// Sends captures one after another. Of those that a filter chose, one that was evicted since is left
/// out, and one that cannot be read is told without ending the pull; one that was asked for by id is
/// missed.
async fn send(
    store: Arc<Store>,
    ids: Vec<CaptureId>,
    by_filter: bool,
    chunks: &mpsc::Sender<Result<proto::CaptureChunk, Status>>,
) {
    for id in ids {
        let store = Arc::clone(&store);
        // It waits for the disk; nothing else shall.
        let read = tokio::task::spawn_blocking(move || store.read(id)).await;
        let bytes = match read {
            Ok(Ok(bytes)) => bytes,
            Ok(Err(StoreError::Gone(_))) if by_filter => continue,
            Ok(Err(error)) if by_filter => {
                let chunk = proto::CaptureChunk {
                    data: Vec::new(),
                    capture_id: id.to_string(),
                    unreadable: error.to_string(),
                };
                if chunks.send(Ok(chunk)).await.is_err() {
                    return;
                }
                continue;
            }
            Ok(Err(error)) => {
                // A client that has left needs no reason.
                let _ = chunks.send(Err(not_read(&error))).await;
                return;
            }
            Err(_) => {
                let panicked = "reading a capture panicked; the agent's log has the place: please \
                                report it";
                let _ = chunks.send(Err(Status::internal(panicked))).await;
                return;
            }
        };
        let mut capture_id = id.to_string();
        for data in bytes.chunks(CHUNK_BYTES) {
            let chunk = proto::CaptureChunk {
                data: data.to_vec(),
                capture_id: std::mem::take(&mut capture_id),
                unreadable: String::new(),
            };
            if chunks.send(Ok(chunk)).await.is_err() {
                return;
            }
        }
    }
}

fn info_to_proto(info: CaptureInfo) -> proto::CaptureInfo {
    proto::CaptureInfo {
        id: info.id.to_string(),
        time: Some(timestamp_to_proto(info.time)),
        cause: info.cause.map_or("", Cause::id).to_owned(),
        event_id: info.event_id.unwrap_or_default(),
        upstream: Some(proto::hop_event::Upstream {
            address: info.upstream.ip().to_string(),
            port: info.upstream.port().into(),
            name: String::new(),
        }),
        packets: info.packets,
        bytes: info.bytes,
        node: info.node.to_string(),
        method: info.exchange.method,
        path: info.exchange.path,
        status: info.exchange.status.map(u32::from),
    }
}
