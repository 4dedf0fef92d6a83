//! One DNS message: what a resolution needs of it.
//!
//! Read are the header and the question (RFC 1035 section 4.1), addresses and aliases among the answers,
//! how long a negative answer may be kept (RFC 2308 section 5), the extended response code (RFC 6891
//! section 6.1.3) and extended errors (RFC 8914). Every record is passed once and names of owners are not
//! decoded, so that the time is linear in the message.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use thiserror::Error;

use super::Name;

/// Length of the header.
const HEADER_LEN: usize = 12;
/// Records that are looked at, in all sections: far more than an answer about addresses has.
const MAX_RECORDS: usize = 512;
/// Addresses that are kept.
const MAX_ADDRESSES: usize = 64;
/// Aliases that are kept: resolvers follow fewer.
const MAX_ALIASES: usize = 16;
/// Extended errors that are kept, and bytes of the text of one.
const MAX_EDE: usize = 2;
const MAX_EDE_TEXT: usize = 120;

/// Record types (IANA "DNS Parameters").
pub mod kind {
    /// IPv4 address.
    pub const A: u16 = 1;
    /// Alias.
    pub const CNAME: u16 = 5;
    /// Start of a zone.
    pub const SOA: u16 = 6;
    /// IPv6 address.
    pub const AAAA: u16 = 28;
    /// Extensions (RFC 6891).
    pub const OPT: u16 = 41;
}

/// Response codes (RFC 1035 section 4.1.1).
pub mod rcode {
    /// No error.
    pub const NOERROR: u16 = 0;
    /// The server could not read the query.
    pub const FORMERR: u16 = 1;
    /// The server could not get an answer.
    pub const SERVFAIL: u16 = 2;
    /// There is no such name.
    pub const NXDOMAIN: u16 = 3;
    /// The server does not know that kind of query.
    pub const NOTIMP: u16 = 4;
    /// The server will not answer.
    pub const REFUSED: u16 = 5;

    /// The name of a code, where it has one (IANA "DNS RCODEs").
    pub const fn name(code: u16) -> Option<&'static str> {
        Some(match code {
            NOERROR => "NOERROR",
            FORMERR => "FORMERR",
            SERVFAIL => "SERVFAIL",
            NXDOMAIN => "NXDOMAIN",
            NOTIMP => "NOTIMP",
            REFUSED => "REFUSED",
            6 => "YXDOMAIN",
            7 => "YXRRSET",
            8 => "NXRRSET",
            9 => "NOTAUTH",
            10 => "NOTZONE",
            16 => "BADVERS",
            17 => "BADKEY",
            18 => "BADTIME",
            19 => "BADMODE",
            20 => "BADNAME",
            21 => "BADALG",
            22 => "BADTRUNC",
            23 => "BADCOOKIE",
            _ => return None,
        })
    }
}

/// `IN` (RFC 1035 section 3.2.4).
const CLASS_IN: u16 = 1;

/// Why bytes are no message that says anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Error)]
pub enum Malformed {
    /// They end inside the header or the question.
    #[error("a DNS message is cut short")]
    Short,
    /// A name is too long or has a label of unknown type.
    #[error("a DNS message has a bad name")]
    Name,
    /// A compression pointer does not lead back.
    #[error("a DNS message has a bad compression pointer")]
    Pointer,
    /// More questions than one.
    #[error("a DNS message has {0} questions")]
    Questions(u16),
}

/// A message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// The header.
    pub header: Header,
    /// What was asked; servers that could not read the query may leave it out.
    pub question: Option<Question>,
    /// What follows the question.
    pub body: Body,
}

/// The first twelve bytes, and what a server adds to them elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Ties an answer to its query.
    pub id: u16,
    /// Whether it is an answer.
    pub response: bool,
    /// What kind of query; zero is a plain one.
    pub opcode: u8,
    /// The answer did not fit: it has to be asked for over TCP.
    pub truncated: bool,
    /// Whether the server is asked to find out. Resolvers that do so themselves ask without it.
    pub recursion_desired: bool,
    /// The response code, its upper bits from the OPT record included.
    pub rcode: u16,
    /// The header's own bytes.
    pub bytes: [u8; HEADER_LEN],
}

/// What was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// The name.
    pub name: Name,
    /// The record type: one of [`kind`], or any other.
    pub kind: u16,
    /// The class.
    pub class: u16,
}

impl Question {
    /// Whether it asks for addresses.
    pub const fn is_for_address(&self) -> bool {
        matches!(self.kind, kind::A | kind::AAAA) && self.class == CLASS_IN
    }
}

/// What the records of an answer say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Body {
    /// Addresses in the answer, whatever names they belong to: gateways differ in how closely they look.
    pub addresses: Vec<IpAddr>,
    /// The names that the one asked for is an alias of, in the order of the message.
    pub aliases: Vec<Name>,
    /// The shortest time to live of the addresses.
    pub ttl: Option<Duration>,
    /// How long a negative answer may be kept.
    pub negative_ttl: Option<Duration>,
    /// Extended errors.
    pub ede: Vec<Ede>,
    /// Records were captured short or too many: there may be more than is told here.
    pub cut: bool,
    /// The records do not fit into the message, though all of it is there.
    pub damaged: bool,
}

/// An extended DNS error (RFC 8914).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Ede {
    /// Info code.
    pub code: u16,
    /// Extra text, which may be empty.
    pub text: String,
}

impl Ede {
    /// The purpose of the info code (IANA "Extended DNS Error Codes").
    pub const fn purpose(&self) -> Option<&'static str> {
        Some(match self.code {
            0 => "Other",
            1 => "Unsupported DNSKEY Algorithm",
            2 => "Unsupported DS Digest Type",
            3 => "Stale Answer",
            4 => "Forged Answer",
            5 => "DNSSEC Indeterminate",
            6 => "DNSSEC Bogus",
            7 => "Signature Expired",
            8 => "Signature Not Yet Valid",
            9 => "DNSKEY Missing",
            10 => "RRSIGs Missing",
            11 => "No Zone Key Bit Set",
            12 => "NSEC Missing",
            13 => "Cached Error",
            14 => "Not Ready",
            15 => "Blocked",
            16 => "Censored",
            17 => "Filtered",
            18 => "Prohibited",
            19 => "Stale NXDOMAIN Answer",
            20 => "Not Authoritative",
            21 => "Not Supported",
            22 => "No Reachable Authority",
            23 => "Network Error",
            24 => "Invalid Data",
            _ => return None,
        })
    }
}

impl Message {
    /// Reads a message that had `wire_len` bytes, of which `bytes` were captured.
    pub fn parse(bytes: &[u8], wire_len: u32) -> Result<Self, Malformed> {
        let mut header = Header::read(bytes)?;
        let head = header.bytes;
        let word = |at: usize| u16::from_be_bytes([head[at], head[at + 1]]);
        let (question, at) = match word(4) {
            0 => (None, HEADER_LEN),
            1 => {
                let (name, at) = Name::read(bytes, HEADER_LEN)?;
                let kind = u16_at(bytes, at).ok_or(Malformed::Short)?;
                let class = u16_at(bytes, at + 2).ok_or(Malformed::Short)?;
                (Some(Question { name, kind, class }), at + 4)
            }
            more => return Err(Malformed::Questions(more)),
        };
        let mut body = Body::default();
        let whole = usize::try_from(wire_len).is_ok_and(|len| bytes.len() >= len);
        let sections = [word(6), word(8), word(10)];
        if records(bytes, at, sections, &mut header, &mut body).is_err() {
            body.damaged = whole;
            body.cut |= !whole;
        }
        Ok(Self {
            header,
            question,
            body,
        })
    }

    /// What stands for an answer of which only the header can be read.
    pub fn damaged(bytes: &[u8]) -> Option<Self> {
        let header = Header::read(bytes).ok().filter(|header| header.response)?;
        Some(Self {
            header,
            question: None,
            body: Body {
                damaged: true,
                ..Body::default()
            },
        })
    }
}

impl Header {
    /// The header (RFC 1035 section 4.1.1).
    fn read(bytes: &[u8]) -> Result<Self, Malformed> {
        let head: &[u8; HEADER_LEN] = bytes.first_chunk().ok_or(Malformed::Short)?;
        let flags = u16::from_be_bytes([head[2], head[3]]);
        Ok(Self {
            id: u16::from_be_bytes([head[0], head[1]]),
            response: flags & 0x8000 != 0,
            opcode: (head[2] >> 3) & 0x0f,
            truncated: flags & 0x0200 != 0,
            recursion_desired: flags & 0x0100 != 0,
            rcode: flags & 0x000f,
            bytes: *head,
        })
    }
}

/// Walks the three sections of records.
fn records(
    bytes: &[u8],
    mut at: usize,
    sections: [u16; 3],
    header: &mut Header,
    body: &mut Body,
) -> Result<(), Malformed> {
    /// Type, class, time to live and length behind the owner's name.
    const FIXED: usize = 10;
    let mut seen = 0;
    for (section, count) in sections.into_iter().enumerate() {
        for _ in 0..count {
            seen += 1;
            if seen > MAX_RECORDS {
                body.cut = true;
                return Ok(());
            }
            at = Name::skip(bytes, at)?;
            let fixed: &[u8; FIXED] = bytes
                .get(at..)
                .and_then(|rest| rest.first_chunk())
                .ok_or(Malformed::Short)?;
            let kind = u16::from_be_bytes([fixed[0], fixed[1]]);
            let class = u16::from_be_bytes([fixed[2], fixed[3]]);
            let ttl = u32::from_be_bytes([fixed[4], fixed[5], fixed[6], fixed[7]]);
            let len = usize::from(u16::from_be_bytes([fixed[8], fixed[9]]));
            at += FIXED;
            let data = bytes.get(at..at + len).ok_or(Malformed::Short)?;
            match (section, kind) {
                (0, kind::A | kind::AAAA) if class == CLASS_IN => body.address(kind, ttl, data)?,
                (0, kind::CNAME) if class == CLASS_IN && body.aliases.len() < MAX_ALIASES => {
                    body.aliases.push(Name::read(bytes, at)?.0);
                }
                (1, kind::SOA) => body.negative(ttl, data),
                // The root's name, one byte, was passed already; it stands among the additional records.
                (2, kind::OPT) => {
                    header.rcode |= u16::from(fixed[4]) << 4;
                    body.options(data);
                }
                _ => {}
            }
            at += len;
        }
    }
    Ok(())
}

impl Body {
    fn address(&mut self, kind: u16, ttl: u32, data: &[u8]) -> Result<(), Malformed> {
        let address = match (kind, data.len()) {
            (kind::A, 4) => data.first_chunk::<4>().map(|v4| Ipv4Addr::from(*v4).into()),
            (kind::AAAA, 16) => data
                .first_chunk::<16>()
                .map(|v6| Ipv6Addr::from(*v6).to_canonical()),
            _ => None,
        };
        let address = address.ok_or(Malformed::Short)?;
        if self.addresses.len() < MAX_ADDRESSES {
            self.addresses.push(address);
        } else {
            self.cut = true;
        }
        let ttl = seconds(ttl);
        self.ttl = Some(self.ttl.map_or(ttl, |least| least.min(ttl)));
        Ok(())
    }

    /// The smaller of the record's own time to live and its last field counts (RFC 2308 section 5).
    fn negative(&mut self, ttl: u32, data: &[u8]) {
        if let Some(minimum) = data.last_chunk::<4>() {
            let minimum = u32::from_be_bytes(*minimum);
            self.negative_ttl = Some(seconds(ttl.min(minimum)));
        }
    }

    /// Options of an OPT record: code, length, value. One that does not fit ends them.
    fn options(&mut self, mut data: &[u8]) {
        const EXTENDED_ERROR: u16 = 15;
        while let (Some(code), Some(len)) = (u16_at(data, 0), u16_at(data, 2)) {
            let Some(value) = data.get(4..4 + usize::from(len)) else {
                return;
            };
            if code == EXTENDED_ERROR
                && self.ede.len() < MAX_EDE
                && let Some(code) = u16_at(value, 0)
            {
                let text = value.get(2..).unwrap_or_default();
                let text = text.get(..MAX_EDE_TEXT).unwrap_or(text);
                self.ede.push(Ede {
                    code,
                    text: String::from_utf8_lossy(text)
                        .trim_end_matches(['\0', ' '])
                        .to_owned(),
                });
            }
            data = data.get(4 + usize::from(len)..).unwrap_or_default();
        }
    }
}

/// A time to live. The top bit means zero (RFC 2181 section 8).
fn seconds(ttl: u32) -> Duration {
    Duration::from_secs(if ttl > i32::MAX.cast_unsigned() {
        0
    } else {
        u64::from(ttl)
    })
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    let pair = bytes.get(at..)?.first_chunk::<2>()?;
    Some(u16::from_be_bytes(*pair))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::testing::{Reply, query};
    use super::*;

    fn parse(bytes: &[u8]) -> Message {
        Message::parse(bytes, u32::try_from(bytes.len()).unwrap()).unwrap()
    }

    #[test]
    fn a_query() {
        let message = parse(&query(7, "App.Example", kind::AAAA));
        assert_eq!(message.header.id, 7);
        assert!(!message.header.response && message.header.recursion_desired);
        let question = message.question.unwrap();
        assert_eq!(question.name.as_str(), "app.example");
        assert!(question.is_for_address() && question.kind == kind::AAAA);
        assert_eq!(message.body, Body::default());
    }

    #[test]
    fn an_answer_with_an_alias_and_addresses() {
        let bytes = Reply::to(7, "www.example", kind::A)
            .alias("lb.example", 300)
            .address([10, 0, 0, 1].into(), 60)
            .address([10, 0, 0, 2].into(), 30)
            .bytes();
        let body = parse(&bytes).body;
        assert_eq!(
            body.addresses,
            [IpAddr::from([10, 0, 0, 1]), [10, 0, 0, 2].into()]
        );
        assert_eq!(body.aliases.len(), 1);
        assert_eq!(body.aliases[0].as_str(), "lb.example");
        assert_eq!(body.ttl, Some(Duration::from_secs(30)));
        assert!(!body.cut && !body.damaged);
    }

    #[test]
    fn a_negative_answer() {
        let bytes = Reply::to(7, "gone.example", kind::A)
            .code(rcode::NXDOMAIN)
            .zone(3600, 60)
            .bytes();
        let message = parse(&bytes);
        assert_eq!(message.header.rcode, rcode::NXDOMAIN);
        assert_eq!(message.body.negative_ttl, Some(Duration::from_mins(1)));
        assert!(message.body.addresses.is_empty());
    }

    #[test]
    fn extended_errors_and_extended_codes() {
        let bytes = Reply::to(7, "bogus.example", kind::A)
            .code(rcode::SERVFAIL)
            .ede(6, "no SEP matching the DS")
            .bytes();
        let message = parse(&bytes);
        assert_eq!(message.header.rcode, rcode::SERVFAIL);
        let [ede] = message.body.ede.as_slice() else {
            panic!("{:?}", message.body)
        };
        assert_eq!((ede.code, ede.text.as_str()), (6, "no SEP matching the DS"));
        assert_eq!(ede.purpose(), Some("DNSSEC Bogus"));
        let badvers = Reply::to(7, "a", kind::A).code(16).ede(0, "").bytes();
        assert_eq!(parse(&badvers).header.rcode, 16);
    }

    #[test]
    fn what_was_captured_short_is_not_damaged() {
        let bytes = Reply::to(7, "a.example", kind::A)
            .address([10, 0, 0, 1].into(), 60)
            .address([10, 0, 0, 2].into(), 60)
            .bytes();
        let wire_len = u32::try_from(bytes.len()).unwrap();
        let short = Message::parse(&bytes[..bytes.len() - 6], wire_len).unwrap();
        assert!(short.body.cut && !short.body.damaged);
        assert_eq!(short.body.addresses.len(), 1);
        let damaged = parse(&bytes[..bytes.len() - 6]);
        assert!(!damaged.body.cut && damaged.body.damaged);
    }

    #[test]
    fn a_bare_header_answers_as_well() {
        let message = parse(&[0, 7, 0x81, 0x81, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!((message.header.rcode, message.question), (1, None));
        assert_eq!(Message::parse(&[0; 11], 11), Err(Malformed::Short));
        let two = [0, 7, 1, 0, 0, 2, 0, 0, 0, 0, 0, 0];
        assert_eq!(Message::parse(&two, 12), Err(Malformed::Questions(2)));
    }

    #[test]
    fn an_old_ttl_with_the_top_bit_is_zero() {
        assert_eq!(seconds(0x8000_0000), Duration::ZERO);
        assert_eq!(seconds(60), Duration::from_mins(1));
    }

    proptest! {
        #[test]
        fn any_bytes_do(bytes in proptest::collection::vec(any::<u8>(), 0..600), more in 0u32..9) {
            let wire_len = u32::try_from(bytes.len()).unwrap() + more;
            if let Ok(message) = Message::parse(&bytes, wire_len) {
                prop_assert!(message.body.addresses.len() <= MAX_ADDRESSES);
                prop_assert!(message.body.aliases.len() <= MAX_ALIASES);
                prop_assert!(!(message.body.damaged && more > 0));
            }
        }

        #[test]
        fn any_damage_does(at in 0usize..200, value: u8, cut in 0usize..200) {
            let mut bytes = Reply::to(7, "www.example", kind::A)
                .alias("lb.example", 300)
                .address([10, 0, 0, 1].into(), 60)
                .zone(60, 60)
                .ede(22, "x")
                .bytes();
            let wire_len = u32::try_from(bytes.len()).unwrap();
            if let Some(byte) = bytes.get_mut(at) {
                *byte = value;
            }
            bytes.truncate(cut);
            if let Ok(message) = Message::parse(&bytes, wire_len) {
                for name in message.question.iter().map(|question| &question.name).chain(&message.body.aliases) {
                    prop_assert!(name.as_str().len() <= 4 * 255);
                }
            }
        }
    }
}
