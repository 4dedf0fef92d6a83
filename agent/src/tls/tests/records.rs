//! Records and messages cut in other ways than libraries do, and attacks.

use super::recorded::{Recording, feed};
use crate::model::{Actor, Timestamp};
use crate::tcp::Chunk;
use crate::tls::{Session, Step, Version};

const AT: Timestamp = Timestamp::from_nanos(1);

fn record(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![kind, 3, 3];
    bytes.extend((body.len() as u16).to_be_bytes());
    bytes.extend(body);
    bytes
}

/// The records of a turn: type and body.
fn records(mut bytes: &[u8]) -> Vec<(u8, &[u8])> {
    let mut list = Vec::new();
    while let [kind, _, _, high, low, rest @ ..] = bytes {
        let (body, behind) = rest.split_at(usize::from(u16::from_be_bytes([*high, *low])));
        list.push((*kind, body));
        bytes = behind;
    }
    list
}

fn sent(session: &mut Session, bytes: &[u8]) {
    feed(session, Actor::Gateway, AT, Chunk::Data(bytes));
}

fn received(session: &mut Session, bytes: &[u8]) {
    feed(session, Actor::Upstream, AT, Chunk::Data(bytes));
}

/// A session of TLS 1.3 with this cipher suite up to the ServerHello, taken from a recording.
fn tls13(name: &str) -> Session {
    let recording = Recording::read(name);
    let mut session = Session::new();
    for (by, bytes) in &recording.0[..2] {
        let end = match by {
            Actor::Gateway => bytes.len(),
            Actor::Upstream => 5 + records(bytes)[0].1.len(),
        };
        feed(&mut session, *by, AT, Chunk::Data(&bytes[..end]));
    }
    assert_eq!(
        session.facts().server.as_ref().unwrap().version,
        Version::TLS13
    );
    session
}

/// Encrypted records of these lengths.
fn sealed(lengths: &[usize]) -> Vec<u8> {
    lengths
        .iter()
        .flat_map(|len| record(23, &vec![0x5a; *len]))
        .collect()
}

#[test]
fn messages_over_many_records_and_many_in_one() {
    let recording = Recording::read("tls12_client_certificate");
    let whole = recording.play();
    for size in [1, 3, 4, 5, 100, 4000] {
        let mut session = Session::new();
        for (by, bytes) in &recording.0 {
            let mut clear = Vec::new();
            let mut rest = Vec::new();
            for (kind, body) in records(bytes) {
                // What comes before the first record of another type is in the clear.
                if kind == 22 && rest.is_empty() && session.facts().to.step < Step::Finished {
                    clear.extend_from_slice(body);
                } else {
                    rest.extend(record(kind, body));
                }
            }
            for part in clear.chunks(size) {
                feed(&mut session, *by, AT, Chunk::Data(&record(22, part)));
            }
            feed(&mut session, *by, AT, Chunk::Data(&rest));
        }
        let (ours, theirs) = (session.facts(), whole.facts());
        assert_eq!(ours.client, theirs.client, "{size}");
        assert_eq!(ours.server, theirs.server);
        assert_eq!(ours.chain, theirs.chain);
        assert_eq!(ours.given, Some(1));
        assert!(ours.is_complete() && ours.hello_done && ours.asked);
    }
}

#[test]
fn a_huge_message_is_not_kept() {
    let mut session = Session::new();
    received(&mut session, &record(22, &[11, 0xff, 0xff, 0xff]));
    let body = record(22, &[0x30; 1 << 14]);
    for _ in 0..2000 {
        received(&mut session, &body);
        assert!(session.kept_bytes() <= Session::MAX_KEPT_BYTES);
    }
    assert!(session.facts().chain_cut && session.facts().chain.is_empty());
}

#[test]
fn tiny_records_take_no_memory() {
    let mut session = Session::new();
    let many = record(22, &[1]).repeat(10_000);
    for _ in 0..20 {
        sent(&mut session, &many);
        sent(&mut session, &record(23, &[]).repeat(1000));
        sent(&mut session, &record(21, &[1, 90]).repeat(1000));
    }
    assert!(session.kept_bytes() <= 128 * 1024);
    assert_eq!(session.facts().alerts.len(), 8);
}

#[test]
fn the_last_alert_is_kept_of_many() {
    let mut session = Session::new();
    received(&mut session, &record(21, &[1, 90]).repeat(100));
    received(&mut session, &record(21, &[2, 40]));
    let last = session.facts().alerts.last().unwrap();
    assert_eq!(last.said, Some((2, 40)));
}

#[test]
fn a_gap_in_data_loses_nothing() {
    let mut session = tls13("tls13");
    received(&mut session, &sealed(&[23, 823, 281, 69]));
    sent(&mut session, &sealed(&[69, 500]));
    let big = record(23, &[0; 16_000]);
    received(&mut session, &big[..700]);
    feed(&mut session, Actor::Upstream, AT, Chunk::Gap(15_305));
    received(&mut session, &sealed(&[19]));
    let facts = session.facts();
    assert!(facts.is_complete() && !facts.from.gap);
    assert_eq!(facts.from.since_finished, 2);
    assert_eq!(facts.from.last, Some((23, 19)));
    assert_eq!(facts.alerts.len(), 1);
}

#[test]
fn after_a_gap_over_a_header_records_are_found_again() {
    let mut session = tls13("tls13");
    feed(&mut session, Actor::Upstream, AT, Chunk::Gap(100));
    received(&mut session, &[0x17; 60]);
    assert!(session.facts().from.gap);
    assert_eq!(session.facts().from.records, 1, "the ServerHello");
    received(&mut session, &[sealed(&[300]), vec![0x17, 3]].concat());
    assert_eq!(session.facts().from.application, 1);
    received(&mut session, &[3, 0, 19]);
    received(&mut session, &[0; 19]);
    assert_eq!(session.facts().from.last, Some((23, 19)));
    // What is no record now may be no beginning of one either.
    received(&mut session, b"HTTP/1.1 200 OK\r\n");
    assert_eq!(session.facts().foreign, None);
}

#[test]
fn certificates_before_a_gap_are_kept() {
    let recording = Recording::read("tls12");
    let mut session = Session::new();
    sent(&mut session, &recording.0[0].1);
    let upstream = &recording.0[1].1;
    let hello = 5 + records(upstream)[0].1.len();
    let certificates = records(upstream)[1].1.len();
    // The first is there, and the end of the second is not.
    let known = hello + 5 + certificates - 20;
    received(&mut session, &upstream[..known]);
    feed(&mut session, Actor::Upstream, AT, Chunk::Gap(20));
    received(&mut session, &upstream[known + 20..]);
    let facts = session.facts();
    assert_eq!(facts.chain.len(), 1);
    assert!(facts.chain_cut && facts.from.gap && facts.hello_done);
}

#[test]
fn finished_is_told_by_its_length_alone_where_that_is_certain() {
    for (lengths, step, since, what) in [
        (&[69][..], Step::Finished, 0, "alone"),
        (&[25, 69], Step::Finished, 0, "behind no certificate"),
        (&[77], Step::Finished, 0, "in one record with none"),
        (&[433, 97, 69], Step::Finished, 0, "behind a certificate"),
        (&[433, 281, 69], Step::Finished, 0, "behind one of RSA"),
        (&[520, 69], Step::Finished, 0, "behind both in one record"),
        (&[433, 149], Step::Finished, 0, "with the verification"),
        (&[600, 100], Step::Finished, 1, "all of it before data"),
        (
            &[600, 97, 100],
            Step::Finished,
            1,
            "before data of any length",
        ),
        (
            &[600, 97, 69],
            Step::Finished,
            0,
            "before data at the latest",
        ),
        (&[53], Step::Encrypted, 0, "of another hash"),
        (&[25], Step::Encrypted, 0, "not yet"),
        (&[25, 100], Step::Encrypted, 0, "not there"),
        (&[19], Step::Encrypted, 0, "an alert"),
        (&[600], Step::Encrypted, 0, "perhaps in one record"),
        (&[600, 19], Step::Encrypted, 0, "perhaps before an alert"),
        (&[433, 97], Step::Encrypted, 0, "not yet behind it"),
        (
            &[16401, 100],
            Step::Encrypted,
            0,
            "behind a long certificate",
        ),
        (&[85], Step::Encrypted, 0, "padded"),
    ] {
        let mut session = tls13("tls13");
        received(&mut session, &sealed(&[3000]));
        assert_eq!(session.facts().from.step, Step::Encrypted);
        sent(&mut session, &record(20, &[1]));
        sent(&mut session, &sealed(lengths));
        let facts = session.facts();
        assert_eq!(facts.to.step, step, "{what}");
        // Whoever finished had the upstream's Finished.
        assert_eq!(facts.from.step, step, "{what}");
        assert_eq!(facts.to.first_application, Some(lengths[0] as u16));
        assert_eq!(facts.to.since_finished, since, "{what}");
    }
}

#[test]
fn an_upstream_that_puts_its_flight_in_one_record_has_not_shown_its_finished() {
    for (lengths, step) in [
        (&[23, 823, 281, 69][..], Step::Finished),
        (&[23, 62, 823, 97, 69], Step::Finished),
        (&[1200], Step::Encrypted),
        (&[1200, 69], Step::Encrypted),
        (&[23, 69, 823], Step::Encrypted),
        (&[69], Step::Encrypted),
    ] {
        let mut session = tls13("tls13");
        received(&mut session, &sealed(lengths));
        assert_eq!(session.facts().from.step, step, "{lengths:?}");
    }
    let mut session = tls13("tls13_resumed");
    received(&mut session, &sealed(&[23, 69]));
    assert_eq!(session.facts().from.step, Step::Finished);
}

#[test]
fn nineteen_bytes_are_an_alert_as_long_as_nothing_follows() {
    let mut session = tls13("tls13");
    received(&mut session, &sealed(&[23, 823, 281, 69]));
    sent(&mut session, &sealed(&[19]));
    let alerts = &session.facts().alerts;
    assert_eq!(alerts.len(), 1);
    assert_eq!((alerts[0].by, alerts[0].said), (Actor::Gateway, None));
    assert_eq!(alerts[0].record, (23, 19));
    assert_eq!(
        (alerts[0].own, alerts[0].other),
        (Step::Encrypted, Step::Finished)
    );
    // The other side's records do not matter.
    received(&mut session, &sealed(&[250, 19]));
    assert_eq!(session.facts().alerts.len(), 2);
    sent(&mut session, &sealed(&[100])[..5]);
    let left: Vec<_> = session
        .facts()
        .alerts
        .iter()
        .map(|alert| alert.by)
        .collect();
    assert_eq!(left, [Actor::Upstream]);
}

#[test]
fn the_tag_of_a_suite_counts() {
    // TLS_AES_128_CCM_8_SHA256 has a tag of eight bytes (RFC 8446 section B.4).
    let recording = Recording::read("tls13");
    let mut session = Session::new();
    sent(&mut session, &recording.0[0].1);
    let mut hello = recording.0[1].1.clone();
    let at = 5 + 4 + 2 + 32 + 1 + 32;
    assert_eq!(hello[at..at + 2], [0x13, 0x02]);
    hello[at + 1] = 5;
    received(&mut session, &hello[..5 + records(&hello)[0].1.len()]);
    sent(&mut session, &sealed(&[45]));
    assert_eq!(session.facts().to.step, Step::Finished);
    received(&mut session, &sealed(&[11]));
    assert_eq!(session.facts().alerts.len(), 1);
}

#[test]
fn early_data_is_no_finished() {
    let mut session = tls13("tls13_early_data");
    sent(&mut session, &sealed(&[69]));
    assert_eq!(session.facts().to.step, Step::Encrypted);
    sent(&mut session, &sealed(&[21, 69]));
    assert_eq!(session.facts().to.step, Step::Finished);
}

#[test]
fn what_is_no_tls_is_told_with_its_place() {
    let mut session = Session::new();
    let recording = Recording::read("tls13");
    sent(&mut session, &recording.0[0].1);
    received(&mut session, b"S");
    received(&mut session, b"SH-2.0-Open");
    feed(&mut session, Actor::Upstream, AT, Chunk::Gap(4));
    received(&mut session, b"more");
    let foreign = session.facts().foreign.clone().unwrap();
    assert_eq!(
        (foreign.by, foreign.offset, foreign.own),
        (Actor::Upstream, 0, Step::Nothing)
    );
    assert_eq!(foreign.bytes, b"SSH-2.0-Open");

    let mut session = tls13("tls13");
    received(&mut session, &sealed(&[23, 823, 281, 69]));
    sent(&mut session, &sealed(&[69, 200]));
    received(&mut session, &[0x17, 3, 3, 0x7f, 0xff, 1, 2, 3]);
    let facts = session.facts();
    let foreign = facts.foreign.as_ref().unwrap();
    assert_eq!(foreign.bytes, [0x17, 3, 3, 0x7f, 0xff, 1, 2, 3]);
    assert_eq!(foreign.own, Step::Finished);
}

#[test]
fn the_hello_of_ssl_2_is_no_record() {
    // RFC 5246 appendix E.2.
    let hello = [0x80, 0x2e, 1, 3, 1, 0, 0x15, 0, 0, 0, 0x10];
    let mut session = Session::new();
    sent(&mut session, &hello);
    let facts = session.facts();
    assert_eq!(facts.foreign.as_ref().unwrap().bytes, hello);
    assert_eq!((facts.to.records, facts.to.step), (0, Step::Nothing));
}

#[test]
fn tls_1_2_without_its_server_hello() {
    let recording = Recording::read("tls12");
    let mut session = Session::new();
    sent(&mut session, &recording.0[0].1);
    let upstream = &recording.0[1].1;
    feed(
        &mut session,
        Actor::Upstream,
        AT,
        Chunk::Gap(upstream.len() as u64),
    );
    for (by, bytes) in &recording.0[2..4] {
        feed(&mut session, *by, AT, Chunk::Data(bytes));
    }
    let facts = session.facts();
    assert_eq!(facts.server, None);
    assert_eq!(facts.to.step, Step::Finished);
    assert!(facts.from.gap);
}

#[test]
fn joined_in_the_middle_nothing_is_foreign() {
    let mut session = Session::joined();
    sent(&mut session, b"any bytes");
    received(&mut session, &sealed(&[100, 40]));
    let facts = session.facts();
    assert_eq!((facts.foreign.as_ref(), facts.from.application), (None, 2));
    assert!(facts.to.gap && facts.from.gap);
}

#[test]
fn a_hello_cut_short_does_not_say_what_was_not_sent() {
    let recording = Recording::read("tls13");
    let mut session = Session::new();
    let hello = &recording.0[0].1;
    sent(&mut session, &hello[..140]);
    feed(
        &mut session,
        Actor::Gateway,
        AT,
        Chunk::Gap(hello.len() as u64 - 140),
    );
    let facts = session.facts();
    let client = facts.client.as_ref().unwrap();
    assert!(client.cut && facts.to.gap && !client.ciphers.is_empty());
    assert!(client.versions.is_empty(), "they stand in an extension");
    assert_eq!(facts.to.step, Step::Hello);
}

#[test]
fn behind_unseen_exchanges_records_go_on() {
    let mut session = tls13("tls13");
    received(&mut session, &sealed(&[23, 823, 281, 69]));
    sent(&mut session, &sealed(&[69, 100, 19]));
    // The end of this record passes unseen, with others.
    received(&mut session, &sealed(&[500])[..200]);
    session.resume();
    assert_eq!(session.facts().alerts, []);
    sent(&mut session, &sealed(&[100]));
    received(&mut session, &sealed(&[300, 19]));
    let facts = session.facts();
    assert!(!facts.to.gap && !facts.from.gap && facts.is_complete());
    assert_eq!((facts.to.since_finished, facts.from.since_finished), (3, 2));
    assert_eq!(facts.alerts.len(), 1);
    session.resume();
    received(&mut session, b"neither the beginning of a record");
    assert!(session.facts().from.gap && session.facts().foreign.is_none());
}
