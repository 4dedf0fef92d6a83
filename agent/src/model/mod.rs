//! The vocabulary of hopscope as types: no logic beyond conversions and names.
//!
//! Everything here is named from the gateway's point of view; nothing knows where a fact came from
//! or where an event goes.

mod address;
mod answer;
mod catalogue;
mod cause;
mod event;
mod held;
mod hop;
mod input;
mod pattern;
mod time;

pub use address::{Target, UpstreamAddress};
pub use answer::{
    AnswerEnd, AttemptInfo, ClientAnswer, ClientInfo, Exit, GatewayAnswer, Read, SocketCall,
};
pub use catalogue::{Cause, catalogue};
pub use cause::{CauseInfo, Family, FaultSide, Proof};
pub use event::{
    Completeness, ConnectionInfo, Evidence, EvidenceSource, ExchangeInfo, GatewayInfo, HopEvent,
    LocalInfo, Phase, TlsInfo, UpstreamInfo,
};
pub use held::{FIRST_BYTE_CLASSES, HeldExchanges, first_byte_class};
pub use hop::{Direction, Errno, HopId, Process, ResetReason, TcpFlags, TcpState};
pub use input::{
    Actor, Departure, DnsMessage, Goroutine, IcmpError, IcmpKind, Input, LibraryFact, Plaintext,
    RecordHeads, Segment, Signal, Turn,
};
pub use pattern::{UpstreamPattern, UpstreamPatternError};
pub use time::Timestamp;
