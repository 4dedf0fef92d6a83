//! HTTP/1 on the hop: requests as far as they frame and name an exchange, responses strictly.
//!
//! It decides which bytes belong to which message and which byte breaks RFC 9110 or RFC 9112; it
//! leaves alone whether that made an exchange fail. The same bytes in any split give the same result.

mod body;
mod clean;
mod coding;
mod fields;
mod finding;
mod oversize;
mod profile;
mod request;
mod response;
mod scan;
mod status_line;
mod tls_port;

pub use body::{Body, BodyStep, Chunked, FramingLost};
pub use coding::Coding;
pub use finding::{Finding, FindingKind, Foreign, HeadSize};
pub use profile::{GATEWAYS, Gateway, Outcome, measured, outcomes, split};
pub use request::{Protocol, RequestEvent, RequestHead, RequestParser};
pub use response::{RequestKind, ResponseEvent, ResponseParser, SizedHead, Stage};
pub use tls_port::TlsPortText;
