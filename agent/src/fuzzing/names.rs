//! DNS messages, and tables of resolutions under way.

use core::net::SocketAddr;
use std::time::Duration;

use super::Bytes;
use crate::dns::{Asker, Exchanged, LookupLimits, Lookups, Message, Piece, Streams};
use crate::model::{Direction, TcpFlags, Timestamp};

/// So small that it is met.
const LOOKUPS: usize = 6;

/// Names that are one another's search domains, and some that are not.
const NAMES: [&[u8]; 6] = [
    b"\x03app\x00",
    b"\x03app\x01a\x00",
    b"\x03app\x01b\x00",
    b"\x03app\x01b\x01a\x00",
    b"\x03api\x01a\x00",
    b"\x02lb\x01a\x00",
];

/// DNS messages: raw ones, ones that are made of small pieces so that answers meet their queries, and
/// streams of both.
///
/// # Panics
///
/// Where a cap does not hold, a resolution is told that gave an address or before its time, or something
/// is left at the end.
pub fn dns(data: &[u8]) {
    let mut data = Bytes(data);
    let mut lookups = Lookups::new(LookupLimits { lookups: LOOKUPS });
    let mut streams = Streams::default();
    let mut now = Timestamp::from_nanos(1_700_000_000_000_000_000);
    while !data.is_empty() {
        let kind = data.u8();
        let from = data.u8();
        let with = Exchanged {
            asker: Asker::Process(u32::from(from & 1)),
            process: None,
            on_behalf: false,
            local: SocketAddr::from(([10, 0, 0, 1], 40_000 + u16::from(from >> 1 & 3))),
            resolver: SocketAddr::from(([10, 0, 0, 53 + (from >> 3 & 1)], 53)),
            tcp: from & 0x40 != 0,
            lost: 0,
        };
        match kind % 8 {
            0 => now = now.after(Duration::from_millis(u64::from(data.u16()))),
            1 => {
                let length = usize::from(data.u8());
                raw(&mut lookups, now, &with, data.slice(length));
            }
            2 => {
                let length = usize::from(data.u8());
                let payload = data.slice(length);
                let piece = Piece {
                    direction: Direction::ToUpstream,
                    seq: u32::from(data.u8()),
                    flags: TcpFlags(data.u8()),
                    payload,
                    wire_len: u32::try_from(payload.len()).unwrap_or(0) + u32::from(kind >> 7),
                };
                let ends = (0, with.local, with.resolver);
                streams.segment(now, ends, &piece, |_, bytes, wire_len| {
                    assert!(bytes.len() <= wire_len as usize && bytes.len() <= 4096);
                    raw(&mut lookups, now, &with, bytes);
                });
            }
            _ => {
                let message = made(&mut data, kind % 8 > 4);
                raw(&mut lookups, now, &with, &message);
            }
        }
        assert!(lookups.len() <= LOOKUPS);
        let [alike, queries, aliases, due] = lookups.remembered();
        assert_eq!((alike, due), (lookups.len(), lookups.len()));
        assert!(queries <= LOOKUPS * 12 && aliases <= LOOKUPS * 12);
        while let Some(failed) = lookups.poll(now) {
            told(&failed, now);
        }
        assert!(lookups.next_due().is_none_or(|due| due > now));
    }
    for failed in lookups.finish(now) {
        told(&failed, now);
    }
    assert_eq!((lookups.len(), lookups.remembered()), (0, [0; 4]));
}

fn raw(lookups: &mut Lookups, at: Timestamp, with: &Exchanged<'_>, bytes: &[u8]) {
    let wire_len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    let message = Message::parse(bytes, wire_len).ok();
    let message = message.or_else(|| Message::damaged(bytes));
    if let Some(message) = message
        && let Some(learned) = lookups.message(at, with, &message)
    {
        assert!(!learned.addresses.is_empty() && learned.asked <= at);
    }
}

/// A query or an answer with a small id.
fn made(data: &mut Bytes<'_>, response: bool) -> Vec<u8> {
    let (id, what) = (data.u8(), data.u8());
    let [family, answers] = [what & 1, u8::from(response) & (what >> 1)];
    let code = if response { data.u8() } else { 0 };
    let mut bytes = vec![0, id & 3, 1 | u8::from(response) << 7, code & 0x0f];
    bytes.extend([0, 1, 0, answers, 0, 0, 0, 0]);
    bytes.extend(NAMES[data.index(NAMES.len())]);
    bytes.extend([0, if family == 0 { 1 } else { 28 }, 0, 1]);
    if answers == 1 {
        let alias = what & 4 != 0;
        bytes.extend([0xc0, 12, 0, if alias { 5 } else { 1 }, 0, 1, 0, 0, 0, 60, 0]);
        let value: &[u8] = if alias { NAMES[5] } else { &[10, 0, 0, 9] };
        bytes.push(u8::try_from(value.len()).unwrap_or(0));
        bytes.extend(value);
    }
    bytes
}

fn told(failed: &crate::dns::Resolution, now: Timestamp) {
    use crate::dns::Outcome;

    assert!(!failed.asked.is_empty() && failed.decided <= now);
    let gave = failed.asked.iter().any(|asked| {
        let outcome = asked.reply.as_ref().map(|reply| reply.outcome);
        matches!(outcome, Some(Outcome::Addresses | Outcome::Unknown))
    });
    assert!(!gave, "{failed:?}");
    let verdict = crate::classify::unresolved(failed, None);
    // Silence on a stream tells nothing.
    assert!(verdict.is_none_or(|verdict| !verdict.evidence.is_empty()));
}
