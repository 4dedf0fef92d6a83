//! The table of TLS scenarios: what goes wrong between a gateway and an upstream that is to speak TLS, what
//! a client of each gateway then sees, and which cause it is.

use std::time::Duration;

use crate::client::Seen;
use crate::gateway::Kind;
use crate::scenario::{self, Check, Departure, Drive, Place, Scenario, Shown, Trick, Verdict};
use crate::tls::pki::{Chain, Identity};
use crate::tls::server::{Close, Server, Then};
use crate::tls::{Client, Versions, openssl};
use crate::upstream::{Behaviour, End};

/// How firmly a verdict may stand that a plain fact on the wire decides.
const PROVEN: &[&str] = &["proven"];

/// The same where the fact is that something is missing, or is seen through encryption.
const SEEN: &[&str] = &["proven", "inferred"];

/// The same where the gateway's library knows and the wire alone does not.
const TOLD: &[&str] = &["proven", "inferred", "underdetermined"];

/// A record that holds an alert of this level and number (RFC 8446 section 6).
macro_rules! alert {
    ($level:literal, $number:literal) => {
        &[21, 3, 3, 0, 2, $level, $number]
    };
}

const OK: Seen = Seen::Status(200);

/// What a client sees of a failed handshake.
const NO_HANDSHAKE: [Seen; 3] = [Seen::Status(502), Seen::Status(503), Seen::Status(500)];

/// What a client sees of a handshake that never ends.
const NO_END: [Seen; 3] = [Seen::Status(504), Seen::Status(503), Seen::Status(500)];

/// What a client sees of a failure after the handshake.
const NO_RESPONSE: [Seen; 3] = [Seen::Status(502); 3];

/// Every failure on a hop with TLS.
pub fn failures() -> Vec<Scenario> {
    let mut all = certificates();
    all.extend(parameters());
    all.extend(client_certificates());
    all.extend(broken_off());
    all.extend(not_tls());
    all.extend(established());
    all
}

/// A scenario behind a gateway that speaks TLS, without anything that serves it.
fn hop(name: &'static str, [nginx, haproxy, apache]: [Seen; 3]) -> Scenario {
    Scenario {
        name,
        place: Place::Upstream,
        behaviour: None,
        socket: None,
        trick: None,
        drive: Drive::Once,
        nginx,
        haproxy,
        apache,
        tls: Some(Client::DEFAULT),
        openssl: None,
        verdict: None,
        or: None,
        late: &[],
        without: &[],
        tolerated_by: None,
        check: None,
    }
}

fn fails(
    name: &'static str,
    cause: &'static str,
    proofs: &'static [&'static str],
    seen: [Seen; 3],
) -> Scenario {
    Scenario {
        verdict: Some(Verdict {
            cause,
            proofs,
            shown: Shown::Packets,
        }),
        ..hop(name, seen)
    }
}

impl Scenario {
    fn library(self, server: Server) -> Self {
        Self {
            behaviour: Some(Behaviour::Tls(server)),
            ..self
        }
    }

    fn openssl(self, server: openssl::Server) -> Self {
        Self {
            openssl: Some(server),
            ..self
        }
    }

    fn records(self, bytes: &'static [u8], end: End) -> Self {
        Self {
            behaviour: Some(Behaviour::Hello(bytes, end)),
            ..self
        }
    }

    fn client(self, client: Client) -> Self {
        Self {
            tls: Some(client),
            ..self
        }
    }

    /// These gateways cannot do it, do it more than once, or much later.
    fn without(self, without: &'static [Kind]) -> Self {
        Self { without, ..self }
    }

    fn driven(self, drive: Drive) -> Self {
        Self { drive, ..self }
    }

    /// Something leaves other causes beside this one.
    fn shown(mut self, shown: Shown) -> Self {
        if let Some(verdict) = &mut self.verdict {
            verdict.shown = shown;
            verdict.proofs = TOLD;
        }
        self
    }
}

/// Each over TLS 1.2, where packets show the certificate, and 1.3, where they do not.
fn certificates() -> Vec<Scenario> {
    let kinds = [
        (
            ["expired_12", "expired_13"],
            "tls.certificate_expired",
            Chain::Expired,
        ),
        (
            ["expired_intermediate_12", "expired_intermediate_13"],
            "tls.certificate_expired",
            Chain::ExpiredIntermediate,
        ),
        (
            ["not_yet_valid_12", "not_yet_valid_13"],
            "tls.certificate_not_yet_valid",
            Chain::NotYetValid,
        ),
        (
            ["self_signed_12", "self_signed_13"],
            "tls.certificate_self_signed",
            Chain::SelfSigned,
        ),
        (
            ["unknown_issuer_12", "unknown_issuer_13"],
            "tls.certificate_untrusted",
            Chain::UnknownIssuer,
        ),
        (
            ["missing_intermediate_12", "missing_intermediate_13"],
            "tls.certificate_untrusted",
            Chain::MissingIntermediate,
        ),
        (
            ["wrong_name_12", "wrong_name_13"],
            "tls.certificate_name_mismatch",
            Chain::WrongName,
        ),
        (
            ["wrong_purpose_12", "wrong_purpose_13"],
            "tls.certificate_purpose",
            Chain::WrongPurpose,
        ),
        (
            ["weak_key_12", "weak_key_13"],
            "tls.certificate_weak",
            Chain::Weak,
        ),
        (
            ["revoked_12", "revoked_13"],
            "tls.certificate_revoked",
            Chain::Revoked,
        ),
    ];
    let mut all = Vec::new();
    for ([in_12, in_13], cause, chain) in kinds {
        let client = Client {
            revocations: chain == Chain::Revoked,
            ..Client::DEFAULT
        };
        let old = fails(in_12, cause, SEEN, NO_HANDSHAKE).client(client);
        let old = if chain == Chain::Weak {
            // The other library refuses such a key.
            old.openssl(openssl::Server {
                chain,
                versions: Versions::Only12,
                ..openssl::Server::HEALTHY
            })
        } else {
            old.library(Server {
                chain,
                versions: Versions::Only12,
                ..Server::HEALTHY
            })
        };
        // No certificate says that it is revoked, or which roots its reader has.
        let silent = [
            Chain::Revoked,
            Chain::UnknownIssuer,
            Chain::MissingIntermediate,
        ];
        let old = if silent.contains(&chain) {
            old.shown(Shown::Partly)
        } else {
            old
        };
        let new = fails(in_13, cause, SEEN, NO_HANDSHAKE)
            .client(client)
            .openssl(openssl::Server {
                chain,
                versions: Versions::Only13,
                ..openssl::Server::HEALTHY
            })
            .shown(Shown::Partly);
        let late: &[Kind] = match chain {
            Chain::WrongName => &[Kind::Nginx, Kind::Apache],
            _ => &[Kind::Nginx],
        };
        all.extend([old, new].map(|one| Scenario { late, ..one }));
    }
    all
}

/// Nothing in common: versions, ciphers, groups, names, application protocols.
fn parameters() -> Vec<Scenario> {
    const VERSION: &str = "tls.version_mismatch";
    const PARAMETERS: &str = "tls.no_common_parameters";
    const NAME: &str = "tls.sni_unrecognised";
    const PROTOCOL: &str = "tls.alpn_mismatch";
    let refused = |name, cause| fails(name, cause, PROVEN, NO_HANDSHAKE);
    let with = |versions, arguments| openssl::Server {
        versions,
        arguments,
        ..openssl::Server::HEALTHY
    };
    let elsewhere = |versions| openssl::Server {
        versions,
        other_name: true,
        ..openssl::Server::HEALTHY
    };
    let http2 = Client {
        http2: true,
        ..Client::DEFAULT
    };
    let nameless = Client {
        sni: false,
        ..Client::DEFAULT
    };
    vec![
        refused("upstream_tls11_only", VERSION).openssl(with(Versions::Only11, &[])),
        refused("upstream_tls13_only", VERSION)
            .client(Client {
                versions: Versions::Only12,
                ..Client::DEFAULT
            })
            .library(Server {
                versions: Versions::Only13,
                ..Server::HEALTHY
            }),
        refused("upstream_tls12_only", VERSION)
            .client(Client {
                versions: Versions::Only13,
                ..Client::DEFAULT
            })
            .openssl(with(Versions::Only12, &[])),
        // Ciphers for RSA keys only, and a key that is none.
        refused("no_cipher_12", PARAMETERS)
            .openssl(with(Versions::Only12, &["-cipher", "AES128-GCM-SHA256"])),
        refused("no_cipher_13", PARAMETERS).openssl(with(
            Versions::Only13,
            &["-ciphersuites", "TLS_AES_128_CCM_8_SHA256"],
        )),
        refused("no_group_12", PARAMETERS)
            .openssl(with(Versions::Only12, &["-groups", "brainpoolP512r1"])),
        refused("no_group_13", PARAMETERS)
            .openssl(with(Versions::Only13, &["-groups", "brainpoolP512r1"])),
        Scenario {
            behaviour: Some(Behaviour::HelloRetry(alert!(2, 40), End::Fin)),
            ..refused("refused_after_retry", PARAMETERS)
        },
        refused("name_unknown_12", NAME).openssl(elsewhere(Versions::Only12)),
        refused("name_unknown_13", NAME).openssl(elsewhere(Versions::Only13)),
        refused("name_missing", NAME)
            .client(nameless)
            .records(alert!(2, 112), End::Fin),
        refused("no_protocol", PROTOCOL)
            .client(http2)
            .openssl(with(Versions::Both, &["-alpn", "http/1.1"]))
            // It tries twice.
            .without(&[Kind::Apache]),
        // This library refuses after its ServerHello, so that the alert is encrypted.
        refused("no_protocol_hidden", PROTOCOL)
            .client(http2)
            .library(Server {
                versions: Versions::Only13,
                alpn: &["http/1.1"],
                ..Server::HEALTHY
            })
            .shown(Shown::Partly)
            .without(&[Kind::Apache]),
        refused("alert_40", PARAMETERS).records(alert!(2, 40), End::Fin),
        refused("alert_70", VERSION).records(alert!(2, 70), End::Fin),
        refused("alert_80", "tls.internal_error").records(alert!(2, 80), End::Fin),
        refused("alert_112", NAME).records(alert!(2, 112), End::Fin),
        refused("alert_120", PROTOCOL).records(alert!(2, 120), End::Fin),
    ]
}

fn client_certificates() -> Vec<Scenario> {
    const REQUIRED: &str = "tls.client_certificate_required";
    const REJECTED: &str = "tls.client_certificate_rejected";
    let asks = |versions| openssl::Server {
        versions,
        asks: true,
        ..openssl::Server::HEALTHY
    };
    let expired = Client {
        identity: Some(Identity::Expired),
        ..Client::DEFAULT
    };
    let stranger = Client {
        identity: Some(Identity::Unknown),
        ..Client::DEFAULT
    };
    // The handshake is over for the gateway before the upstream refuses. HAProxy may learn it before or
    // after it has sent the request.
    let late = |name, cause| Scenario {
        or: Some((Kind::Haproxy, Seen::Status(503))),
        ..fails(name, cause, SEEN, NO_RESPONSE)
    };
    vec![
        fails("client_required_12", REQUIRED, SEEN, NO_HANDSHAKE).openssl(asks(Versions::Only12)),
        fails("client_rejected_12", REJECTED, SEEN, NO_HANDSHAKE)
            .client(stranger)
            .openssl(asks(Versions::Only12))
            .without(&[Kind::Apache]),
        fails("client_expired_12", REJECTED, SEEN, NO_HANDSHAKE)
            .client(expired)
            .openssl(asks(Versions::Only12)),
        late("client_required_13", REQUIRED).openssl(asks(Versions::Only13)),
        late("client_required_13_library", REQUIRED).library(Server {
            versions: Versions::Only13,
            asks: true,
            ..Server::HEALTHY
        }),
        late("client_rejected_13", REJECTED)
            .client(stranger)
            .openssl(asks(Versions::Only13))
            .shown(Shown::Partly)
            .without(&[Kind::Apache]),
        late("client_expired_13", REJECTED)
            .client(expired)
            .openssl(asks(Versions::Only13))
            .shown(Shown::Partly),
    ]
}

/// The upstream goes away in the handshake, or stops.
fn broken_off() -> Vec<Scenario> {
    const CLOSED: &str = "tls.handshake_closed";
    const TIMEOUT: &str = "tls.handshake_timeout";
    let closed = |name| fails(name, CLOSED, PROVEN, NO_HANDSHAKE);
    let silent = |name| fails(name, TIMEOUT, SEEN, NO_END);
    let flight = |end| Server {
        versions: Versions::Only12,
        then: Then::Break(end),
        ..Server::HEALTHY
    };
    vec![
        fails("hello_close_notify", CLOSED, SEEN, NO_HANDSHAKE).records(alert!(1, 0), End::Fin),
        closed("hello_fin").records(b"", End::Fin),
        closed("hello_reset").records(b"", End::Reset),
        closed("flight_fin_12").library(flight(End::Fin)),
        closed("flight_reset_12").library(flight(End::Reset)),
        silent("hello_silence").records(b"", End::Silence),
        silent("flight_silence_12").library(flight(End::Silence)),
    ]
}

/// One side speaks TLS, the other does not.
fn not_tls() -> Vec<Scenario> {
    const BAD_REQUEST: &[u8] =
        b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 4\r\n\r\nbad\n";
    const HTTPS_PORT: &[u8] = b"HTTP/1.1 400 Bad Request\r\nServer: nginx/1.22.1\r\n\
        Content-Type: text/html\r\nContent-Length: 109\r\nConnection: close\r\n\r\n\
        <html>\r\n<head><title>400 The plain HTTP request was sent to HTTPS port</title></head>\r\n\
        <body></body>\r\n</html>\r\n";
    const PLAINTEXT: &str = "tls.plaintext_upstream";
    const TO_TLS_PORT: &str = "tls.plaintext_to_tls_port";
    let plain = |name| fails(name, PLAINTEXT, PROVEN, NO_HANDSHAKE);
    vec![
        plain("plaintext_400").records(BAD_REQUEST, End::Fin),
        Scenario {
            behaviour: Some(Behaviour::Banner(b"SSH-2.0-OpenSSH_9.2\r\n")),
            ..plain("plaintext_ssh")
        },
        Scenario {
            behaviour: Some(Behaviour::Banner(b"220 mail.lab.test ESMTP\r\n")),
            ..plain("plaintext_smtp")
        },
        Scenario {
            tls: None,
            ..fails(
                "to_tls_port_alert",
                TO_TLS_PORT,
                PROVEN,
                [Seen::Raw, Seen::Status(502), Seen::Status(502)],
            )
        }
        .library(Server::HEALTHY),
        Scenario {
            tls: None,
            behaviour: Some(Behaviour::Reply(HTTPS_PORT, End::Fin)),
            ..fails(
                "to_tls_port_text",
                TO_TLS_PORT,
                SEEN,
                [Seen::Status(400); 3],
            )
            // The text is in the body, which is not read.
            .shown(Shown::Perhaps)
        },
    ]
}

/// After the handshake.
fn established() -> Vec<Scenario> {
    const CLOSED: &str = "tcp.closed_no_response";
    const RESET: &str = "tcp.reset_no_response";
    const CORRUPT: &str = "tls.record_corrupt";
    const TEXT: &[u8] = b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n";
    let then = |versions, then| Server {
        versions,
        then,
        ..Server::HEALTHY
    };
    // Tickets come while the request is under way, and look like a response.
    let bare = |versions, what| Server {
        tickets: false,
        ..then(versions, what)
    };
    let ends = |name, cause, versions, close| {
        fails(name, cause, SEEN, NO_RESPONSE).library(bare(versions, Then::Reply(b"", close)))
    };
    let ends_with_tickets = |name, cause, close| {
        fails(name, cause, SEEN, NO_RESPONSE)
            .library(then(Versions::Only13, Then::Reply(b"", close)))
            .shown(Shown::Perhaps)
    };
    let corrupt = |name, versions| {
        fails(name, CORRUPT, SEEN, NO_RESPONSE)
            .library(then(versions, Then::Corrupt))
            .driven(Drive::Twice)
            .shown(Shown::Library)
    };
    let injected = |name, versions| {
        fails(name, CORRUPT, PROVEN, NO_RESPONSE)
            .library(then(versions, Then::Inject(TEXT)))
            .driven(Drive::Twice)
    };
    let silent = |name, versions| {
        let seen = [Seen::Status(504), Seen::Status(504), Seen::Status(502)];
        let proofs = &["inferred", "underdetermined"];
        let silence = Then::Reply(b"", Close::Without(End::Silence));
        fails(name, "upstream.slow_first_byte", proofs, seen).library(bare(versions, silence))
    };
    // Where it ends between two records, whether anything is missing is hidden.
    let long = |name, versions, inside| {
        let seen = [Seen::Cut(200); 3];
        fails(name, "tls.truncated", SEEN, seen).library(cut_off(versions, inside))
    };
    let fin = Close::Without(End::Fin);
    let reset = Close::Without(End::Reset);
    vec![
        // A gateway that closes on the alert, before the FIN comes, is taken for one that gave up.
        ends(
            "no_response_notify_12",
            CLOSED,
            Versions::Only12,
            Close::Notify,
        )
        .shown(Shown::Perhaps),
        ends(
            "no_response_notify_13",
            CLOSED,
            Versions::Only13,
            Close::Notify,
        )
        .shown(Shown::Perhaps),
        ends("no_response_fin_12", CLOSED, Versions::Only12, fin),
        ends("no_response_fin_13", CLOSED, Versions::Only13, fin),
        ends("no_response_reset_12", RESET, Versions::Only12, reset),
        ends("no_response_reset_13", RESET, Versions::Only13, reset),
        ends_with_tickets("no_response_tickets_fin", CLOSED, fin),
        ends_with_tickets("no_response_tickets_reset", RESET, reset),
        corrupt("corrupt_12", Versions::Only12),
        corrupt("corrupt_13", Versions::Only13),
        injected("injected_12", Versions::Only12),
        injected("injected_13", Versions::Only13),
        // The upstream's FIN never arrives, so that the next request runs into the closed socket.
        Scenario {
            trick: Some(Trick::DropFin),
            ..fails("tls_stale_reuse", "pool.stale_reuse", SEEN, NO_RESPONSE)
        }
        .library(then(Versions::Both, Then::CloseIdle(Duration::ZERO, fin)))
        .driven(Drive::Again),
        silent("silent_12", Versions::Only12),
        silent("silent_13", Versions::Only13),
        long("long_body_cut_12", Versions::Only12, false).shown(Shown::Perhaps),
        long("long_body_cut_13", Versions::Only13, false).shown(Shown::Perhaps),
        long("long_body_cut_in_record_12", Versions::Only12, true),
        long("long_body_cut_in_record_13", Versions::Only13, true),
    ]
}

/// What an agent must never let out, in a response inside TLS.
pub const SECRET: &str = "planted-7f3a91";
const LEAKY: &[u8] = b"HTTP/1.1 200 OK\r\nSet-Cookie: id=planted-7f3a91\r\nX-Cache : miss\r\n\
    Location: /a?token=planted-7f3a91\r\nContent-Length: 3\r\n\r\nok\n";

/// What upstreams do wrong in HTTP, inside TLS of these versions: what an agent names that reads it.
pub fn inside(versions: Versions) -> Vec<Scenario> {
    const SHORT: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nonly this";
    const NO_LAST: &[u8] = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nok\n\r\n";
    let served = |plain: Scenario, bytes, close| {
        let server = Server {
            versions,
            then: Then::Reply(bytes, close),
            ..Server::HEALTHY
        };
        Scenario {
            tls: Some(Client::DEFAULT),
            ..plain.library(server)
        }
    };
    let cut = |name, bytes| {
        let cut = fails(name, "tls.truncated", PROVEN, [Seen::Cut(200); 3]);
        served(cut, bytes, Close::Without(End::Fin))
    };
    let mut all: Vec<Scenario> = scenario::failures()
        .into_iter()
        .filter(|plain| plain.place == Place::Upstream && plain.trick.is_none())
        .filter_map(|plain| match plain.behaviour {
            // An alert inside of TLS is nothing that anybody sends.
            Some(Behaviour::Reply([21, 3, ..], _)) => None,
            Some(Behaviour::Answer(bytes) | Behaviour::Reply(bytes, End::Fin)) => {
                Some(served(plain, bytes, Close::Notify))
            }
            Some(Behaviour::Reply(bytes, end)) => Some(served(plain, bytes, Close::Without(end))),
            _ => None,
        })
        .collect();
    let leaky = fails(
        "leaky",
        "http1.header_syntax",
        PROVEN,
        [Seen::Status(502); 3],
    );
    all.push(served(leaky, LEAKY, Close::Notify));
    for (name, inside) in [("long_body_cut", false), ("long_body_cut_in_record", true)] {
        let long = cut(name, SHORT);
        all.push(long.library(cut_off(versions, inside)));
    }
    all.push(cut("body_cut", SHORT));
    all.push(cut("chunks_cut", NO_LAST));
    all
}

/// The first half of a body of several records, and then FIN without a `close_notify`.
const fn cut_off(versions: Versions, inside: bool) -> Server {
    Server {
        versions,
        tickets: false,
        then: Then::Cut {
            promised: 200_000,
            sent: 100_000,
            inside,
            end: End::Fin,
        },
        ..Server::HEALTHY
    }
}

/// A good response and a bad one of the same upstream inside TLS: the second breaks a rule.
pub fn compared(versions: Versions) -> Scenario {
    let rule = "http1.header_syntax";
    let seen = [Seen::Status(502); 3];
    let server = Server {
        versions,
        then: Then::AnswerThen(LEAKY, Close::Notify),
        ..Server::HEALTHY
    };
    fails("compared", rule, PROVEN, seen)
        .library(server)
        .driven(Drive::Twice)
}

/// Healthy traffic, and what looks like a failure and is none.
pub fn healthy() -> Vec<Scenario> {
    const EOF_BODY: &[u8] = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nok\n";
    const SHORT: Duration = Duration::from_millis(100);
    let good = |name| hop(name, [OK; 3]);
    let library = |name, server| good(name).library(server);
    let only = |versions, then| Server {
        versions,
        then,
        ..Server::HEALTHY
    };
    let known = Client {
        identity: Some(Identity::Known),
        ..Client::DEFAULT
    };
    let asks = |versions| Server {
        versions,
        asks: true,
        ..Server::HEALTHY
    };
    let idle = |versions, close| only(versions, Then::CloseIdle(SHORT, close));
    let bare = Close::Without(End::Fin);
    let silence = Then::Reply(b"", Close::Without(End::Silence));
    let left = |name, versions, departure| {
        hop(name, [Seen::Nothing; 3])
            .library(only(versions, silence))
            .driven(Drive::Leave(departure))
            // It waits on for the upstream.
            .without(&[Kind::Apache])
    };
    let checked = |name, check| Scenario {
        check: Some(check),
        ..library(name, Server::HEALTHY).driven(Drive::Many(100))
    };
    vec![
        library("many_12", only(Versions::Only12, Then::Answer)).driven(Drive::Many(300)),
        library("many_13", only(Versions::Only13, Then::Answer)).driven(Drive::Many(300)),
        library(
            "retried",
            Server {
                retries: true,
                ..Server::HEALTHY
            },
        )
        .driven(Drive::Many(3)),
        library("client_accepted_12", asks(Versions::Only12))
            .client(known)
            .driven(Drive::Many(3)),
        library("client_accepted_13", asks(Versions::Only13))
            .client(known)
            .driven(Drive::Many(3)),
        good("openssl_12").openssl(openssl::Server {
            versions: Versions::Only12,
            ..openssl::Server::HEALTHY
        }),
        good("openssl_13").openssl(openssl::Server {
            versions: Versions::Only13,
            ..openssl::Server::HEALTHY
        }),
        good("revocations_checked")
            .client(Client {
                revocations: true,
                ..Client::DEFAULT
            })
            .library(Server::HEALTHY),
        // The name is not known, but that is only a warning.
        library(
            "name_warning",
            Server {
                before: alert!(1, 112),
                ..only(Versions::Only12, Then::Answer)
            },
        ),
        // The second connection resumes the session of the first.
        library("resumed_12", idle(Versions::Only12, Close::Notify)).driven(Drive::Again),
        library("resumed_13", idle(Versions::Only13, Close::Notify)).driven(Drive::Again),
        library("idle_fin_12", idle(Versions::Only12, bare)).driven(Drive::Again),
        library("idle_fin_13", idle(Versions::Only13, bare)).driven(Drive::Again),
        // nginx closes a connection that it has no use for.
        library("gateway_idle_12", only(Versions::Only12, Then::Answer))
            .driven(Drive::Idle)
            .without(&[Kind::Haproxy, Kind::Apache]),
        library("gateway_idle_13", only(Versions::Only13, Then::Answer))
            .driven(Drive::Idle)
            .without(&[Kind::Haproxy, Kind::Apache]),
        library("large_12", only(Versions::Only12, Then::Flood(4 << 20))),
        library("large_13", only(Versions::Only13, Then::Flood(4 << 20))),
        library(
            "eof_body_12",
            only(Versions::Only12, Then::Reply(EOF_BODY, Close::Notify)),
        ),
        library(
            "eof_body_13",
            only(Versions::Only13, Then::Reply(EOF_BODY, Close::Notify)),
        ),
        left("left_12", Versions::Only12, Departure::Fin),
        left("left_13", Versions::Only13, Departure::Reset),
        library("unread_13", only(Versions::Only13, Then::Flood(16 << 20))).driven(Drive::GoAway),
        library(
            "slow_reader_13",
            only(Versions::Only13, Then::Flood(8 << 20)),
        )
        .driven(Drive::Crawl),
        checked("tls_checked_tcp", Check::Tcp),
        checked("tls_checked", Check::Tls),
        checked("tls_checked_http", Check::Http),
    ]
}
