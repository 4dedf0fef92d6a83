//! Closes, resets and silence on established connections, both sides of each look-alike pair.

use super::Golden;
use super::scenario::{From, GET, OK, Scenario, scenario};

pub(crate) fn goldens() -> Vec<Golden> {
    [
        closes(),
        resets_of_others(),
        unread(),
        unacknowledged(),
        sizes(),
        windows(),
    ]
    .concat()
}

/// Payload of a full-size segment.
const FULL: usize = 1448;
const PART: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\nhello";
const ACK: u8 = 0x10;

/// A request of so many bytes.
fn post(length: usize) -> Vec<u8> {
    let head = |body| format!("POST /a HTTP/1.1\r\nContent-Length: {body:05}\r\n\r\n");
    let mut bytes = head(length - head(0).len()).into_bytes();
    bytes.resize(length, b'x');
    bytes
}

impl Scenario {
    /// The gateway's kernel sends again what was sent from `seq` on.
    fn send_again(&mut self, seq: u32, bytes: &[u8]) -> &mut Self {
        for pause in [200, 400, 800, 1600] {
            self.ms(pause).segment(From::Gateway, ACK, seq, bytes);
        }
        self
    }

    /// The last bytes sent, again and again until the gateway gives up.
    fn unacknowledged(&mut self, bytes: &[u8]) -> &mut Self {
        let length = u32::try_from(bytes.len()).unwrap();
        let seq = self.gateway_seq.wrapping_sub(length);
        self.send_again(seq, bytes).ms(500).gateway_fin()
    }

    /// Bytes of the upstream that lie ahead of its next one; nothing acknowledges them.
    fn ahead(&mut self, by: usize, bytes: &[u8]) -> &mut Self {
        let by = u32::try_from(by).unwrap();
        let seq = self.upstream_seq.wrapping_add(by);
        self.segment(From::Upstream, ACK, seq, bytes)
    }

    /// A connection that carried an exchange and was idle since.
    fn used(&mut self, idle_ms: u64) -> &mut Self {
        self.open().request().reply(OK).ms(idle_ms)
    }

    /// From now on the upstream's segments come from elsewhere.
    fn reroute(&mut self) -> &mut Self {
        self.upstream_ttl = 57;
        self
    }
}

fn resets_of_others() -> Vec<Golden> {
    vec![
        (
            "tcp/reset_injected_by_its_ttl",
            "The request is acknowledged, then comes a reset that passed other routers.",
            scenario(|hop| {
                hop.open().request().ms(30).reroute().upstream_rst();
            }),
        ),
        (
            "tcp/reset_injected_inside_the_body",
            "Such a reset inside the response.",
            scenario(|hop| {
                hop.open().request().reply(PART).reroute().upstream_rst();
            }),
        ),
        (
            "tcp/reset_injected_and_the_upstream_answers",
            "The reset looks like the upstream's, but that goes on and answers; the gateway's kernel refuses.",
            scenario(|hop| {
                hop.open().send(GET).upstream_rst();
                hop.ms(5).upstream_acks().gateway_rst();
                hop.ms(20).answer(OK).gateway_rst();
            }),
        ),
        (
            "tcp/reset_behind_a_handshake_alone",
            "Another time to live than that of the SYN-ACK, which is all there was before.",
            scenario(|hop| {
                hop.open().send(GET).reroute().upstream_rst();
            }),
        ),
        (
            "tcp/reset_sequence_off",
            "A reset 3000 bytes ahead of the upstream: bytes lost on the way, or somebody guessed.",
            scenario(|hop| {
                hop.open().request().ms(30);
                let seq = hop.upstream_seq + 3000;
                hop.segment(From::Upstream, 0x04, seq, &[]);
            }),
        ),
        (
            "tcp/reset_that_nobody_took",
            "A reset out of the window; the gateway's kernel drops it, and the exchange goes on.",
            scenario(|hop| {
                hop.open().request();
                let seq = hop.upstream_seq + 90_000;
                hop.segment(From::Upstream, 0x04, seq, &[]);
                hop.ms(5).reply(OK).ms(100).request().reply(OK).close();
            }),
        ),
        (
            "tcp/reset_behind_the_answer_from_elsewhere",
            "An idle connection is reset by a device: no request was waiting.",
            scenario(|hop| {
                hop.used(90_000).reroute().upstream_rst();
            }),
        ),
        (
            "tcp/idle_state_lost_and_reset",
            "After two minutes a device knows the connection no more and resets it.",
            scenario(|hop| {
                hop.used(120_000).send(GET).reroute().upstream_rst();
            }),
        ),
        (
            "tcp/stale_reuse_after_long_idleness",
            "After two minutes the upstream itself resets: it had closed.",
            scenario(|hop| {
                hop.used(120_000).send(GET).upstream_rst();
            }),
        ),
    ]
}

fn unread() -> Vec<Golden> {
    let request = post(4000);
    let send = |hop: &mut Scenario| {
        hop.open().send(&request[..1000]).upstream_acks();
        hop.send(&request[1000..2500]).send(&request[2500..]);
    };
    vec![
        (
            "tcp/reset_unread_request",
            "The upstream begins to answer and closes with most of the request unread.",
            scenario(|hop| {
                send(hop);
                hop.reply(b"HTTP/1.1 413 Too large\r\nContent-Length: 9\r\n\r\nToo")
                    .upstream_rst();
            }),
        ),
        (
            "tcp/reset_unread_request_behind_the_answer",
            "The same behind a complete answer: the gateway has its status.",
            scenario(|hop| {
                send(hop);
                hop.reply(b"HTTP/1.1 413 Too large\r\nContent-Length: 0\r\n\r\n")
                    .upstream_rst();
            }),
        ),
        (
            "tcp/reset_with_the_request_acknowledged",
            "A reset inside the answer to a request that was all acknowledged.",
            scenario(|hop| {
                send(hop);
                hop.upstream_acks()
                    .reply(b"HTTP/1.1 413 Too large\r\nContent-Length: 9\r\n\r\nToo")
                    .upstream_rst();
            }),
        ),
        (
            "tcp/early_response_pooled",
            "On a pooled connection, an answer and a reset come while the request is being sent.",
            scenario(|hop| {
                let request = post(9000);
                hop.used(500).send(&request[..1000]).upstream_acks();
                hop.send(&request[1000..2400]);
                hop.reply(b"HTTP/1.1 413 Too large\r\nContent-Length: 0\r\n\r\n");
                hop.send(&request[2400..3800]).upstream_rst();
            }),
        ),
    ]
}

fn unacknowledged() -> Vec<Golden> {
    vec![
        (
            "tcp/idle_state_lost",
            "After two minutes nothing acknowledges the request, while a new connection works.",
            scenario(|hop| {
                hop.used(120_000).send(GET);
                let seq = hop.gateway_seq - 31;
                hop.send_again(seq, GET);
                hop.aside(|hop| {
                    hop.open().request().reply(OK).close();
                });
                hop.ms(500).gateway_fin();
            }),
        ),
        (
            "tcp/idle_state_lost_or_a_dead_host",
            "The same with no other connection to compare with.",
            scenario(|hop| {
                hop.used(120_000).send(GET).unacknowledged(GET);
            }),
        ),
        (
            "tcp/request_unacknowledged_reused",
            "Idle for five seconds only: no device forgets so soon.",
            scenario(|hop| {
                hop.used(5000).send(GET).unacknowledged(GET);
            }),
        ),
        (
            "tcp/idle_and_well",
            "Idle for two minutes, and the next exchange is as good as the first.",
            scenario(|hop| {
                hop.used(120_000).request().reply(OK).close();
            }),
        ),
    ]
}

fn sizes() -> Vec<Golden> {
    let request = post(2 * FULL + 300);
    let send = |hop: &mut Scenario| {
        let seq = hop.open().gateway_seq;
        hop.send(&request[..FULL]);
        hop.send(&request[FULL..2 * FULL])
            .send(&request[2 * FULL..]);
        seq
    };
    vec![
        (
            "tcp/mtu_blackhole_request",
            "Full-size segments of the request vanish, the small last one arrives.",
            scenario(|hop| {
                let seq = send(hop);
                hop.ahead(0, &[]).send_again(seq, &request[..FULL]);
                hop.ms(500).gateway_fin();
            }),
        ),
        (
            "tcp/large_request_unacknowledged",
            "Nothing of such a request arrives: its size need not be why.",
            scenario(|hop| {
                let seq = send(hop);
                hop.send_again(seq, &request[..FULL]).ms(500).gateway_fin();
            }),
        ),
        (
            "tcp/full_size_passed_before",
            "Full-size segments arrived until nothing did any more: not their size.",
            scenario(|hop| {
                hop.open().send(&request[..FULL]).upstream_acks();
                hop.send(&request[FULL..2 * FULL]);
                hop.unacknowledged(&request[FULL..2 * FULL]);
            }),
        ),
        (
            "tcp/full_size_lost_once",
            "A full-size segment is lost once and sent again.",
            scenario(|hop| {
                let seq = send(hop);
                hop.ahead(0, &[]).ms(200);
                hop.segment(From::Gateway, ACK, seq, &request[..FULL]);
                hop.upstream_acks().reply(OK).close();
            }),
        ),
        (
            "tcp/mtu_blackhole_response",
            "Of the response only the small last segment arrives.",
            scenario(|hop| {
                hop.open()
                    .request()
                    .ahead(2 * FULL, b"the tail")
                    .gateway_acks();
                hop.ms(2000).gateway_fin();
            }),
        ),
        (
            "tcp/mtu_blackhole_body",
            "The head arrives and the small last segment, the full-size one between does not.",
            scenario(|hop| {
                hop.open().request().reply(PART);
                hop.ahead(FULL, b"the tail").gateway_acks();
                hop.ms(2000).gateway_fin();
            }),
        ),
        (
            "tcp/small_segment_missing",
            "What is missing is small: why, nothing tells.",
            scenario(|hop| {
                hop.open().request().reply(PART);
                hop.ahead(100, b"the tail").gateway_acks();
                hop.ms(2000).gateway_fin();
            }),
        ),
    ]
}

fn windows() -> Vec<Golden> {
    let request = post(6000);
    let send = |hop: &mut Scenario| {
        hop.open().send(&request[..1000]).upstream_acks();
        for part in request[1000..].chunks(1000) {
            hop.send(part);
        }
        hop.upstream_window = 40;
        hop.upstream_acks();
    };
    vec![
        (
            "tcp/not_reading",
            "The request is acknowledged, and the window that it took never opens again.",
            scenario(|hop| {
                send(hop);
                hop.ms(2000).gateway_fin();
            }),
        ),
        (
            "tcp/slow_first_byte_window_opened",
            "The window opens again: the request was read.",
            scenario(|hop| {
                send(hop);
                hop.upstream_window = 480;
                hop.upstream_acks().ms(2000).gateway_fin();
            }),
        ),
        (
            "tcp/large_request_answered",
            "A request that takes most of the window is answered.",
            scenario(|hop| {
                send(hop);
                hop.ms(100).reply(OK).close();
            }),
        ),
    ]
}

fn closes() -> Vec<Golden> {
    vec![
        (
            "tcp/closed_on_accept_before_the_request",
            "A fresh connection is closed at once, the request comes too late and draws a reset.",
            scenario(|hop| {
                hop.open().upstream_fin().send(GET).upstream_rst();
            }),
        ),
        (
            "tcp/closed_on_accept_crossing_the_request",
            "The FIN crosses the request and acknowledges none of it.",
            scenario(|hop| {
                hop.open().send(GET).upstream_fin().upstream_rst();
            }),
        ),
        (
            "tcp/closed_on_accept_without_a_request",
            "Closed at once, and the gateway closes without having sent anything.",
            scenario(|hop| {
                hop.open().close();
            }),
        ),
        (
            "tcp/unused_connection_closed_later",
            "An unused connection is closed after a minute: it was not needed.",
            scenario(|hop| {
                hop.open().ms(60_000).close();
            }),
        ),
        (
            "tcp/closed_no_response",
            "The request is acknowledged, then the upstream closes without a byte.",
            scenario(|hop| {
                hop.open().request().ms(30).close();
            }),
        ),
        (
            "tcp/closed_no_response_reused",
            "The same on a connection that carried an exchange before: acknowledged, so not stale.",
            scenario(|hop| {
                hop.open()
                    .request()
                    .reply(OK)
                    .ms(100)
                    .request()
                    .ms(30)
                    .close();
            }),
        ),
        (
            "tcp/reset_no_response",
            "The request is acknowledged, then comes a reset.",
            scenario(|hop| {
                hop.open().request().ms(30).upstream_rst();
            }),
        ),
        (
            "tcp/reset_at_once_reused",
            "A reset right behind the acknowledged request on a reused connection leaves two causes.",
            scenario(|hop| {
                hop.open()
                    .request()
                    .reply(OK)
                    .ms(5000)
                    .request()
                    .upstream_rst();
            }),
        ),
        (
            "tcp/stale_reuse_fin_before_the_request",
            "The upstream closes the idle connection, and the gateway uses it all the same.",
            scenario(|hop| {
                hop.open().request().reply(OK).ms(5000).upstream_fin();
                hop.send(GET).upstream_rst();
            }),
        ),
        (
            "tcp/stale_reuse_fin_crosses_the_request",
            "The upstream's FIN and the next request cross.",
            scenario(|hop| {
                hop.open().request().reply(OK).ms(5000).send(GET);
                hop.upstream_fin().upstream_rst();
            }),
        ),
        (
            "tcp/stale_reuse_only_the_reset",
            "A request on an idle connection draws a reset that acknowledges nothing.",
            scenario(|hop| {
                hop.open()
                    .request()
                    .reply(OK)
                    .ms(5000)
                    .send(GET)
                    .upstream_rst();
            }),
        ),
        (
            "tcp/idle_connection_closed",
            "A pool that closes an idle connection is healthy.",
            scenario(|hop| {
                hop.open().request().reply(OK).ms(60_000).close();
            }),
        ),
        (
            "tcp/idle_connection_reset",
            "So is one that resets it.",
            scenario(|hop| {
                hop.open().request().reply(OK).ms(60_000).upstream_rst();
            }),
        ),
        (
            "tcp/gateway_resets_behind_the_response",
            "A gateway that has its response and closes with unread bytes is healthy.",
            scenario(|hop| {
                hop.open()
                    .request()
                    .reply(OK)
                    .reply(b"unread")
                    .gateway_rst();
            }),
        ),
        (
            "tcp/slow_first_byte",
            "The request is acknowledged, then nothing for two seconds, then the gateway closes.",
            scenario(|hop| {
                hop.open().request().ms(2000).gateway_fin();
            }),
        ),
        (
            "tcp/request_unacknowledged",
            "The request is sent again and again, nothing acknowledges it, the gateway closes.",
            scenario(|hop| {
                hop.open().send(GET);
                for pause in [200, 400, 800] {
                    hop.ms(pause);
                    let seq = hop.gateway_seq - u32::try_from(GET.len()).unwrap();
                    hop.segment(From::Gateway, 0x10, seq, GET);
                }
                hop.ms(1000).gateway_fin();
            }),
        ),
        (
            "tcp/zero_window",
            "The upstream's window closes inside the request and stays closed.",
            scenario(|hop| {
                hop.open();
                hop.send(b"POST /a HTTP/1.1\r\nContent-Length: 9000\r\n\r\nfirst");
                hop.upstream_window = 0;
                hop.upstream_acks().send(b"x").ms(2000).gateway_fin();
            }),
        ),
        (
            "tcp/gateway_leaves_at_once",
            "The gateway closes 20 ms behind the request: its own client left, most likely.",
            scenario(|hop| {
                hop.open().request().ms(20).gateway_fin();
            }),
        ),
    ]
}
