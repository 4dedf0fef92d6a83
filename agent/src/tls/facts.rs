//! What was seen of one TLS connection.

use crate::model::{Actor, Timestamp};

/// A protocol version as it stands on the wire: `0x0303` is TLS 1.2, `0x0304` TLS 1.3.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version(pub u16);

impl Version {
    /// TLS 1.2.
    pub const TLS12: Self = Self(0x0303);
    /// TLS 1.3.
    pub const TLS13: Self = Self(0x0304);

    /// Draft 26 of TLS 1.3 in a variant of Facebook's, which its applications still offer.
    pub(super) const FACEBOOK: Self = Self(0xfb1a);

    /// Whether most of the handshake is encrypted: TLS 1.3 and its drafts, which are `0x7fxx`.
    pub const fn hides_handshake(self) -> bool {
        self.0 == Self::TLS13.0 || self.0 >> 8 == 0x7f || self.0 == Self::FACEBOOK.0
    }
}

/// What is known of a connection that the gateway began with a TLS record. Every list is capped; what
/// did not fit is missing, never wrong.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "facts that are independent of each other"
)]
pub struct Facts {
    /// The gateway's last ClientHello.
    pub client: Option<Box<ClientHello>>,
    /// The upstream's last ServerHello; a HelloRetryRequest is none.
    pub server: Option<ServerHello>,
    /// Whether the upstream asked for another ClientHello (RFC 8446 section 4.1.4).
    pub retried: bool,
    /// The upstream's certificates as sent, the leaf first: TLS 1.2 and older only.
    pub chain: Vec<Certificate>,
    /// Whether more certificates were sent than are kept, or some could not be read or were not captured.
    pub chain_cut: bool,
    /// Whether the upstream's first flight ended (ServerHelloDone): known in TLS 1.2 and older only, and
    /// in none of them where a session is resumed.
    pub hello_done: bool,
    /// Whether the upstream asked for a client certificate: known in TLS 1.2 and older only.
    pub asked: bool,
    /// How many certificates the gateway gave: known in TLS 1.2 and older only.
    pub given: Option<usize>,
    /// The first of them.
    pub client_certificate: Option<Box<Certificate>>,
    /// What the gateway sent.
    pub to: Side,
    /// What the upstream sent.
    pub from: Side,
    /// Alerts, in the order seen.
    pub alerts: Vec<Alert>,
    /// The first bytes on either side that are no TLS record.
    pub foreign: Option<Foreign>,
}

impl Facts {
    /// Whether both sides finished the handshake, as far as the steps tell.
    pub fn is_complete(&self) -> bool {
        self.to.step == Step::Finished && self.from.step == Step::Finished
    }

    /// Memory of what handshake messages said.
    pub(super) fn kept_bytes(&self) -> usize {
        let hello = self.client.as_deref().map_or(0, |hello| {
            let numbers = 2 * (hello.ciphers.len() + hello.groups.len() + hello.signatures.len());
            size_of::<ClientHello>()
                + numbers
                + 2 * hello.versions.len()
                + hello.sni.as_ref().map_or(0, String::len)
                + texts(&hello.alpn)
        });
        let server = self.server.as_ref().and_then(|server| server.alpn.as_ref());
        hello
            + server.map_or(0, String::len)
            + self
                .chain
                .iter()
                .map(Certificate::kept_bytes)
                .sum::<usize>()
            + self
                .client_certificate
                .as_deref()
                .map_or(0, Certificate::kept_bytes)
    }
}

fn texts(list: &[String]) -> usize {
    list.iter()
        .map(|text| size_of::<String>() + text.len())
        .sum()
}

impl Facts {
    /// The alert that began the end: the first that is no warning to go on with.
    pub fn farewell(&self) -> Option<&Alert> {
        const WARNING: u8 = 1;
        const CLOSE_NOTIFY: u8 = 0;
        self.alerts.iter().find(|alert| match alert.said {
            Some((WARNING, number)) => number == CLOSE_NOTIFY,
            Some(_) | None => true,
        })
    }
}

/// How far one side came, and what it sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Side {
    /// How far it came.
    pub step: Step,
    /// Whether bytes are missing, so that counts are lower bounds and steps may have been missed.
    pub gap: bool,
    /// Records that are complete.
    pub records: u32,
    /// Records of type `application_data` that are complete, encrypted handshake messages of TLS 1.3 and
    /// alerts included.
    pub application: u32,
    /// Payload bytes of those.
    pub application_bytes: u64,
    /// Records of type `application_data` after its Finished, as far as that is known: tickets, data, and
    /// in TLS 1.3 alerts.
    pub since_finished: u32,
    /// TLS 1.3: length of the first record of type `application_data` after the ServerHello. On the
    /// gateway's side 25 is an empty Certificate, 53 or 69 a Finished.
    pub first_application: Option<u16>,
    /// Type and length of the last complete record, and when it ended.
    pub last: Option<(u8, u16)>,
    /// When its last byte was seen.
    pub last_at: Timestamp,
    /// Bytes of a record that is not complete, its header included.
    pub partial: u32,
}

/// How far a side came in the handshake.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Step {
    /// Nothing was seen of it.
    #[default]
    Nothing,
    /// Its hello was seen.
    Hello,
    /// TLS 1.2: its ChangeCipherSpec was. TLS 1.3: it sent encrypted records that are not known to be
    /// its Finished.
    Encrypted,
    /// Its Finished was seen; in TLS 1.3 by the length of its record (RFC 8446 section 4.4.4), or by what
    /// followed. Where that is not certain, it stays at the step before.
    Finished,
}

/// A ClientHello (RFC 8446 section 4.1.2).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientHello {
    /// Versions offered, the best first.
    pub versions: Vec<Version>,
    /// Cipher suites, GREASE left out (RFC 8701).
    pub ciphers: Vec<u16>,
    /// Groups.
    pub groups: Vec<u16>,
    /// Signature schemes.
    pub signatures: Vec<u16>,
    /// The name asked for (RFC 6066 section 3).
    pub sni: Option<String>,
    /// Application protocols (RFC 7301), as text.
    pub alpn: Vec<String>,
    /// Whether it resumes a session (a ticket or pre-shared key was offered).
    pub resumes: bool,
    /// Whether early data was announced (RFC 8446 section 4.2.10).
    pub early_data: bool,
    /// Whether part of it was not captured, not kept or not readable, so that what is missing here may
    /// have been sent.
    pub cut: bool,
    /// Its length in bytes, handshake header included.
    pub bytes: u32,
}

/// A ServerHello (RFC 8446 section 4.1.3).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServerHello {
    /// Version chosen.
    pub version: Version,
    /// Cipher suite chosen.
    pub cipher: u16,
    /// Group chosen or asked for, where it says (TLS 1.3).
    pub group: Option<u16>,
    /// Application protocol chosen; in TLS 1.3 that is encrypted.
    pub alpn: Option<String>,
    /// Whether it goes on with an earlier session.
    pub resumed: bool,
}

/// A name that a certificate is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SubjectName {
    /// A DNS name, perhaps with a wildcard.
    Dns(String),
    /// An address.
    Address(core::net::IpAddr),
}

/// What an X.509 certificate says of itself (RFC 5280). No signature is checked against a trust store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "facts that are independent of each other"
)]
pub struct Certificate {
    /// Subject, as text.
    pub subject: String,
    /// Issuer, as text.
    pub issuer: String,
    /// The subject's common name, the last where it has several.
    pub common_name: Option<String>,
    /// Names it is for.
    pub names: Vec<SubjectName>,
    /// Whether it has more names than are kept, or some that could not be read.
    pub names_cut: bool,
    /// Seconds since the Unix epoch from which it is good.
    pub not_before: i64,
    /// Seconds since the Unix epoch to which it is good.
    pub not_after: i64,
    /// Whether issuer and subject are the same name, and its key identifiers do not say otherwise.
    pub self_issued: bool,
    /// Whether it is a certificate authority's.
    pub authority: bool,
    /// Whether its extended key usage leaves servers out.
    pub not_for_servers: bool,
    /// Bits of its public key, where the kind of key has a size worth telling.
    pub key_bits: Option<u32>,
    /// Name of the kind of its key: `RSA`, `EC`, `Ed25519`, or its object identifier.
    pub key: String,
    /// Name of the signature algorithm, or its object identifier.
    pub signature: String,
}

impl Certificate {
    fn kept_bytes(&self) -> usize {
        let names = self.names.iter().map(|name| match name {
            SubjectName::Dns(name) => name.len(),
            SubjectName::Address(_) => 0,
        });
        size_of::<Self>()
            + self.subject.len()
            + self.issuer.len()
            + self.common_name.as_ref().map_or(0, String::len)
            + self.names.capacity() * size_of::<SubjectName>()
            + names.sum::<usize>()
            + self.key.len()
            + self.signature.len()
    }
}

/// An alert that was sent in the clear, or one that its length and place give away. In TLS 1.3 an
/// encrypted one is a record of type `application_data` (23) as long as an alert is, 19 bytes with most
/// cipher suites; it is noted only while no record of its sender followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Alert {
    /// Who sent it.
    pub by: Actor,
    /// When.
    pub at: Timestamp,
    /// Level and number (RFC 8446 section 6); none where it is encrypted or was not captured.
    pub said: Option<(u8, u8)>,
    /// Type and length of its record.
    pub record: (u8, u16),
    /// How far the other side was.
    pub other: Step,
    /// How far the sender was.
    pub own: Step,
}

impl Alert {
    /// Whether it only says that its sender is done, as far as that can be read.
    pub fn is_close_notify(&self) -> bool {
        self.said.is_none_or(|(_, number)| number == 0)
    }

    /// Whether its record may hold two bytes of text as well.
    pub fn may_be_text(&self) -> bool {
        const APPLICATION_DATA: u8 = 23;
        self.record.0 == APPLICATION_DATA
    }
}

/// Bytes that are no TLS record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Foreign {
    /// Who sent them.
    pub by: Actor,
    /// Place of the first of them in the sender's stream.
    pub offset: u64,
    /// The first few.
    pub bytes: Vec<u8>,
    /// How far the sender was.
    pub own: Step,
}
