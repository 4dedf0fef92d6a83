//! A kernel record as an input of the engine: names from the gateway, processes described, numbers
//! that mean "nothing" taken out.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hopscope_ebpf::PLAIN_MISSED;
use thiserror::Error;

use super::decode::{self, Body, ClientSaw, Ends, Record, comm_text};
use super::offsets::ResetReasons;
use super::process::Processes;
use super::proxied;
use super::unix;
use crate::input::packet::{IpPacket, PacketError, parse_ip};
use crate::model::{
    Actor, AnswerEnd, ClientAnswer, Direction, Errno, Exit, HeldExchanges, HopId, Input, Plaintext,
    Read, Segment, Signal, Target, TcpState,
};

// Where it is not known how many bytes were missed, both sides go on by as many.
const _: () = assert!(Plaintext::UNKNOWN == PLAIN_MISSED);

/// Why a packet of a hop is no segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub(super) enum NotSegment {
    /// Its headers cannot be read.
    #[error(transparent)]
    Unreadable(#[from] PacketError),
    /// It is a fragment, or another protocol than TCP.
    #[error("the packet is a fragment or not TCP")]
    OtherProtocol,
}

/// The input that a record stands for; `None` where it says nothing to the engine.
pub(super) fn input<'a>(
    record: &Record<'a>,
    processes: &mut Processes,
    reset_reasons: &ResetReasons,
) -> Result<Option<Input<'a>>, NotSegment> {
    let signal = match record.body {
        Body::Segment {
            egress,
            wire_len,
            bytes,
            records,
        } => {
            let direction = if egress {
                Direction::ToUpstream
            } else {
                Direction::FromUpstream
            };
            let IpPacket::Tcp(packet) = parse_ip(bytes, wire_len)? else {
                return Err(NotSegment::OtherProtocol);
            };
            return Ok(Some(Input::Segment {
                hop: HopId(record.cookie),
                segment: Segment {
                    packet: bytes,
                    records,
                    ..packet.segment(direction)
                },
            }));
        }
        Body::Plain {
            egress,
            offset,
            len,
            bytes,
        } => {
            return Ok(Some(Input::Plaintext {
                hop: HopId(record.cookie),
                text: Plaintext {
                    direction: if egress {
                        Direction::ToUpstream
                    } else {
                        Direction::FromUpstream
                    },
                    offset,
                    payload: bytes,
                    len,
                },
            }));
        }
        // One packet may hold several messages, or a part of one: that is for `names`.
        Body::Dns(_) => return Ok(None),
        Body::Connect {
            ends,
            caller,
            turn,
            goroutine,
            errno,
        } if record.cookie == 0 => {
            return Ok(Some(Input::ConnectFailed {
                process: processes.of_caller(&caller, ends.netns),
                upstream: ends.remote.into(),
                errno: Errno(errno),
                turn: Some(turn),
                goroutine,
            }));
        }
        Body::UnixConnect {
            path,
            netns,
            caller,
            turn,
            goroutine,
            errno,
        } => {
            let upstream = unix::name(path).filter(|name| !unix::is_service(name));
            return Ok(upstream.map(|name| Input::ConnectFailed {
                process: processes.of_caller(&caller, netns),
                upstream: Target::Unix(name),
                errno: Errno(errno),
                turn: Some(turn),
                goroutine,
            }));
        }
        Body::Held(held) => Signal::Held(Box::new(HeldExchanges {
            exchanges: held.exchanges,
            classes: held.classes,
            request_bytes: held.request_bytes,
            response_bytes: held.response_bytes,
            first_byte: held.first_byte,
        })),
        Body::Client(saw) => return Ok(answer(saw, processes).map(Input::Answer)),
        Body::Listen { ends, caller } => {
            let process = processes.of_caller(&caller, ends.netns);
            return Ok(processes.listeners.add(process, ends.local));
        }
        Body::Unreadable { ends } => {
            let unreadable = processes.listeners.unreadable(ends.netns, ends.local);
            return Ok(Some(unreadable));
        }
        Body::SocketCall {
            caller,
            turn,
            call,
            errno,
        } => {
            return Ok(Some(Input::SocketFailed {
                process: processes.of_caller(&caller, 0),
                turn,
                call,
                errno: Errno(errno),
            }));
        }
        Body::Library(fact) => Signal::Library(fact),
        Body::ClientLeft { turn, departure } => {
            return Ok(Some(Input::ClientLeft { turn, departure }));
        }
        Body::Connect { errno, .. } => Signal::ConnectReturned {
            errno: Errno(errno),
        },
        Body::Open {
            ends,
            caller,
            turn,
            turn_age_us,
            goroutine,
        } => Signal::Opened {
            process: processes.of_caller(&caller, ends.netns),
            local: bound(&ends),
            upstream: ends.remote,
            turn,
            turn_age: turn_age_us
                .checked_sub(1)
                .map(|age| Duration::from_micros(age.into())),
            goroutine,
        },
        Body::State {
            old,
            new,
            sk_err,
            bytes_acked,
            srtt_us,
            turn,
        } => Signal::State {
            old,
            new,
            errno: sk_err.filter(|errno| *errno != 0).map(Errno),
            bytes_acked,
            // Zero until the first acknowledgement was timed.
            rtt_us: srtt_us.filter(|micros| *micros != 0),
            turn,
        },
        Body::ResetIn => Signal::ResetReceived,
        Body::ResetOut { reason } => Signal::ResetSent {
            by: Actor::Gateway,
            reason: reason.and_then(|reason| reset_reasons.name(reason)),
        },
        Body::ResetPeer { reason } => Signal::ResetSent {
            by: Actor::Upstream,
            reason: reason.and_then(|reason| reset_reasons.name(reason)),
        },
        Body::Retransmit { state } => Signal::Retransmitted {
            state: state
                .and_then(|number| u32::try_from(number).ok())
                .and_then(TcpState::from_kernel),
        },
        Body::Error { errno } => match errno {
            Some(errno) if errno != 0 => Signal::SocketError {
                errno: Errno(errno),
            },
            _ => return Ok(None),
        },
    };
    Ok(Some(Input::Signal {
        hop: HopId(record.cookie),
        signal,
    }))
}

/// What a client got, where it is known which gateway listens there. What ran then is another process where
/// the kernel sent by itself; then the turn is not the gateway's.
fn answer<'a>(saw: ClientSaw<'a>, processes: &mut Processes) -> Option<ClientAnswer<'a>> {
    let ends = saw.ends;
    let listener = processes.listeners.at(ends.netns, ends.local)?;
    let own = saw.pid != 0 && *listener.comm == *comm_text(&saw.comm);
    let (process, turn) = if own {
        let caller = decode::Process {
            pid: saw.pid,
            cgroup_id: 0,
            comm: saw.comm,
        };
        (processes.of_caller(&caller, ends.netns), Some(saw.turn))
    } else {
        (Arc::clone(listener), None)
    };
    let end = if saw.response.is_empty() {
        let exit = saw.exit_code.filter(|_| own);
        AnswerEnd::Closed {
            exit: exit.map(|code| Exit {
                // The form of wait(2): the signal is in the low seven bits.
                signal: u8::try_from(code & 0x7f).unwrap_or(0),
            }),
        }
    } else {
        AnswerEnd::Response(saw.response)
    };
    Some(ClientAnswer {
        process,
        turn,
        goroutine: saw.goroutine.filter(|_| own).map(|goroutine| goroutine.id),
        listener: ends.local,
        client: ends.remote,
        on_behalf_of: proxied::client(saw.proxied),
        waited: Duration::from_nanos(saw.waited_ns),
        read: saw.read.filter(|_| own).map(|(waited, turn)| Read {
            waited: Duration::from_nanos(waited),
            turn,
        }),
        ordinal: saw.ordinal,
        request: saw.request,
        end,
    })
}

/// The gateway's end, where its socket has one already.
fn bound(ends: &Ends) -> Option<SocketAddr> {
    (ends.local.port() != 0).then_some(ends.local)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Turn;

    fn ends(port: u16) -> Ends {
        Ends {
            local: SocketAddr::from(([10, 0, 0, 1], port)),
            remote: SocketAddr::from(([10, 0, 0, 2], 80)),
            netns: 7,
        }
    }

    fn caller() -> decode::Process {
        decode::Process {
            pid: u32::MAX,
            cgroup_id: 0,
            comm: *b"nginx\0\0\0\0\0\0\0\0\0\0\0",
        }
    }

    fn translate(cookie: u64, body: Body<'_>) -> String {
        let record = Record {
            time_ns: 1,
            cookie,
            body,
        };
        format!(
            "{:?}",
            input(&record, &mut Processes::default(), &ResetReasons::default())
        )
    }

    #[test]
    fn a_failed_connect_without_a_socket_has_no_hop() {
        let body = Body::Connect {
            ends: ends(0),
            caller: caller(),
            turn: Turn::default(),
            goroutine: None,
            errno: 101,
        };
        assert!(translate(0, body).contains("ConnectFailed"));
        assert!(translate(5, body).contains("ConnectReturned"));
    }

    #[test]
    fn services_of_the_system_are_no_upstreams() {
        let connect = |path: &'static [u8]| {
            let body = Body::UnixConnect {
                path,
                netns: 7,
                caller: caller(),
                turn: Turn::default(),
                goroutine: None,
                errno: 2,
            };
            translate(0, body)
        };
        let text = connect(b"/run/app.sock\0");
        assert!(text.contains("Unix(\"/run/app.sock\")"), "{text}");
        assert_eq!(connect(b"/run/nscd/socket\0"), "Ok(None)");
        assert_eq!(connect(b"\0"), "Ok(None)");
    }

    #[test]
    fn an_unbound_end_is_unknown() {
        assert!(
            translate(
                5,
                Body::Open {
                    ends: ends(0),
                    caller: caller(),
                    turn: Turn::default(),
                    turn_age_us: 0,
                    goroutine: None,
                }
            )
            .contains("local: None")
        );
        assert!(
            translate(
                5,
                Body::Open {
                    ends: ends(9),
                    caller: caller(),
                    turn: Turn::default(),
                    turn_age_us: 0,
                    goroutine: None,
                }
            )
            .contains("10.0.0.1:9")
        );
    }

    #[test]
    fn zero_is_no_error_and_no_round_trip() {
        let body = Body::State {
            old: TcpState::SynSent,
            new: TcpState::Established,
            sk_err: Some(0),
            bytes_acked: Some(0),
            srtt_us: Some(0),
            turn: Turn::default(),
        };
        let text = translate(5, body);
        assert!(
            text.contains("errno: None, bytes_acked: Some(0), rtt_us: None"),
            "{text}"
        );
        assert_eq!(translate(5, Body::Error { errno: Some(0) }), "Ok(None)");
        assert_eq!(translate(5, Body::Error { errno: None }), "Ok(None)");
    }

    #[test]
    fn bytes_that_are_no_segment_are_refused() {
        let body = Body::Segment {
            egress: true,
            wire_len: 4,
            bytes: &[0x45, 0, 0, 4],
            records: crate::model::RecordHeads::NONE,
        };
        assert_eq!(translate(5, body), "Err(Unreadable(Truncated))");
    }
}
