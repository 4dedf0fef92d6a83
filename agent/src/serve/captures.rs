//! The calls that hand out captures and change what is sampled.
//!
//! Decides who may call them, how much one answer holds, and how the store's refusals look as gRPC
//! statuses.

use hopscope_proto::v1 as proto;
use tonic::{Request, Response, Status};

use super::access::may_capture;

fn off() -> Status {
    Status::failed_precondition("this agent keeps no captures: start it without --no-captures")
}

pub(super) fn list(
    request: &Request<proto::ListCapturesRequest>,
) -> Result<Response<proto::ListCapturesResponse>, Status> {
    may_capture(request)?;
    Err(off())
}

pub(super) fn pull(
    request: &Request<proto::PullCaptureRequest>,
) -> Result<Response<tokio_stream::Empty<Result<proto::CaptureChunk, Status>>>, Status> {
    may_capture(request)?;
    Err(off())
}

pub(super) fn boost(
    request: &Request<proto::BoostSamplingRequest>,
) -> Result<Response<proto::BoostSamplingResponse>, Status> {
    may_capture(request)?;
    Err(off())
}
