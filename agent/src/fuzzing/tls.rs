//! TLS connections and certificates.

use super::Bytes;
use crate::model::{Actor, Timestamp};
use crate::tcp::Chunk;
use crate::tls::{
    Certificate, Facts, Session, SubjectName, anchor, chain_shape, name_match, read_certificate,
};

/// A part of one direction.
struct Turn<'a> {
    by: Actor,
    bytes: &'a [u8],
    /// Bytes behind them that were not captured.
    gap: u64,
}

fn feed(session: &mut Session, by: Actor, chunk: Chunk<'_>) {
    match by {
        Actor::Gateway => session.sent(Timestamp::default(), chunk),
        Actor::Upstream => session.received(Timestamp::default(), chunk),
    }
    let kept = session.kept_bytes();
    assert!(kept <= Session::MAX_KEPT_BYTES, "{kept} bytes are kept");
}

/// Turns of a connection: the same bytes in any split give the same facts, as long as it is certain
/// where records begin, and memory stays under its cap.
///
/// # Panics
///
/// Where that is not so.
pub fn tls(data: &[u8]) {
    let mut data = Bytes(data);
    let joined = data.u8() & 1 != 0;
    let count = data.index(16);
    let cuts = data.slice(count);
    let mut turns = Vec::new();
    while !data.is_empty() {
        let kind = data.u8();
        let length = usize::from(data.u16());
        turns.push(Turn {
            by: if kind & 1 == 0 {
                Actor::Gateway
            } else {
                Actor::Upstream
            },
            gap: if kind & 2 == 0 {
                0
            } else {
                u64::from(data.u16())
            },
            bytes: data.slice(length),
        });
    }
    let begin = || {
        if joined {
            Session::joined()
        } else {
            Session::new()
        }
    };
    let mut whole = begin();
    for turn in &turns {
        feed(&mut whole, turn.by, Chunk::Data(turn.bytes));
        feed(&mut whole, turn.by, Chunk::Gap(turn.gap));
    }
    check(whole.facts());

    let mut lengths = cuts.iter().copied().chain([1]).cycle();
    let mut length = || {
        lengths
            .next()
            .map_or(1, |length| usize::from(length).max(1))
    };
    let mut split = begin();
    for turn in &turns {
        let mut rest = turn.bytes;
        while !rest.is_empty() {
            let (piece, behind) = rest.split_at(length().min(rest.len()));
            feed(&mut split, turn.by, Chunk::Data(piece));
            rest = behind;
        }
        let mut gap = turn.gap;
        while gap > 0 {
            let piece = (length() as u64 * 16).min(gap);
            feed(&mut split, turn.by, Chunk::Gap(piece));
            gap -= piece;
        }
    }
    if whole.is_sure() {
        assert!(split.is_sure());
        assert_eq!(split.facts(), whole.facts());
    }
    check(split.facts());
}

fn check(facts: &Facts) {
    assert!(facts.alerts.len() <= 8);
    assert!(facts.chain.len() <= 8);
    for certificate in facts
        .chain
        .iter()
        .chain(facts.client_certificate.as_deref())
    {
        check_certificate(certificate);
    }
    let shape = chain_shape(&facts.chain);
    assert_eq!(shape.is_some(), anchor(&facts.chain).is_some());
    for side in [facts.to, facts.from] {
        assert!(side.application <= side.records);
        assert!(side.since_finished <= side.application);
        assert!(side.partial < 5 + (1 << 15));
    }
    if let Some(foreign) = &facts.foreign {
        assert!((1..=64).contains(&foreign.bytes.len()));
    }
    if let Some(client) = &facts.client {
        assert!(client.sni.as_ref().is_none_or(|name| name.len() <= 255));
        assert!(client.ciphers.len() <= 128 && client.alpn.len() <= 16);
    }
}

fn check_certificate(certificate: &Certificate) {
    assert!(certificate.names.len() <= 100);
    for text in [&certificate.subject, &certificate.issuer] {
        assert!(text.len() <= 256 && !text.contains(char::is_control));
    }
    for name in &certificate.names {
        let text = match name {
            SubjectName::Dns(name) => name.clone(),
            SubjectName::Address(address) => address.to_string(),
        };
        assert!(text.len() <= 255);
        name_match(certificate, &text);
        name_match(certificate, text.trim_start_matches('*'));
    }
}

/// A certificate, alone and twice in the handshake of an upstream.
///
/// # Panics
///
/// Where a text or a list is above its cap.
pub fn certificate(data: &[u8]) {
    if let Some(certificate) = read_certificate(data) {
        check_certificate(&certificate);
    }
    let [.., high, middle, low] = data.len().to_be_bytes();
    let mut entry = vec![high, middle, low];
    entry.extend_from_slice(data);
    let list = entry.repeat(2);
    let [.., high, middle, low] = list.len().to_be_bytes();
    let mut body = vec![high, middle, low];
    body.extend(list);
    let [.., high, middle, low] = body.len().to_be_bytes();
    let mut message = vec![11, high, middle, low];
    message.extend(body);
    let mut session = Session::new();
    for part in message.chunks(1 << 14) {
        let [.., high, low] = part.len().to_be_bytes();
        feed(
            &mut session,
            Actor::Upstream,
            Chunk::Data(&[22, 3, 3, high, low]),
        );
        feed(&mut session, Actor::Upstream, Chunk::Data(part));
    }
    check(session.facts());
}
