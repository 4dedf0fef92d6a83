//! What captures do to a stream: order, repeats, gaps, links, and messages that share it.

use super::Golden;
use super::scenario::{From, GET, Link, OK, Scenario, scenario};

const ACK: u8 = 0x10;
const CUT: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nhello";
const NO: &[u8] = b"HTTP/1.1 500 No\r\nContent-Length: 2\r\n\r\nno";

impl Scenario {
    /// A piece of the upstream's next bytes; the sequence number stays where it is.
    fn piece(&mut self, bytes: &[u8], from: usize, to: usize) -> &mut Self {
        let seq = self.upstream_seq.wrapping_add(u32::try_from(from).unwrap());
        self.segment(From::Upstream, ACK, seq, &bytes[from..to])
    }

    /// All pieces of these bytes were sent.
    fn sent(&mut self, bytes: &[u8]) -> &mut Self {
        let length = u32::try_from(bytes.len()).unwrap();
        self.upstream_seq = self.upstream_seq.wrapping_add(length);
        self.gateway_acks()
    }
}

pub(crate) fn goldens() -> Vec<Golden> {
    [reassembly(), gaps(), links(), messages()].concat()
}

fn reassembly() -> Vec<Golden> {
    vec![
        (
            "stream/out_of_order",
            "The segments of a 500 come in reverse, behind its FIN.",
            scenario(|hop| {
                hop.open().request();
                let fin = hop.upstream_seq + 40;
                hop.segment(From::Upstream, 0x11, fin, &[]);
                hop.piece(NO, 30, 40).piece(NO, 15, 30).piece(NO, 0, 15);
                hop.sent(NO).gateway_fin();
            }),
        ),
        (
            "stream/one_byte_segments",
            "Each byte in a segment of its own.",
            scenario(|hop| {
                hop.open().request();
                for at in 0..NO.len() {
                    hop.piece(NO, at, at + 1);
                }
                hop.sent(NO).close();
            }),
        ),
        (
            "stream/retransmission",
            "Request and response are each seen twice.",
            scenario(|hop| {
                hop.open().send(GET).ms(200);
                let seq = hop.gateway_seq - 31;
                hop.segment(From::Gateway, ACK, seq, GET).upstream_acks();
                hop.piece(NO, 0, 40)
                    .ms(200)
                    .piece(NO, 0, 40)
                    .sent(NO)
                    .close();
            }),
        ),
        (
            "stream/overlap",
            "A later copy of bytes that were delivered says something else: the first copy counts.",
            scenario(|hop| {
                hop.open().request();
                let other = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nno";
                hop.piece(NO, 0, 20).piece(other, 5, 40).sent(NO).close();
            }),
        ),
        (
            "stream/sequence_wrap",
            "Both sequence numbers pass 2^32 inside the exchange.",
            scenario(|hop| {
                hop.same_port(u32::MAX - 10, u32::MAX - 10);
                hop.open().request().piece(NO, 0, 20).piece(NO, 20, 40);
                hop.sent(NO).close();
            }),
        ),
        (
            "stream/port_reuse",
            "The same port is used again with other sequence numbers: two connections, one failure.",
            scenario(|hop| {
                hop.open().request().reply(OK).close().ms(100);
                hop.same_port(700_000, 900_000)
                    .open()
                    .request()
                    .reply(NO)
                    .close();
            }),
        ),
    ]
}

fn gaps() -> Vec<Golden> {
    vec![
        (
            "stream/snap_length",
            "Bodies are captured short: lengths tell where they end.",
            scenario(|hop| {
                hop.snap = 54 + 60;
                let body = [
                    &b"HTTP/1.1 200 OK\r\nContent-Length: 200\r\n\r\n"[..],
                    &[b'x'; 200],
                ];
                hop.open().request().reply(&body.concat());
                hop.request().reply(NO).close();
            }),
        ),
        (
            "stream/snap_length_in_the_head",
            "The head of the response is captured short: not judged.",
            scenario(|hop| {
                hop.snap = 54 + 20;
                hop.open()
                    .send(b"GET / HTTP/1.1\r\n\r\n")
                    .upstream_acks()
                    .reply(NO)
                    .close();
            }),
        ),
        (
            "stream/mid_stream",
            "The capture begins inside a connection, between exchanges.",
            scenario(|hop| {
                hop.joined().request().reply(OK).request().ms(30).close();
            }),
        ),
        (
            "stream/mid_stream_in_a_response",
            "The capture begins inside a response: only what follows is judged.",
            scenario(|hop| {
                hop.joined()
                    .reply(b"the rest of a body")
                    .request()
                    .reply(NO)
                    .close();
            }),
        ),
        (
            "stream/missed_segment_in_the_body",
            "40 bytes of a body were missed; that it is cut short is known all the same, less firmly.",
            scenario(|hop| {
                hop.open().request();
                hop.reply(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n");
                hop.reply_unseen(40).reply(b"ten bytes!").close();
            }),
        ),
        (
            "stream/missed_head",
            "The head of the response was missed: not judged.",
            scenario(|hop| {
                hop.open()
                    .request()
                    .reply_unseen(300)
                    .reply(b"the rest")
                    .close();
            }),
        ),
        (
            "stream/missed_handshake_answer",
            "The SYN-ACK was missed: the connection was established all the same.",
            scenario(|hop| {
                hop.syn().joined();
                hop.gateway_seq += 1;
                hop.upstream_seq += 1;
                hop.joined().request().reply(OK).close();
            }),
        ),
    ]
}

fn links() -> Vec<Golden> {
    vec![
        (
            "stream/any_duplicates",
            "The device any shows each packet twice.",
            scenario(|hop| {
                hop.link = Link::Any;
                hop.open().request().reply(CUT).close();
            }),
        ),
        (
            "stream/any_duplicate_syn",
            "The device any shows a single SYN twice: it was not sent again.",
            scenario(|hop| {
                hop.link = Link::Any;
                hop.syn();
            }),
        ),
        (
            "stream/any_duplicate_request",
            "The device any shows a request twice, and the upstream is slow: not unacknowledged.",
            scenario(|hop| {
                hop.link = Link::Any;
                hop.open().request().ms(2000).gateway_fin();
            }),
        ),
        (
            "stream/vlan",
            "One VLAN tag.",
            scenario(|hop| {
                hop.link = Link::Tagged(&[7]);
                hop.open().request().reply(CUT).close();
            }),
        ),
        (
            "stream/qinq",
            "Two VLAN tags.",
            scenario(|hop| {
                hop.link = Link::Tagged(&[7, 8]);
                hop.open().request().reply(CUT).close();
            }),
        ),
        (
            "stream/ipv6",
            "IPv6.",
            scenario(|hop| {
                hop.ipv6 = true;
                hop.open().request().reply(CUT).close();
            }),
        ),
    ]
}

fn messages() -> Vec<Golden> {
    vec![
        (
            "stream/pipelined",
            "Two requests at once, one response, then the upstream closes: the second failed.",
            scenario(|hop| {
                hop.open()
                    .send(GET)
                    .send(GET)
                    .upstream_acks()
                    .reply(OK)
                    .close();
            }),
        ),
        (
            "stream/pipelined_both_answered",
            "Two requests at once, two responses in one segment, the second an error.",
            scenario(|hop| {
                hop.open().send(GET).send(GET).upstream_acks();
                hop.reply(&[OK, NO].concat()).close();
            }),
        ),
        (
            "stream/interim",
            "Two interim responses come before the final one.",
            scenario(|hop| {
                hop.open().request();
                hop.reply(b"HTTP/1.1 100 Continue\r\n\r\n");
                hop.reply(b"HTTP/1.1 103 Hints\r\nLink: a\r\n\r\n")
                    .reply(NO)
                    .close();
            }),
        ),
        (
            "stream/head",
            "A response to HEAD has no body, whatever its Content-Length.",
            scenario(|hop| {
                hop.open()
                    .send(b"HEAD / HTTP/1.1\r\nHost: h\r\n\r\n")
                    .upstream_acks();
                hop.reply(b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n")
                    .close();
            }),
        ),
        (
            "stream/upgrade",
            "Behind a 101 the bytes are another protocol's.",
            scenario(|hop| {
                hop.open();
                hop.send(b"GET /ws HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\n\r\n");
                hop.upstream_acks();
                hop.reply(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n");
                hop.reply(b"\x81\x05hello")
                    .send(b"\x88\0")
                    .upstream_acks()
                    .upstream_rst();
            }),
        ),
        (
            "stream/early_response",
            "A response before the request is complete ends the exchange.",
            scenario(|hop| {
                hop.open();
                hop.send(b"POST /a HTTP/1.1\r\nContent-Length: 5000\r\n\r\nabc")
                    .upstream_acks();
                hop.reply(b"HTTP/1.1 413 Too large\r\nContent-Length: 0\r\n\r\n")
                    .upstream_rst();
            }),
        ),
        (
            "stream/unsolicited",
            "A second response that nobody asked for.",
            scenario(|hop| {
                hop.open().request().reply(OK).ms(100);
                hop.reply(b"HTTP/1.1 408 Timeout\r\nContent-Length: 0\r\n\r\n")
                    .close();
            }),
        ),
        (
            "stream/another_protocol",
            "A gateway that speaks TLS is judged by TCP alone.",
            scenario(|hop| {
                hop.open().send(b"\x16\x03\x01\x02\0\x01").upstream_acks();
                hop.ms(2000).upstream_rst();
            }),
        ),
    ]
}
