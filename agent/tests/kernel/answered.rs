//! How requests of a gateway's clients and the answers to them come over the wire: in pieces, twice, one behind
//! the other, or not at all.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};

use hopscope::model::{Direction, TcpFlags};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, connect, ipproto, recv,
    sendto, socket, socket_with, sockopt::Timeout, sockopt::set_socket_timeout,
};

use crate::accepted::{alone, only, opaque};
use crate::clients::{BAD, GOOD, Pair, REQUEST, answers, config};
use crate::late::packet;
use crate::support::{DEADLINE, Seen, Watch};

const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// A watched listener and what is seen of it.
struct Bed {
    watch: Watch,
    listener: TcpListener,
}

impl Bed {
    fn new() -> Self {
        Self::at("127.0.0.1:0")
    }

    fn at(address: &str) -> Self {
        let watch = Watch::start(&config());
        let listener = TcpListener::bind(address).unwrap();
        Self { watch, listener }
    }

    /// A client, whose every write is a segment, as is every write to it.
    fn client(&self) -> Pair {
        let pair = Pair::of(&self.listener);
        pair.client.set_nodelay(true).unwrap();
        pair.accepted.set_nodelay(true).unwrap();
        pair
    }

    /// A failure that has to come up shows that everything before it was seen.
    fn settle(&mut self) {
        let mut last = self.client();
        last.ask(REQUEST);
        last.answer(BAD);
        only(&mut self.watch, &last);
    }

    fn assert_silent(&mut self, pair: &Pair) {
        let ends = pair.ends();
        self.assert_none(ends);
    }

    fn assert_none(&mut self, ends: (SocketAddr, SocketAddr)) {
        self.settle();
        let found = answers(&self.watch, ends);
        assert!(found.is_empty(), "{found:?}");
    }
}

#[test]
fn a_status_line_may_come_in_pieces() {
    alone(|| {
        let mut bed = Bed::new();
        for cut in 1..BAD.len().min(20) {
            let mut pair = bed.client();
            pair.ask(REQUEST);
            pair.answer(&GOOD[..cut]);
            pair.answer(&GOOD[cut..]);
            pair.ask(REQUEST);
            pair.answer(&BAD[..cut]);
            pair.answer(&BAD[cut..]);
            let (request, response) = only(&mut bed.watch, &pair);
            assert_eq!(request, REQUEST);
            let whole = if cut < 12 { BAD } else { &BAD[..cut] };
            assert_eq!(response.as_deref(), Some(whole), "{cut}");
        }
        let mut pair = bed.client();
        pair.ask(REQUEST);
        for byte in BAD {
            pair.answer(&[*byte]);
        }
        let (_, response) = only(&mut bed.watch, &pair);
        assert_eq!(response.as_deref(), Some(&BAD[..12]));
        assert_eq!(bed.watch.counter("kernel_clients_raw"), 0);
        // Begun, but no response of HTTP/1, and not closed without a word.
        for raw in [&b"HTTP/1.1 5"[..], b"HTML", b"H"] {
            let mut pair = bed.client();
            pair.ask(REQUEST);
            pair.answer(raw);
            let ends = pair.ends();
            drop(pair);
            bed.assert_none(ends);
        }
        assert_eq!(bed.watch.counter("kernel_clients_raw"), 3);
    });
}

#[test]
fn an_interim_response_is_no_answer() {
    alone(|| {
        let mut bed = Bed::new();
        let early: &[u8] = b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n";
        for interim in [CONTINUE, early] {
            let mut pair = bed.client();
            pair.ask(REQUEST);
            pair.answer(interim);
            pair.ask(b"GET is a word in this body");
            pair.answer(GOOD);
            pair.ask(REQUEST);
            pair.answer(&interim[..14]);
            pair.answer(&interim[14..]);
            pair.answer(BAD);
            let (request, response) = only(&mut bed.watch, &pair);
            assert_eq!(
                (request.as_slice(), response.as_deref()),
                (REQUEST, Some(BAD))
            );
        }
        // Both in one segment.
        let mut pair = bed.client();
        pair.ask(REQUEST);
        pair.answer(&[CONTINUE, BAD].concat());
        let (_, response) = only(&mut bed.watch, &pair);
        assert_eq!(response.as_deref(), Some(BAD));
        // The answer is hidden behind one of another length. The next one belongs to the next request.
        let mut pair = bed.client();
        pair.ask(REQUEST);
        pair.answer(&[early, GOOD].concat());
        let next = b"GET /next HTTP/1.1\r\nHost: h\r\n\r\n";
        pair.ask(next);
        pair.answer(BAD);
        assert_eq!(only(&mut bed.watch, &pair).0, next);
        // None behind it: the gateway closed without an answer.
        let mut pair = bed.client();
        pair.ask(REQUEST);
        pair.answer(CONTINUE);
        pair.accepted.shutdown(Shutdown::Both).unwrap();
        assert_eq!(only(&mut bed.watch, &pair).1, None);
    });
}

#[test]
fn a_tunnel_has_no_answers() {
    alone(|| {
        let mut bed = Bed::new();
        let connect: &[u8] = b"CONNECT a:443 HTTP/1.1\r\nHost: a\r\n\r\n";
        let upgrade: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n";
        for (request, response) in [(REQUEST, upgrade), (connect, GOOD)] {
            let mut quiet = bed.client();
            quiet.ask(request);
            quiet.answer(response);
            let ends = quiet.ends();
            quiet.accepted.shutdown(Shutdown::Both).unwrap();
            bed.assert_none(ends);
            let mut busy = bed.client();
            busy.ask(request);
            busy.answer(response);
            busy.ask(REQUEST);
            busy.answer(BAD);
            bed.assert_silent(&busy);
        }
        assert_eq!(opaque(&bed.watch), 0);
        assert_eq!(bed.watch.counter("kernel_clients_raw"), 0);
    });
}

#[test]
fn pipelined_requests_are_counted_as_unseen() {
    alone(|| {
        let mut bed = Bed::new();
        let mut first = bed.client();
        first.ask(REQUEST);
        first.ask(b"GET /second HTTP/1.1\r\nHost: h\r\n\r\n");
        first.answer(BAD);
        first.answer(GOOD);
        assert_eq!(only(&mut bed.watch, &first).0, REQUEST);
        let mut second = bed.client();
        second.ask(REQUEST);
        second.ask(REQUEST);
        second.answer(GOOD);
        second.answer(BAD);
        second.ask(REQUEST);
        second.answer(BAD);
        bed.assert_silent(&second);
        assert_eq!(opaque(&bed.watch), 2);
    });
}

#[test]
fn a_request_may_come_in_pieces() {
    alone(|| {
        let mut bed = Bed::new();
        for pieces in [2, 7, REQUEST.len()] {
            let mut pair = bed.client();
            for piece in REQUEST.chunks(REQUEST.len().div_ceil(pieces)) {
                pair.ask(piece);
            }
            pair.answer(BAD);
            assert_eq!(only(&mut bed.watch, &pair).0, REQUEST, "{pieces}");
        }
        assert_eq!(opaque(&bed.watch), 0);
    });
}

#[test]
fn the_rest_of_a_body_is_no_request() {
    alone(|| {
        let mut bed = Bed::new();
        for rest in [
            &b"THE QUICK BROWN FOX"[..],
            b"ACGTACGTACGTACGT",
            b"END",
            b"GET",
        ] {
            let mut pair = bed.client();
            pair.ask(b"POST /long HTTP/1.1\r\nHost: h\r\nContent-Length: 99\r\n\r\n");
            pair.answer(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n");
            pair.ask(rest);
            let ends = pair.ends();
            pair.accepted.shutdown(Shutdown::Both).unwrap();
            bed.assert_none(ends);
        }
    });
}

#[test]
fn a_client_that_closed_its_side_gets_its_answer() {
    alone(|| {
        let mut bed = Bed::new();
        let mut pair = bed.client();
        pair.ask(REQUEST);
        pair.client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(pair.accepted.read(&mut [0]).unwrap(), 0);
        pair.answer(BAD);
        let (request, response) = only(&mut bed.watch, &pair);
        assert_eq!(
            (request.as_slice(), response.as_deref()),
            (REQUEST, Some(BAD))
        );
    });
}

#[test]
fn clients_over_ipv6_are_watched() {
    alone(|| {
        let mut bed = Bed::at("[::1]:0");
        let mut pair = bed.client();
        pair.ask(REQUEST);
        pair.answer(GOOD);
        pair.ask(REQUEST);
        pair.answer(BAD);
        let (request, response) = only(&mut bed.watch, &pair);
        assert_eq!(
            (request.as_slice(), response.as_deref()),
            (REQUEST, Some(BAD))
        );
    });
}

#[test]
fn a_reset_instead_of_an_answer_counts_as_a_close() {
    alone(|| {
        let mut bed = Bed::new();
        let mut pair = bed.client();
        pair.client.write_all(REQUEST).unwrap();
        // Closing with bytes unread resets.
        pair.accepted.read_exact(&mut [0; 3]).unwrap();
        let ends = pair.ends();
        drop(pair.accepted);
        bed.watch
            .until("close", |watch| !answers(watch, ends).is_empty());
        let found = answers(&bed.watch, ends);
        assert!(
            matches!(found.as_slice(), [Seen::Answer { response: None, request, .. }] if request == REQUEST),
            "{found:?}"
        );
    });
}

/// What an exchange had on the wire, as a raw socket sees it.
struct Wire(rustix::fd::OwnedFd);

impl Wire {
    fn tap() -> Self {
        let raw = SocketType::RAW;
        let tap = socket_with(
            AddressFamily::INET,
            raw,
            SocketFlags::CLOEXEC,
            Some(ipproto::TCP),
        );
        let tap = tap.unwrap();
        set_socket_timeout(&tap, Timeout::Recv, Some(DEADLINE)).unwrap();
        Self(tap)
    }

    /// Sequence and acknowledgement number of the segment with this payload.
    fn numbers(&self, from: SocketAddr, payload: &[u8]) -> (u32, u32) {
        let mut room = vec![0; 1 << 16];
        loop {
            let (len, _) = recv(&self.0, room.as_mut_slice(), RecvFlags::empty()).unwrap();
            let segment = &room[20..len];
            if segment[..2] == from.port().to_be_bytes() && segment.ends_with(payload) {
                let word = |at: usize| u32::from_be_bytes(segment[at..at + 4].try_into().unwrap());
                return (word(4), word(8));
            }
        }
    }
}

#[test]
fn what_comes_again_is_no_request() {
    alone(|| {
        let mut bed = Bed::new();
        let tap = Wire::tap();
        let mut pair = bed.client();
        let (gateway, client) = pair.ends();
        pair.ask(REQUEST);
        let (seq, ack) = tap.numbers(client, REQUEST);
        pair.answer(GOOD);
        let raw = SocketType::RAW;
        let raw = socket_with(
            AddressFamily::INET,
            raw,
            SocketFlags::CLOEXEC,
            Some(ipproto::RAW),
        );
        let raw = raw.unwrap();
        let flags = TcpFlags::ACK.union(TcpFlags::PSH);
        let last = seq + u32::try_from(REQUEST.len()).unwrap() - 1;
        // The request once more, and a byte to see whether the gateway is there.
        for (seq, payload) in [(seq, REQUEST), (last, &b"\n"[..]), (last, b"G")] {
            let again = packet(client, gateway, flags, (seq, ack), payload);
            sendto(&raw, &again, SendFlags::empty(), &gateway).unwrap();
        }
        let ends = pair.ends();
        // The gateway has had enough of an idle client.
        pair.accepted.shutdown(Shutdown::Both).unwrap();
        bed.assert_none(ends);
    });
}

#[test]
fn a_hop_from_the_port_of_a_listener_is_seen() {
    alone(|| {
        let mut bed = Bed::new();
        let port = bed.listener.local_addr().unwrap().port();
        let upstream = TcpListener::bind("127.0.0.1:0").unwrap();
        let socket = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
        let beside: SocketAddr = format!("127.0.0.2:{port}").parse().unwrap();
        bind(&socket, &beside).unwrap();
        connect(&socket, &upstream.local_addr().unwrap()).unwrap();
        let mut hop = TcpStream::from(socket);
        hop.write_all(REQUEST).unwrap();
        let (mut accepted, _) = upstream.accept().unwrap();
        accepted.read_exact(&mut vec![0; REQUEST.len()]).unwrap();
        accepted.write_all(BAD).unwrap();
        for (towards, bytes) in [
            (Direction::ToUpstream, REQUEST),
            (Direction::FromUpstream, BAD),
        ] {
            bed.watch.until("segment", |watch| {
                watch.has(|seen| {
                    matches!(seen, Seen::Segment { local, direction, payload, .. }
                        if *local == beside && *direction == towards && payload == bytes)
                })
            });
        }
    });
}
