//! TLS: refusals, silence and closes in the handshake and behind it. Certificates are bytes that were made
//! once, so that the captures stay what they are.

use super::Golden;
use super::scenario::{Scenario, scenario};

/// For `app.test`, good in 2020, from an authority that is not sent.
const EXPIRED: &[u8] = include_bytes!("tls/expired.der");
/// For `app.test`, good from 2020 to 2040, its own issuer.
const SELF_SIGNED: &[u8] = include_bytes!("tls/self_signed.der");

const TLS13: u16 = 0x0304;
const TLS12: u16 = 0x0303;
/// An encrypted alert of TLS 1.3.
const ALERT: usize = 19;

pub(crate) fn goldens() -> Vec<Golden> {
    [
        handshakes(),
        certificates(),
        client_certificates(),
        exchanges(),
    ]
    .concat()
}

fn record(kind: u8, body: &[u8]) -> Vec<u8> {
    [&[kind, 3, 3][..], &vector(2, body)].concat()
}

fn data(length: usize) -> Vec<u8> {
    record(23, &vec![0xa5; length])
}

fn alert(level: u8, number: u8) -> Vec<u8> {
    record(21, &[level, number])
}

fn handshake(kind: u8, body: &[u8]) -> Vec<u8> {
    record(22, &[&[kind][..], &vector(3, body)].concat())
}

/// A vector with a length of so many bytes.
fn vector(size: usize, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len()).unwrap().to_be_bytes();
    [&length[4 - size..], body].concat()
}

fn extension(number: u16, body: &[u8]) -> Vec<u8> {
    [&number.to_be_bytes()[..], &vector(2, body)].concat()
}

fn client_hello(name: Option<&str>) -> Vec<u8> {
    let mut extensions = Vec::new();
    if let Some(name) = name {
        let entry = [&[0][..], &vector(2, name.as_bytes())].concat();
        extensions.extend(extension(0, &vector(2, &entry)));
    }
    extensions.extend(extension(10, &vector(2, &[0, 0x1d, 0, 0x17])));
    extensions.extend(extension(13, &vector(2, &[4, 3, 8, 4])));
    extensions.extend(extension(43, &vector(1, &[3, 4, 3, 3])));
    let body = [
        &TLS12.to_be_bytes()[..],
        &[7; 32],
        &vector(1, &[9; 32]),
        &vector(2, &[0x13, 2, 0x13, 1, 0xc0, 0x2f]),
        &[1, 0],
        &vector(2, &extensions),
    ];
    handshake(1, &body.concat())
}

fn server_hello(version: u16, cipher: u16) -> Vec<u8> {
    let mut extensions = Vec::new();
    if version == TLS13 {
        extensions.extend(extension(43, &TLS13.to_be_bytes()));
        let share = [&[0, 0x1d][..], &vector(2, &[3; 32])].concat();
        extensions.extend(extension(51, &share));
    }
    let session = if version == TLS13 { [9; 32] } else { [8; 32] };
    let body = [
        &TLS12.to_be_bytes()[..],
        &[5; 32],
        &vector(1, &session),
        &cipher.to_be_bytes(),
        &[0],
        &vector(2, &extensions),
    ];
    handshake(2, &body.concat())
}

fn change_cipher() -> Vec<u8> {
    record(20, &[1])
}

impl Scenario {
    fn hello(&mut self) -> &mut Self {
        self.open()
            .send(&client_hello(Some("app.test")))
            .upstream_acks()
    }

    /// The upstream's flight of TLS 1.3.
    fn flight_13(&mut self) -> &mut Self {
        let rest = [30, 820, 281, 69].map(data).concat();
        let flight = [server_hello(TLS13, 0x1302), change_cipher(), rest].concat();
        self.reply(&flight)
    }

    /// The upstream's flight of TLS 1.2.
    fn flight_12(&mut self, certificate: &[u8], asking: bool) -> &mut Self {
        let mut flight = server_hello(TLS12, 0xc02f);
        flight.extend(handshake(11, &vector(3, &vector(3, certificate))));
        flight.extend(handshake(12, &[3; 300]));
        if asking {
            flight.extend(handshake(13, &[1, 64, 0, 2, 4, 3, 0, 0]));
        }
        flight.extend(handshake(14, &[]));
        self.reply(&flight)
    }

    fn finished_13(&mut self) -> &mut Self {
        self.send(&[change_cipher(), data(69)].concat())
            .upstream_acks()
    }

    /// Both sides finish a handshake of TLS 1.2.
    fn finished_12(&mut self) -> &mut Self {
        let finished = [change_cipher(), record(22, &[0x5a; 40])].concat();
        self.send(&[handshake(16, &[4; 33]), finished.clone()].concat());
        self.upstream_acks().reply(&finished)
    }

    fn handshake_13(&mut self) -> &mut Self {
        self.hello().flight_13().finished_13()
    }

    fn tickets(&mut self) -> &mut Self {
        self.reply(&data(250)).reply(&data(250))
    }

    fn ask(&mut self) -> &mut Self {
        self.send(&data(180)).upstream_acks()
    }

    fn refused(&mut self, answer: &[u8]) -> &mut Self {
        self.reply(answer).upstream_fin().gateway_fin()
    }
}

fn handshakes() -> Vec<Golden> {
    vec![
        (
            "tls/plaintext_upstream",
            "The upstream answers a ClientHello with HTTP.",
            scenario(|hop| {
                hop.hello().refused(b"HTTP/1.1 400 Bad Request\r\n\r\n");
            }),
        ),
        (
            "tls/ssh_banner_first",
            "The upstream greets with SSH before the ClientHello comes.",
            scenario(|hop| {
                hop.open().reply(b"SSH-2.0-OpenSSH_9.2\r\n");
                hop.send(&client_hello(None)).upstream_acks().gateway_fin();
            }),
        ),
        (
            "tls/plaintext_to_tls_port",
            "The upstream answers an HTTP request with a TLS alert.",
            scenario(|hop| {
                hop.open().request().refused(&alert(2, 70));
            }),
        ),
        (
            "tls/protocol_version",
            "The upstream has none of the versions offered.",
            scenario(|hop| {
                hop.hello().refused(&alert(2, 70));
            }),
        ),
        (
            "tls/handshake_failure",
            "The upstream finds no parameters in common.",
            scenario(|hop| {
                hop.hello().refused(&alert(2, 40));
            }),
        ),
        (
            "tls/handshake_failure_without_a_name",
            "The same, and the gateway named no server.",
            scenario(|hop| {
                hop.open().send(&client_hello(None)).upstream_acks();
                hop.refused(&alert(2, 40));
            }),
        ),
        (
            "tls/unrecognized_name",
            "The upstream does not know the name.",
            scenario(|hop| {
                hop.hello().refused(&alert(2, 112));
            }),
        ),
        (
            "tls/internal_error",
            "The upstream breaks.",
            scenario(|hop| {
                hop.hello().refused(&alert(2, 80));
            }),
        ),
        (
            "tls/closed",
            "The upstream closes in answer to the ClientHello.",
            scenario(|hop| {
                hop.hello().upstream_fin().gateway_fin();
            }),
        ),
        (
            "tls/reset",
            "The upstream resets inside its flight.",
            scenario(|hop| {
                hop.hello().flight_13().upstream_rst();
            }),
        ),
        (
            "tls/no_answer",
            "The upstream never answers the ClientHello, which its host acknowledged.",
            scenario(|hop| {
                hop.hello().ms(5000).gateway_fin();
            }),
        ),
        (
            "tls/bad_record",
            "The gateway cannot decrypt what the upstream sent.",
            scenario(|hop| {
                hop.hello().flight_13().send(&alert(2, 20)).gateway_fin();
            }),
        ),
        (
            "tls/foreign_bytes",
            "Plaintext comes where the response should.",
            scenario(|hop| {
                hop.handshake_13().tickets().ask();
                hop.reply(b"HTTP/1.1 400 Bad Request\r\n\r\n");
                hop.send(&data(ALERT)).gateway_fin();
            }),
        ),
    ]
}

fn certificates() -> Vec<Golden> {
    vec![
        (
            "tls/expired_12",
            "The gateway says that the certificate has expired, and TLS 1.2 shows that it has.",
            scenario(|hop| {
                hop.hello().flight_12(EXPIRED, false);
                hop.send(&alert(2, 45)).gateway_fin();
            }),
        ),
        (
            "tls/expired_13",
            "The same in TLS 1.3, which hides the certificate.",
            scenario(|hop| {
                hop.hello().flight_13().send(&alert(2, 45)).gateway_fin();
            }),
        ),
        (
            "tls/self_signed_12",
            "The gateway does not know the issuer: the certificate itself.",
            scenario(|hop| {
                hop.hello().flight_12(SELF_SIGNED, false);
                hop.send(&alert(2, 48)).gateway_fin();
            }),
        ),
        (
            "tls/unknown_issuer_13",
            "The gateway does not know the issuer, and TLS 1.3 hides who that is.",
            scenario(|hop| {
                hop.hello().flight_13().send(&alert(2, 48)).gateway_fin();
            }),
        ),
        (
            "tls/hidden_refusal",
            "The gateway closes with a record as long as an alert instead of its Finished.",
            scenario(|hop| {
                hop.hello().flight_13();
                hop.send(&[change_cipher(), data(ALERT)].concat())
                    .gateway_fin();
            }),
        ),
        (
            "tls/only_a_handshake",
            "The gateway completes the handshake and closes: a check, or nginx with a certificate that it does not accept.",
            scenario(|hop| {
                hop.handshake_13()
                    .send(&data(ALERT))
                    .gateway_fin()
                    .upstream_fin();
            }),
        ),
    ]
}

fn client_certificates() -> Vec<Golden> {
    vec![
        (
            "tls/client_certificate_missing_12",
            "The upstream asks for a certificate, gets none and refuses.",
            scenario(|hop| {
                hop.hello().flight_12(SELF_SIGNED, true);
                let none = handshake(11, &[0, 0, 0]);
                let finished = [change_cipher(), record(22, &[0x5a; 40])].concat();
                hop.send(&[none, handshake(16, &[4; 33]), finished].concat());
                hop.upstream_acks().refused(&alert(2, 40));
            }),
        ),
        (
            "tls/client_certificate_missing_13",
            "The same in TLS 1.3: the refusal comes behind the request.",
            scenario(|hop| {
                hop.hello().flight_13();
                hop.send(&[change_cipher(), data(25), data(69)].concat());
                hop.ask().reply(&data(ALERT)).upstream_rst();
            }),
        ),
        (
            "tls/client_certificate_optional_13",
            "The upstream asks for a certificate and does without.",
            scenario(|hop| {
                hop.hello().flight_13();
                hop.send(&[change_cipher(), data(25), data(69)].concat());
                hop.upstream_acks().tickets().ask().reply(&data(600));
                hop.ms(1000).reply(&data(ALERT)).close();
            }),
        ),
    ]
}

fn exchanges() -> Vec<Golden> {
    vec![
        (
            "tls/healthy_13",
            "Three exchanges, and an orderly close.",
            scenario(|hop| {
                hop.handshake_13().tickets();
                for _ in 0..3 {
                    hop.ask().reply(&data(600)).ms(50);
                }
                hop.reply(&data(ALERT)).upstream_fin();
                hop.send(&data(ALERT)).gateway_fin();
            }),
        ),
        (
            "tls/closed_without_response",
            "The upstream closes behind the request, the tickets behind it.",
            scenario(|hop| {
                hop.hello().flight_13();
                hop.send(&[change_cipher(), data(69)].concat());
                hop.ask().tickets().ms(40).upstream_fin().gateway_fin();
            }),
        ),
        (
            "tls/stale_reuse",
            "The upstream closes the idle connection in order, and the gateway uses it.",
            scenario(|hop| {
                hop.handshake_13().tickets().ask().reply(&data(600));
                hop.ms(5000).reply(&data(ALERT)).upstream_fin();
                hop.send(&data(180)).upstream_rst();
            }),
        ),
        (
            "tls/slow_first_byte",
            "TLS 1.2: the upstream never answers the request.",
            scenario(|hop| {
                hop.hello().flight_12(SELF_SIGNED, false).finished_12();
                hop.ask()
                    .ms(5000)
                    .send(&record(21, &[0x5a; 26]))
                    .gateway_fin();
            }),
        ),
        (
            "tls/half_a_response",
            "The upstream resets inside a response whose end is hidden.",
            scenario(|hop| {
                hop.handshake_13().tickets().ask().reply(&data(600)).ms(100);
                hop.upstream_rst();
            }),
        ),
    ]
}
