//! Records and handshake messages as they stand on the wire.

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose, date_time_ymd,
};

use crate::engine::tests::sim::Sim;

const TLS12: u16 = 0x0303;
const TLS13: u16 = 0x0304;

/// Length of a Finished of TLS 1.3 with a digest of 48 bytes, and of an alert, in their records.
pub(super) const FINISHED: usize = 69;
pub(super) const ALERT: usize = 19;
/// A ticket of OpenSSL.
pub(super) const TICKET: usize = 250;

pub(super) fn record(kind: u8, body: &[u8]) -> Vec<u8> {
    let length = u16::try_from(body.len()).unwrap();
    let mut bytes = vec![kind, 3, 3];
    bytes.extend(length.to_be_bytes());
    bytes.extend(body);
    bytes
}

/// A record of application data whose payload has this length.
pub(super) fn data(length: usize) -> Vec<u8> {
    record(23, &vec![0xa5; length])
}

pub(super) fn alert(level: u8, number: u8) -> Vec<u8> {
    record(21, &[level, number])
}

/// An encrypted alert of TLS 1.2 with AES-GCM.
pub(super) fn alert_12() -> Vec<u8> {
    record(21, &[0x5a; 26])
}

pub(super) fn change_cipher() -> Vec<u8> {
    record(20, &[1])
}

fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len()).unwrap();
    let mut bytes = vec![kind];
    bytes.extend(&length.to_be_bytes()[1..]);
    bytes.extend(body);
    bytes
}

fn handshake(kind: u8, body: &[u8]) -> Vec<u8> {
    record(22, &message(kind, body))
}

fn vector16(body: &[u8]) -> Vec<u8> {
    let mut bytes = u16::try_from(body.len()).unwrap().to_be_bytes().to_vec();
    bytes.extend(body);
    bytes
}

fn vector24(body: &[u8]) -> Vec<u8> {
    let mut bytes = u32::try_from(body.len()).unwrap().to_be_bytes()[1..].to_vec();
    bytes.extend(body);
    bytes
}

fn vector8(body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![u8::try_from(body.len()).unwrap()];
    bytes.extend(body);
    bytes
}

fn extension(number: u16, body: &[u8]) -> Vec<u8> {
    let mut bytes = number.to_be_bytes().to_vec();
    bytes.extend(vector16(body));
    bytes
}

fn numbers(numbers: &[u16]) -> Vec<u8> {
    numbers
        .iter()
        .flat_map(|number| number.to_be_bytes())
        .collect()
}

pub(super) fn client_hello(sni: Option<&str>, alpn: &[&str], versions: &[u16]) -> Vec<u8> {
    let mut extensions = Vec::new();
    if let Some(name) = sni {
        let mut entry = vec![0];
        entry.extend(vector16(name.as_bytes()));
        extensions.extend(extension(0, &vector16(&entry)));
    }
    if !alpn.is_empty() {
        let list: Vec<u8> = alpn
            .iter()
            .flat_map(|name| vector8(name.as_bytes()))
            .collect();
        extensions.extend(extension(16, &vector16(&list)));
    }
    extensions.extend(extension(10, &vector16(&numbers(&[0x1d, 0x17]))));
    extensions.extend(extension(13, &vector16(&numbers(&[0x0403, 0x0804]))));
    extensions.extend(extension(43, &vector8(&numbers(versions))));
    let mut body = numbers(&[TLS12]);
    body.extend([7; 32]);
    body.extend(vector8(&[9; 32]));
    body.extend(vector16(&numbers(&[0x1302, 0x1301, 0xc02f])));
    body.extend(vector8(&[0]));
    body.extend(vector16(&extensions));
    handshake(1, &body)
}

fn server_hello(version: u16, cipher: u16, alpn: Option<&str>) -> Vec<u8> {
    let mut extensions = Vec::new();
    let mut session = vec![8; 32];
    if version == TLS13 {
        extensions.extend(extension(43, &numbers(&[TLS13])));
        let mut share = numbers(&[0x1d]);
        share.extend(vector16(&[3; 32]));
        extensions.extend(extension(51, &share));
        session = vec![9; 32];
    }
    if let Some(name) = alpn {
        extensions.extend(extension(16, &vector16(&vector8(name.as_bytes()))));
    }
    let mut body = numbers(&[TLS12]);
    body.extend([5; 32]);
    body.extend(vector8(&session));
    body.extend(numbers(&[cipher]));
    body.push(0);
    body.extend(vector16(&extensions));
    handshake(2, &body)
}

/// The upstream's flight of TLS 1.3, up to its Finished.
pub(super) fn server_13() -> Vec<u8> {
    let rest = [30, 820, 281, FINISHED].map(data).concat();
    [server_hello(TLS13, 0x1302, None), change_cipher(), rest].concat()
}

/// A ServerHello of TLS 1.3 with an encrypted alert behind it.
pub(super) fn server_13_refusing() -> Vec<u8> {
    [
        server_hello(TLS13, 0x1302, None),
        change_cipher(),
        data(ALERT),
    ]
    .concat()
}

/// The flight of TLS 1.3 with a CertificateRequest.
pub(super) fn server_13_asking() -> Vec<u8> {
    let rest = [30, 62, 820, 281, FINISHED].map(data).concat();
    [server_hello(TLS13, 0x1302, None), change_cipher(), rest].concat()
}

/// The gateway's Finished of TLS 1.3.
pub(super) fn finished_13() -> Vec<u8> {
    [change_cipher(), data(FINISHED)].concat()
}

/// The gateway's Finished behind a certificate whose record has this length.
pub(super) fn finished_13_with(certificate: usize) -> Vec<u8> {
    let certificate = match certificate {
        25 => data(25),
        some => [data(some), data(281)].concat(),
    };
    [change_cipher(), certificate, data(FINISHED)].concat()
}

/// The upstream's flight of TLS 1.2 with this chain, up to its ServerHelloDone.
pub(super) fn server_12(chain: &[Vec<u8>], asking: bool, alpn: Option<&str>) -> Vec<u8> {
    let list: Vec<u8> = chain.iter().flat_map(|der| vector24(der)).collect();
    let mut bytes = server_hello(TLS12, 0xc02f, alpn);
    bytes.extend(handshake(11, &vector24(&list)));
    bytes.extend(handshake(12, &[3; 300]));
    if asking {
        let mut body = vector8(&[1, 64]);
        body.extend(vector16(&numbers(&[0x0403, 0x0804])));
        body.extend(vector16(&[]));
        bytes.extend(handshake(13, &body));
    }
    bytes.extend(handshake(14, &[]));
    bytes
}

/// The gateway's flight of TLS 1.2, with the certificates that it gives where it was asked.
pub(super) fn client_12(given: Option<&[Vec<u8>]>) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Some(given) = given {
        let list: Vec<u8> = given.iter().flat_map(|der| vector24(der)).collect();
        bytes.extend(handshake(11, &vector24(&list)));
    }
    bytes.extend(handshake(16, &[4; 33]));
    bytes.extend(finished_12());
    bytes
}

/// ChangeCipherSpec and Finished of either side of TLS 1.2.
pub(super) fn finished_12() -> Vec<u8> {
    [change_cipher(), record(22, &[0x5a; 40])].concat()
}

/// What kind of certificate an upstream shows. The simulation runs in November 2023.
#[derive(Clone, Copy, Default)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flaw of its own")]
pub(super) struct Shown {
    pub(super) expired: bool,
    pub(super) early: bool,
    pub(super) self_signed: bool,
    pub(super) for_clients: bool,
}

/// A certificate for `app.test`, as DER.
pub(super) fn certificate(shown: Shown) -> Vec<Vec<u8>> {
    let mut params = CertificateParams::new(vec!["app.test".to_owned()]).unwrap();
    params.distinguished_name.push(DnType::CommonName, "app");
    params.not_before = date_time_ymd(if shown.early { 2030 } else { 2020 }, 1, 1);
    params.not_after = date_time_ymd(if shown.expired { 2021 } else { 2040 }, 1, 1);
    params.extended_key_usages = vec![if shown.for_clients {
        ExtendedKeyUsagePurpose::ClientAuth
    } else {
        ExtendedKeyUsagePurpose::ServerAuth
    }];
    let key = KeyPair::generate().unwrap();
    if shown.self_signed {
        return vec![params.self_signed(&key).unwrap().der().to_vec()];
    }
    let mut authority = CertificateParams::new(Vec::new()).unwrap();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    authority.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    authority
        .distinguished_name
        .push(DnType::CommonName, "test authority");
    let issuer = CertifiedIssuer::self_signed(authority, KeyPair::generate().unwrap()).unwrap();
    vec![params.signed_by(&key, &issuer).unwrap().der().to_vec()]
}

pub(super) const BOTH: &[u16] = &[TLS13, TLS12];

/// The usual ClientHello.
pub(super) fn hello() -> Vec<u8> {
    client_hello(Some("app.test"), &[], BOTH)
}

impl Sim {
    /// Opens the hop and sends a ClientHello, which is acknowledged.
    pub(super) fn hello(&mut self, hello: &[u8]) -> &mut Self {
        self.open().send(hello).ack()
    }

    /// A complete handshake of TLS 1.3.
    pub(super) fn handshake_13(&mut self) -> &mut Self {
        self.hello(&hello())
            .reply(&server_13())
            .send(&finished_13())
            .ack()
    }

    /// A complete handshake of TLS 1.2.
    pub(super) fn handshake_12(&mut self, hello: &[u8], shown: Shown) -> &mut Self {
        self.hello(hello)
            .reply(&server_12(&certificate(shown), false, None))
            .send(&client_12(None))
            .ack()
            .reply(&finished_12())
    }

    /// Two tickets of TLS 1.3.
    pub(super) fn tickets(&mut self) -> &mut Self {
        self.reply(&data(TICKET)).reply(&data(TICKET))
    }

    pub(super) fn ask(&mut self) -> &mut Self {
        self.send(&data(180)).ack()
    }

    pub(super) fn answer(&mut self) -> &mut Self {
        self.reply(&data(221)).reply(&data(1400))
    }
}
