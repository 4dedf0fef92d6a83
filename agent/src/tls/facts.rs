//! What was seen of one TLS connection.

use crate::model::{Actor, Timestamp};

/// A protocol version as it stands on the wire: `0x0303` is TLS 1.2, `0x0304` TLS 1.3.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version(pub u16);

/// What is known of a connection that the gateway began with a TLS record. Every list is capped; what
/// did not fit is missing, never wrong.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// The gateway's last ClientHello.
    pub client: Option<Box<ClientHello>>,
    /// The upstream's last ServerHello; a HelloRetryRequest is none.
    pub server: Option<ServerHello>,
    /// Whether the upstream asked for another ClientHello (RFC 8446 section 4.1.4).
    pub retried: bool,
    /// The upstream's certificates as sent, the leaf first: TLS 1.2 and older only.
    pub chain: Vec<Certificate>,
    /// Whether more certificates were sent than are kept, or some could not be read.
    pub chain_cut: bool,
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
    /// Alerts that were readable, in the order seen.
    pub alerts: Vec<Alert>,
    /// The first bytes on either side that are no TLS record.
    pub foreign: Option<Foreign>,
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
    /// Records of type application_data that are complete, encrypted handshake messages of TLS 1.3 and
    /// alerts included.
    pub application: u32,
    /// Payload bytes of those.
    pub application_bytes: u64,
    /// Length of the record of type application_data that was the first after the ServerHello, on the
    /// gateway's side: 25 is an empty Certificate, 53 or 69 a Finished.
    pub first_application: Option<u16>,
    /// Type and length of the last complete record, and when it ended.
    pub last: Option<(u8, u16)>,
    /// When its last byte was seen.
    pub last_at: Timestamp,
    /// Bytes of a record that is not complete.
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
    /// followed.
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
    /// Group chosen, where it says (TLS 1.3).
    pub group: Option<u16>,
    /// Application protocol chosen; in TLS 1.3 that is encrypted.
    pub alpn: Option<String>,
    /// Whether it goes on with an earlier session, where it says (TLS 1.3).
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
pub struct Certificate {
    /// Subject, as text.
    pub subject: String,
    /// Issuer, as text.
    pub issuer: String,
    /// Names it is for.
    pub names: Vec<SubjectName>,
    /// Seconds since the Unix epoch from which it is good.
    pub not_before: i64,
    /// Seconds since the Unix epoch to which it is good.
    pub not_after: i64,
    /// Whether issuer and subject are the same name.
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

/// An alert that was sent in the clear, or one that its length and place give away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Alert {
    /// Who sent it.
    pub by: Actor,
    /// When.
    pub at: Timestamp,
    /// Level and number (RFC 8446 section 6); none where it is encrypted.
    pub said: Option<(u8, u8)>,
    /// How far the other side was.
    pub other: Step,
    /// How far the sender was.
    pub own: Step,
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
