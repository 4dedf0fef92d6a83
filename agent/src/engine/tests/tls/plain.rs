//! What the gateway's TLS library shows of the inside.

use super::wire::{ALERT, TICKET, data, finished_13, hello, server_13};
use crate::engine::tests::sim::{GET, OK, Sim};
use crate::model::{Cause, Direction, EvidenceSource, HopId, Input, Plaintext, Proof};

/// What the protection of TLS 1.3 adds to a record.
const ADDED: usize = 17;

/// Offsets of both streams inside.
#[derive(Default)]
struct Inside {
    sent: u64,
    received: u64,
}

impl Inside {
    fn tell(&mut self, sim: &mut Sim, direction: Direction, payload: &[u8], len: usize) {
        let offset = match direction {
            Direction::ToUpstream => &mut self.sent,
            Direction::FromUpstream => &mut self.received,
        };
        let text = Plaintext {
            direction,
            offset: *offset,
            payload,
            len: u32::try_from(len).unwrap(),
        };
        *offset += len as u64;
        sim.input(Input::Plaintext {
            hop: HopId(7),
            text,
        });
    }

    fn write(&mut self, sim: &mut Sim, bytes: &[u8]) {
        sim.send(&data(bytes.len() + ADDED)).ack();
        self.tell(sim, Direction::ToUpstream, bytes, bytes.len());
    }

    fn read(&mut self, sim: &mut Sim, bytes: &[u8]) {
        sim.reply(&data(bytes.len() + ADDED));
        self.tell(sim, Direction::FromUpstream, bytes, bytes.len());
        self.dry(sim);
    }

    /// A call whose text is not known.
    fn miss(&mut self, sim: &mut Sim, direction: Direction) {
        match direction {
            Direction::ToUpstream => self.sent += Plaintext::UNKNOWN,
            Direction::FromUpstream => self.received += Plaintext::UNKNOWN,
        }
        self.tell(sim, direction, &[], 0);
    }

    /// The gateway asks for more, and there is none.
    fn dry(&mut self, sim: &mut Sim) {
        self.tell(sim, Direction::FromUpstream, &[], 0);
    }
}

/// A gateway that finished a handshake and got its tickets.
fn begin() -> (Sim, Inside) {
    let mut sim = Sim::live("nginx");
    sim.hello(&hello()).reply(&server_13());
    sim.send(&finished_13()).ack();
    sim.reply(&data(TICKET)).reply(&data(TICKET));
    (sim, Inside::default())
}

#[test]
fn healthy_exchanges_are_counted_by_their_status() {
    let (mut sim, mut inside) = begin();
    for _ in 0..3 {
        inside.write(&mut sim, GET);
        inside.read(&mut sim, OK);
    }
    sim.reply(&data(ALERT)).upstream_fin();
    inside.dry(&mut sim);
    sim.gateway_fin().ms(100).expect_none();
    let stats = sim.engine.stats();
    assert_eq!((stats.exchanges, stats.plaintexts), (3, 10));
    let tallies = sim.engine.upstreams();
    let tally = tallies.values().next().unwrap();
    assert_eq!(tally.traffic.statuses, [0, 3, 0, 0, 0]);
}

#[test]
fn a_broken_rule_is_named_with_its_bytes() {
    let (mut sim, mut inside) = begin();
    inside.write(&mut sim, GET);
    inside.read(&mut sim, b"HTTP/1.1 200 OK\r\nX-Cache : miss\r\n\r\n");
    sim.ms(600);
    let event = sim.expect(Cause::Http1HeaderSyntax, Proof::Proven);
    let exchange = event.exchange.unwrap();
    assert_eq!(exchange.path.as_deref(), Some("/a"));
    assert_eq!(exchange.status, Some(200));
    assert_eq!(event.evidence[0].source, EvidenceSource::TlsLibrary);
    assert_eq!(event.tls.unwrap().source, EvidenceSource::TlsLibrary);
}

#[test]
fn no_response_behind_the_first_request_is_not_taken_for_a_ticket() {
    let (mut sim, mut inside) = begin();
    inside.write(&mut sim, GET);
    sim.reply(&data(TICKET)).upstream_fin();
    inside.dry(&mut sim);
    sim.gateway_fin().ms(100);
    sim.expect(Cause::TcpClosedNoResponse, Proof::Proven);
}

#[test]
fn the_word_of_a_write_may_come_behind_its_answer() {
    let (mut sim, mut inside) = begin();
    sim.send(&data(GET.len() + ADDED)).ack();
    sim.reply(&data(OK.len() + ADDED));
    inside.tell(&mut sim, Direction::ToUpstream, GET, GET.len());
    inside.tell(&mut sim, Direction::FromUpstream, OK, OK.len());
    inside.dry(&mut sim);
    sim.upstream_fin().gateway_fin().ms(100).expect_none();
    assert_eq!(sim.engine.stats().exchanges, 1);
}

#[test]
fn an_answer_and_a_close_ahead_of_the_word_of_a_write_are_not_read_yet() {
    // The hop's first request, and a later one; the gateway takes its time to read.
    for before in [0, 1] {
        let (mut sim, mut inside) = begin();
        for _ in 0..before {
            inside.write(&mut sim, GET);
            inside.read(&mut sim, OK);
        }
        let began = sim.now();
        sim.send(&data(GET.len() + ADDED)).ack();
        sim.reply(&data(OK.len() + ADDED)).upstream_fin();
        let text = Plaintext {
            direction: Direction::ToUpstream,
            offset: inside.sent,
            payload: GET,
            len: u32::try_from(GET.len()).unwrap(),
        };
        let hop = HopId(7);
        sim.engine.handle(began, Input::Plaintext { hop, text });
        sim.ms(200);
        inside.tell(&mut sim, Direction::FromUpstream, OK, OK.len());
        inside.dry(&mut sim);
        sim.gateway_fin().ms(100).expect_none();
    }
}

#[test]
fn a_body_without_its_end_is_cut_where_no_close_notify_came() {
    const SHORT: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nonly this";
    let cut = |notify: bool| {
        let (mut sim, mut inside) = begin();
        inside.write(&mut sim, GET);
        inside.read(&mut sim, SHORT);
        if notify {
            sim.reply(&data(ALERT));
        }
        sim.upstream_fin();
        inside.dry(&mut sim);
        sim.gateway_fin().ms(100);
        sim
    };
    cut(true).expect(Cause::Http1BodyTruncated, Proof::Proven);
    let event = cut(false).expect(Cause::TlsTruncated, Proof::Proven);
    let texts: Vec<_> = event.evidence.iter().map(|one| &*one.what).collect();
    assert!(texts.contains(&"no_close_notify"), "{texts:?}");
}

#[test]
fn a_cut_behind_records_that_were_not_followed_leaves_two_readings() {
    const SHORT: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n";
    let (mut sim, mut inside) = begin();
    inside.write(&mut sim, GET);
    let records = [data(SHORT.len() + ADDED), data(1000 + ADDED)].concat();
    sim.reply_short(&records, 20);
    inside.tell(&mut sim, Direction::FromUpstream, SHORT, SHORT.len());
    inside.tell(&mut sim, Direction::FromUpstream, b"", 1000);
    sim.upstream_fin();
    inside.dry(&mut sim);
    let event = sim
        .gateway_fin()
        .ms(100)
        .expect(Cause::Http1BodyTruncated, Proof::Underdetermined);
    assert_eq!(event.rivals, [Cause::TlsTruncated]);
}

#[test]
fn what_the_gateway_has_not_read_is_not_missing() {
    let head = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n";
    let (mut sim, mut inside) = begin();
    inside.write(&mut sim, GET);
    inside.read(&mut sim, head);
    // The rest is there, and the upstream has closed; the gateway reads it a minute later.
    sim.reply(&data(5 + ADDED))
        .reply(&data(ALERT))
        .upstream_fin();
    sim.ms(60_000);
    inside.tell(&mut sim, Direction::FromUpstream, b"hello", 5);
    inside.dry(&mut sim);
    sim.gateway_fin().ms(100).expect_none();
    // Nor is it where it closes without having read it.
    let (mut sim, mut inside) = begin();
    inside.write(&mut sim, GET);
    inside.read(&mut sim, head);
    sim.reply(&data(5 + ADDED)).upstream_fin();
    sim.gateway_rst().ms(1000).expect_none();
    assert_eq!(sim.engine.stats().unjudged_gateway_closed, 1);
}

#[test]
fn a_body_that_a_close_ends_is_whole_once_it_is_read() {
    let (mut sim, mut inside) = begin();
    inside.write(&mut sim, GET);
    inside.read(&mut sim, b"HTTP/1.1 200 OK\r\n\r\nhel");
    sim.reply(&data(2 + ADDED))
        .reply(&data(ALERT))
        .upstream_fin();
    inside.tell(&mut sim, Direction::FromUpstream, b"lo", 2);
    assert_eq!(sim.engine.stats().exchanges, 0);
    inside.dry(&mut sim);
    assert_eq!(sim.engine.stats().exchanges, 1);
    sim.gateway_fin().ms(100).expect_none();
}

#[test]
fn a_body_that_was_not_captured_is_followed_by_its_length() {
    let (mut sim, mut inside) = begin();
    let head = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n";
    for _ in 0..2 {
        inside.write(&mut sim, GET);
        let len = head.len() + 1000;
        sim.reply(&data(len + ADDED));
        inside.tell(&mut sim, Direction::FromUpstream, head, len);
        inside.dry(&mut sim);
    }
    assert_eq!(sim.engine.stats().exchanges, 2);
    sim.upstream_fin().gateway_fin().ms(100).expect_none();
}

#[test]
fn a_read_that_was_lost_leaves_its_exchange_open() {
    let (mut sim, mut inside) = begin();
    inside.write(&mut sim, GET);
    inside.received += 30;
    inside.read(&mut sim, b"rest of a head\r\n\r\n");
    sim.upstream_fin();
    inside.dry(&mut sim);
    sim.gateway_fin().ms(1000).expect_none();
}

#[test]
fn anything_else_than_http_stays_with_its_records() {
    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    for (bytes, missed) in [(PREFACE, 0), (&b"\x16\x03\x01"[..], 0), (GET, 10)] {
        let (mut sim, mut inside) = begin();
        inside.sent = missed;
        inside.write(&mut sim, bytes);
        sim.send(&data(200)).ack().upstream_fin();
        inside.dry(&mut sim);
        sim.gateway_fin().ms(100);
        sim.expect(Cause::TcpClosedNoResponse, Proof::Inferred);
    }
}

#[test]
fn a_connection_that_sends_in_an_unseen_way_is_left() {
    let (mut sim, mut inside) = begin();
    inside.write(
        &mut sim,
        b"POST /a HTTP/1.1\r\nHost: shop\r\nContent-Length: 500\r\n\r\n",
    );
    // The body, out of a file.
    sim.send(&data(500 + ADDED)).ack();
    inside.tell(&mut sim, Direction::ToUpstream, &[], 0);
    inside.read(&mut sim, OK);
    inside.write(&mut sim, GET);
    inside.read(&mut sim, OK);
    sim.gateway_fin().upstream_fin().ms(1000).expect_none();
}

#[test]
fn more_text_than_came_is_not_of_this_hop() {
    let (mut sim, mut inside) = begin();
    inside.write(&mut sim, GET);
    let long = [b'x'; 4096];
    inside.tell(&mut sim, Direction::FromUpstream, &long, long.len());
    assert_eq!(sim.engine.stats().tls_sources_disagree, 1);
    sim.upstream_fin().gateway_fin().ms(1000).expect_none();
}

#[test]
fn a_gateway_that_closes_on_a_close_notify_was_left() {
    // The FIN that belongs to the alert comes behind the gateway's.
    let mut sim = Sim::live("haproxy");
    sim.hello(&hello()).reply(&server_13());
    sim.send(&finished_13()).ack().send(&data(180)).ack();
    sim.reply(&data(ALERT)).gateway_fin().upstream_fin().ms(100);
    let event = sim.expect(Cause::TcpClosedNoResponse, Proof::Inferred);
    let told: Vec<_> = event.evidence.iter().map(|one| &*one.what).collect();
    assert!(told.contains(&"upstream_farewell"), "{told:?}");
    let (mut sim, mut inside) = begin();
    inside.write(&mut sim, GET);
    sim.reply(&data(ALERT));
    inside.dry(&mut sim);
    sim.gateway_fin().upstream_fin().ms(100);
    sim.expect(Cause::TcpClosedNoResponse, Proof::Inferred);
}

#[test]
fn a_malformed_response_is_one_whoever_takes_leave() {
    const OTHER_VERSION: &[u8] = b"HTTP/2 200\r\nContent-Length: 2\r\n\r\nok";
    for upstream_closes_too in [false, true] {
        let (mut sim, mut inside) = begin();
        inside.write(&mut sim, GET);
        inside.read(&mut sim, OTHER_VERSION);
        sim.reply(&data(ALERT));
        inside.dry(&mut sim);
        sim.gateway_fin();
        if upstream_closes_too {
            sim.upstream_fin();
        }
        sim.ms(1000);
        sim.expect(Cause::Http1StatusLineInvalid, Proof::Proven);
    }
}

#[test]
fn a_farewell_needs_no_reader() {
    // The gateway had read everything before; it closes as it hears of the FIN.
    let (mut sim, mut inside) = begin();
    inside.write(&mut sim, GET);
    inside.read(&mut sim, b"HTTP/1.1 200 OK\r\nConte");
    inside.dry(&mut sim);
    sim.reply(&data(ALERT)).upstream_fin();
    sim.gateway_fin().ms(1000);
    sim.expect(Cause::Http1HeadTruncated, Proof::Proven);
    // Without a FIN the record may have been anything.
    let (mut sim, mut inside) = begin();
    inside.write(&mut sim, GET);
    inside.read(&mut sim, b"HTTP/1.1 200 OK\r\nConte");
    inside.dry(&mut sim);
    sim.reply(&data(ALERT));
    sim.gateway_fin().ms(1000).expect_none();
}

#[test]
fn a_reset_behind_a_farewell_is_no_close_on_accept() {
    for read in [false, true] {
        let (mut sim, mut inside) = begin();
        inside.write(&mut sim, GET);
        sim.reply(&data(ALERT));
        if read {
            inside.dry(&mut sim);
        }
        // It had not read the gateway's own farewell.
        sim.send(&data(ALERT)).upstream_rst();
        sim.ms(1000).expect_none();
        assert_eq!(sim.engine.stats().unjudged_gateway_closed, 1);
    }
}

#[test]
fn what_is_broken_is_that_whatever_was_not_read() {
    let (mut sim, mut inside) = begin();
    inside.write(&mut sim, GET);
    inside.read(&mut sim, b"HTTP/2 200\r\n\r\nok");
    sim.reply(&data(100)).upstream_fin();
    sim.gateway_fin().ms(1000);
    sim.expect(Cause::Http1StatusLineInvalid, Proof::Proven);
}

#[test]
fn a_record_like_an_alert_without_a_fin_says_nothing() {
    let mut sim = Sim::live("haproxy");
    sim.hello(&hello()).reply(&server_13());
    sim.send(&finished_13()).ack().send(&data(180)).ack();
    sim.reply(&data(ALERT)).gateway_fin().ms(1000);
    sim.expect_none();
    assert_eq!(sim.engine.stats().unjudged_gateway_closed, 1);
}

#[test]
fn a_record_of_two_bytes_is_no_farewell() {
    const SOME: &[u8] = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello";
    let (mut sim, mut inside) = begin();
    inside.write(&mut sim, GET);
    inside.read(&mut sim, SOME);
    // The end of the chunk by itself; then the client leaves, and with it the gateway.
    inside.read(&mut sim, b"\r\n");
    sim.gateway_fin().upstream_fin().ms(100).expect_none();
    // The same of what the gateway writes: the upstream closed first.
    let (mut sim, mut inside) = begin();
    inside.write(
        &mut sim,
        b"POST /a HTTP/1.1\r\nHost: shop\r\nContent-Length: 2\r\n\r\n",
    );
    inside.write(&mut sim, b"ab");
    sim.upstream_fin();
    inside.dry(&mut sim);
    sim.gateway_fin().ms(100);
    sim.expect(Cause::TcpClosedNoResponse, Proof::Proven);
}

#[test]
fn a_text_that_is_read_behind_a_farewell_was_sent_before_it() {
    const CUT: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nhello";
    let (mut sim, mut inside) = begin();
    inside.write(&mut sim, GET);
    sim.reply(&data(CUT.len() + ADDED)).reply(&data(ALERT));
    inside.tell(&mut sim, Direction::FromUpstream, CUT, CUT.len());
    inside.dry(&mut sim);
    sim.gateway_fin().upstream_fin().ms(100);
    sim.expect(Cause::Http1BodyTruncated, Proof::Inferred);
}

#[test]
fn a_reply_whose_text_was_lost_is_not_missing() {
    let (mut sim, mut inside) = begin();
    inside.write(&mut sim, GET);
    sim.reply(&data(OK.len() + ADDED));
    sim.ms(120_000).gateway_fin().ms(1000).expect_none();
    assert_eq!(sim.engine.stats().unjudged_gateway_closed, 1);
}

#[test]
fn nothing_is_judged_behind_a_text_that_is_not_known() {
    // The whole response, or the end of it.
    for before in [&b""[..], b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n"] {
        let (mut sim, mut inside) = begin();
        inside.write(&mut sim, GET);
        if !before.is_empty() {
            inside.read(&mut sim, before);
        }
        sim.reply(&data(OK.len() + ADDED));
        inside.miss(&mut sim, Direction::FromUpstream);
        inside.dry(&mut sim);
        sim.upstream_fin();
        inside.dry(&mut sim);
        sim.gateway_fin().ms(1000).expect_none();
        assert_eq!(sim.engine.stats().tls_sources_disagree, 0);
    }
}

#[test]
fn a_response_to_a_request_that_is_not_known_is_not_unasked() {
    let (mut sim, mut inside) = begin();
    inside.write(&mut sim, GET);
    inside.read(&mut sim, OK);
    sim.send(&data(GET.len() + ADDED)).ack();
    sim.reply(&data(OK.len() + ADDED));
    inside.miss(&mut sim, Direction::ToUpstream);
    inside.tell(&mut sim, Direction::FromUpstream, OK, OK.len());
    // The rest of what is inside is left alone.
    inside.write(&mut sim, GET);
    inside.read(&mut sim, b"HTTP/1.1 200 OK\r\nX-Cache : miss\r\n\r\n");
    sim.upstream_fin().gateway_fin().ms(1000).expect_none();
    assert_eq!(sim.engine.stats().unsolicited, 0);
}

#[test]
fn a_text_whose_beginning_is_not_known_is_not_read() {
    let (mut sim, mut inside) = begin();
    inside.miss(&mut sim, Direction::FromUpstream);
    inside.miss(&mut sim, Direction::ToUpstream);
    inside.write(&mut sim, GET);
    inside.read(&mut sim, b"HTTP/1.1 200 OK\r\nX-Cache : miss\r\n\r\n");
    sim.ms(1000).expect_none();
}
