//! TLS: refusals, silence and closes in the handshake and behind it, and healthy connections of all shapes.

mod healthy;
mod library;
mod plain;
mod splits;
mod wire;

use self::wire::{
    ALERT, BOTH, FINISHED, Shown, alert, alert_12, certificate, change_cipher, client_12,
    client_hello, data, finished_12, finished_13, finished_13_with, hello, server_12, server_13,
    server_13_asking, server_13_refusing,
};
use super::sim::{Sim, TURN, both};
use crate::model::{Cause, Departure, EvidenceSource, HopEvent, Input, Proof};

/// The one event of an upstream that answers the ClientHello with these bytes and closes.
#[track_caller]
fn answered(hello: &[u8], bytes: &[u8], cause: Cause, proof: Proof) -> HopEvent {
    let mut event = None;
    both(|sim| {
        sim.hello(hello).reply(bytes).upstream_fin().gateway_fin();
        event = Some(sim.expect(cause, proof));
    });
    let event = event.unwrap();
    let tls = event
        .tls
        .as_ref()
        .expect("an event of TLS says what is known");
    assert_eq!(tls.source, EvidenceSource::Packet);
    assert_eq!(event.phase, crate::model::Phase::Tls);
    event
}

#[test]
fn plaintext_upstreams_are_named() {
    for (bytes, name) in [
        (&b"HTTP/1.1 400 Bad Request\r\n\r\n"[..], "400 Bad Request"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "SSH"),
        (b"220 mail ESMTP\r\n", "SMTP"),
        (b"J\0\0\0\x0a8.0.36\0", "MySQL"),
        (b"E\0\0\0\x68SFATAL\0", "PostgreSQL"),
        (b"AMQP\0\0\x09\x01", "AMQP"),
        (b"-ERR unknown command\r\n", "Redis"),
        (b"\0\0\x12\x04\0\0\0\0\0\0\x03\0\0\0\x64", "HTTP/2"),
    ] {
        let event = answered(&hello(), bytes, Cause::TlsPlaintextUpstream, Proof::Proven);
        let text = &event.evidence[0].text;
        assert!(text.contains(name), "{text}");
    }
}

#[test]
fn a_400_that_asks_for_tls() {
    let page = b"<title>400 The plain HTTP request was sent to HTTPS port</title>";
    let head = format!(
        "HTTP/1.1 400 Bad Request\r\nContent-Length: {}\r\n\r\n",
        page.len()
    );
    both(|sim| {
        sim.open().request().reply(head.as_bytes());
        sim.reply(&page[..30]).reply(&page[30..]).upstream_fin();
        let event = sim
            .gateway_fin()
            .expect(Cause::TlsPlaintextToTlsPort, Proof::Inferred);
        assert_eq!(event.exchange.unwrap().status, Some(400));
    });
    both(|sim| {
        let other = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 3\r\n\r\nno\n";
        sim.open().request().reply(other).upstream_fin();
        sim.gateway_fin().expect_none();
    });
}

#[test]
fn a_banner_before_the_client_hello_is_its_answer() {
    both(|sim| {
        sim.open().reply(b"SSH-2.0-OpenSSH_9.2\r\n").send(&hello());
        sim.ack().gateway_fin();
        sim.expect(Cause::TlsPlaintextUpstream, Proof::Proven);
    });
}

#[test]
fn alerts_of_the_upstream_in_answer_to_the_client_hello() {
    for (number, cause) in [
        (70, Cause::TlsVersionMismatch),
        (40, Cause::TlsNoCommonParameters),
        (71, Cause::TlsNoCommonParameters),
        (112, Cause::TlsSniUnrecognised),
        (120, Cause::TlsAlpnMismatch),
        (80, Cause::TlsInternalError),
    ] {
        let event = answered(&hello(), &alert(2, number), cause, Proof::Proven);
        assert!(event.evidence[0].text.contains(&number.to_string()));
        let tls = event.tls.unwrap();
        assert_eq!(tls.sni.as_deref(), Some("app.test"));
    }
}

#[test]
fn without_a_server_name_a_handshake_failure_has_two_readings() {
    let nameless = client_hello(None, &[], BOTH);
    let event = answered(
        &nameless,
        &alert(2, 40),
        Cause::TlsNoCommonParameters,
        Proof::Underdetermined,
    );
    assert_eq!(event.rivals, [Cause::TlsSniUnrecognised]);
}

#[test]
fn a_refused_handshake_counts_however_it_is_closed() {
    for end in [Sim::upstream_rst, Sim::gateway_fin, Sim::gateway_rst] {
        both(|sim| {
            sim.hello(&hello()).reply(&alert(2, 70));
            end(sim);
            sim.expect(Cause::TlsVersionMismatch, Proof::Proven);
        });
    }
    let mut sim = Sim::packets();
    sim.hello(&hello()).reply(&alert(2, 70));
    let now = sim.now();
    sim.engine.finish(now);
    sim.expect(Cause::TlsVersionMismatch, Proof::Proven);
}

#[test]
fn alerts_of_the_gateway_are_about_the_certificate() {
    // TLS 1.3 hides the certificate, and OpenSSL's alert does not.
    for (comm, number, cause, proof) in [
        ("haproxy", 45, Cause::TlsCertificateExpired, Proof::Proven),
        (
            "haproxy",
            48,
            Cause::TlsCertificateUntrusted,
            Proof::Underdetermined,
        ),
        ("haproxy", 43, Cause::TlsCertificatePurpose, Proof::Proven),
        ("haproxy", 44, Cause::TlsCertificateRevoked, Proof::Proven),
        (
            "haproxy",
            42,
            Cause::TlsCertificateUntrusted,
            Proof::Underdetermined,
        ),
        (
            "haproxy",
            80,
            Cause::TlsCertificateNameMismatch,
            Proof::Underdetermined,
        ),
        (
            "pingora",
            45,
            Cause::TlsCertificateExpired,
            Proof::Underdetermined,
        ),
    ] {
        let mut sim = Sim::live(comm);
        sim.hello(&hello())
            .reply(&server_13())
            .send(&alert(2, number));
        sim.gateway_fin();
        let event = sim.expect(cause, proof);
        assert_eq!(event.tls.unwrap().version.as_deref(), Some("TLS 1.3"));
    }
}

#[test]
fn a_chain_in_the_clear_tells_what_the_alert_leaves_open() {
    let expired = Shown {
        expired: true,
        ..Shown::default()
    };
    let early = Shown {
        early: true,
        ..Shown::default()
    };
    let own = Shown {
        self_signed: true,
        ..Shown::default()
    };
    let clients = Shown {
        for_clients: true,
        ..Shown::default()
    };
    for (shown, number, cause) in [
        (expired, 45, Cause::TlsCertificateExpired),
        (early, 42, Cause::TlsCertificateNotYetValid),
        (expired, 42, Cause::TlsCertificateExpired),
        (own, 48, Cause::TlsCertificateSelfSigned),
        (Shown::default(), 48, Cause::TlsCertificateUntrusted),
        (clients, 43, Cause::TlsCertificatePurpose),
    ] {
        both(|sim| {
            sim.hello(&hello());
            sim.reply(&server_12(&certificate(shown), false, None));
            sim.send(&alert(2, number)).gateway_fin();
            sim.expect(cause, Proof::Proven);
        });
    }
}

#[test]
fn a_name_that_the_chain_lacks_is_told() {
    both(|sim| {
        sim.hello(&client_hello(Some("other.test"), &[], BOTH));
        sim.reply(&server_12(&certificate(Shown::default()), false, None));
        sim.send(&alert(2, 46)).gateway_fin();
        let event = sim.expect(Cause::TlsCertificateNameMismatch, Proof::Inferred);
        assert!(event.evidence[1].text.contains("other.test"));
    });
}

#[test]
fn a_gateway_that_hides_its_alert_still_refused() {
    // BoringSSL and Go: no Finished, a record as long as an alert.
    both(|sim| {
        sim.hello(&hello()).reply(&server_13());
        sim.send(&[change_cipher(), data(ALERT)].concat())
            .gateway_fin();
        let event = sim.expect(Cause::TlsCertificateUntrusted, Proof::Underdetermined);
        assert!(event.rivals.contains(&Cause::TlsCertificateExpired));
        assert!(event.rivals.contains(&Cause::TlsRecordCorrupt));
    });
}

#[test]
fn nginx_refuses_behind_the_handshake() {
    let mut sim = Sim::live("nginx");
    sim.handshake_13().send(&data(ALERT)).gateway_fin();
    let event = sim.expect(Cause::TlsCertificateUntrusted, Proof::Underdetermined);
    assert_eq!(event.rivals.len(), 7);
    // Tickets may come before it closes.
    let mut sim = Sim::live("nginx");
    sim.handshake_13().reply(&[data(250), data(250)].concat());
    sim.send(&data(ALERT)).gateway_fin();
    sim.expect(Cause::TlsCertificateUntrusted, Proof::Underdetermined);
    // TLS 1.2 shows why.
    for (shown, cause, proof) in [
        (
            Shown {
                expired: true,
                ..Shown::default()
            },
            Cause::TlsCertificateExpired,
            Proof::Proven,
        ),
        (
            Shown {
                self_signed: true,
                ..Shown::default()
            },
            Cause::TlsCertificateSelfSigned,
            Proof::Inferred,
        ),
        (
            Shown::default(),
            Cause::TlsCertificateUntrusted,
            Proof::Underdetermined,
        ),
    ] {
        let mut sim = Sim::live("nginx");
        sim.handshake_12(&hello(), shown)
            .send(&alert_12())
            .gateway_fin();
        sim.expect(cause, proof);
    }
}

#[test]
fn apache_checks_the_name_behind_the_handshake() {
    let mut sim = Sim::live("apache2");
    sim.handshake_13().gateway_fin();
    sim.expect(Cause::TlsCertificateNameMismatch, Proof::Inferred);
}

#[test]
fn a_missing_client_certificate_of_12() {
    both(|sim| {
        sim.hello(&hello());
        sim.reply(&server_12(&certificate(Shown::default()), true, None));
        sim.send(&client_12(Some(&[]))).ack();
        sim.reply(&alert(2, 40)).upstream_fin().gateway_fin();
        sim.expect(Cause::TlsClientCertificateRequired, Proof::Proven);
    });
}

#[test]
fn a_refused_client_certificate_of_12() {
    let given = certificate(Shown::default());
    for number in [42, 43, 44, 45, 46, 48, 49] {
        both(|sim| {
            sim.hello(&hello());
            sim.reply(&server_12(&certificate(Shown::default()), true, None));
            sim.send(&client_12(Some(&given))).ack();
            sim.reply(&alert(2, number)).upstream_fin().gateway_fin();
            sim.expect(Cause::TlsClientCertificateRejected, Proof::Proven);
        });
    }
}

#[test]
fn a_missing_client_certificate_of_13_is_told_late() {
    for end in [Sim::upstream_fin, Sim::upstream_rst, Sim::gateway_fin] {
        for request in [false, true] {
            both(|sim| {
                sim.hello(&hello()).reply(&server_13_asking());
                sim.send(&finished_13_with(25));
                if request {
                    sim.send(&data(180));
                }
                sim.ack().reply(&data(ALERT));
                end(sim);
                let event = sim.expect(Cause::TlsClientCertificateRequired, Proof::Inferred);
                assert_eq!(event.exchange.is_some(), request);
            });
        }
    }
}

#[test]
fn a_refused_client_certificate_of_13_is_told_late() {
    both(|sim| {
        sim.hello(&hello()).reply(&server_13_asking());
        sim.send(&finished_13_with(860)).ack().reply(&data(ALERT));
        sim.upstream_fin().gateway_fin();
        sim.expect(Cause::TlsClientCertificateRejected, Proof::Inferred);
    });
}

#[test]
fn without_an_alert_an_empty_certificate_leaves_two_readings() {
    both(|sim| {
        sim.hello(&hello()).reply(&server_13_asking());
        sim.send(&finished_13_with(25)).ask();
        sim.upstream_fin().gateway_fin();
        let event = sim.expect(Cause::TcpClosedNoResponse, Proof::Underdetermined);
        assert_eq!(event.rivals, [Cause::TlsClientCertificateRequired]);
    });
}

#[test]
fn a_handshake_that_the_upstream_closes() {
    for end in [Sim::upstream_fin, Sim::upstream_rst] {
        both(|sim| {
            sim.hello(&hello());
            end(sim).gateway_fin();
            sim.expect(Cause::TlsHandshakeClosed, Proof::Proven);
        });
        both(|sim| {
            sim.hello(&hello()).reply(&server_13());
            end(sim).gateway_fin();
            sim.expect(Cause::TlsHandshakeClosed, Proof::Proven);
        });
        both(|sim| {
            sim.hello(&hello());
            sim.reply(&server_12(&certificate(Shown::default()), false, None));
            sim.send(&client_12(None)).ack();
            end(sim).gateway_fin();
            sim.expect(Cause::TlsHandshakeClosed, Proof::Proven);
        });
    }
    // "Go away", in order.
    let bytes = alert(1, 0);
    answered(&hello(), &bytes, Cause::TlsHandshakeClosed, Proof::Proven);
}

#[test]
fn a_hidden_alert_of_the_upstream_has_as_many_readings_as_the_offer() {
    let without_alpn = [
        Cause::TlsSniUnrecognised,
        Cause::TlsInternalError,
        Cause::TlsNoCommonParameters,
    ];
    for (alpn, cause) in [
        (&["h2"][..], Cause::TlsAlpnMismatch),
        (&[], Cause::TlsSniUnrecognised),
    ] {
        both(|sim| {
            sim.hello(&client_hello(Some("app.test"), alpn, BOTH))
                .reply(&server_13_refusing());
            sim.upstream_fin().gateway_fin();
            let event = sim.expect(cause, Proof::Underdetermined);
            let first = usize::from(alpn.is_empty());
            assert_eq!(Some(&event.rivals[..]), without_alpn.get(first..));
        });
    }
}

#[test]
fn a_refusal_is_one_whoever_leaves_in_the_same_moment() {
    let left = |sim: &mut Sim| {
        sim.gateway_fin().ms(1);
        sim.input(Input::ClientLeft {
            turn: TURN,
            departure: Departure::Waiting,
        });
    };
    let mut sim = Sim::live("nginx");
    sim.hello(&hello()).reply(b"SSH-2.0-OpenSSH_9.2\r\n");
    left(&mut sim);
    sim.expect(Cause::TlsPlaintextUpstream, Proof::Proven);
    let mut sim = Sim::live("nginx");
    sim.hello(&hello()).reply(&alert(2, 80));
    left(&mut sim);
    sim.expect(Cause::TlsInternalError, Proof::Proven);
    // A close behind the handshake may be the client's doing, and so may one inside it.
    let mut sim = Sim::live("nginx");
    sim.handshake_13().send(&data(ALERT));
    left(&mut sim);
    sim.expect_none();
    let mut sim = Sim::live("nginx");
    sim.hello(&hello()).ms(2000);
    left(&mut sim);
    sim.expect_none();
}

#[test]
fn a_request_that_comes_too_late_for_the_refusal_is_no_second_failure() {
    both(|sim| {
        sim.hello(&hello()).reply(&server_13_asking());
        sim.send(&finished_13_with(860)).ack().reply(&data(ALERT));
        sim.upstream_fin().ms(60).send(&data(151)).ms(150);
        sim.gateway_fin();
        sim.expect(Cause::TlsClientCertificateRejected, Proof::Inferred);
    });
}

#[test]
fn a_client_hello_that_nobody_read_is_no_handshake() {
    both(|sim| {
        sim.open().send(&hello()).upstream_fin().gateway_fin();
        sim.expect(Cause::TcpClosedOnAccept, Proof::Proven);
    });
    both(|sim| {
        sim.open().send(&hello()).upstream_rst();
        sim.expect(Cause::TcpClosedOnAccept, Proof::Inferred);
    });
}

#[test]
fn a_reset_of_somebody_else_in_the_handshake() {
    let mut sim = Sim::packets();
    sim.hello(&hello());
    sim.ttl = 40;
    sim.upstream_rst();
    let event = sim.expect(Cause::TcpResetInjected, Proof::Inferred);
    assert_eq!(event.phase, crate::model::Phase::Tls);
}

#[test]
fn a_handshake_without_an_answer() {
    both(|sim| {
        sim.hello(&hello()).ms(3000).gateway_fin();
        let event = sim.expect(Cause::TlsHandshakeTimeout, Proof::Inferred);
        assert!(event.evidence[0].text.contains("the application"));
    });
    both(|sim| {
        sim.open().send(&hello()).ms(300).again(&hello()).ms(600);
        sim.again(&hello()).ms(3000).gateway_fin();
        let event = sim.expect(Cause::TlsHandshakeTimeout, Proof::Inferred);
        assert!(event.evidence[0].text.contains("the network"));
    });
    both(|sim| {
        sim.hello(&hello())
            .reply(&server_13()[..60])
            .ms(5000)
            .gateway_fin();
        sim.expect(Cause::TlsHandshakeTimeout, Proof::Inferred);
    });
}

#[test]
fn a_warning_about_the_name_that_ends_the_handshake() {
    answered(
        &hello(),
        &alert(1, 112),
        Cause::TlsSniUnrecognised,
        Proof::Proven,
    );
}

#[test]
fn foreign_bytes_behind_the_handshake_are_corruption() {
    both(|sim| {
        sim.handshake_13().tickets().ask();
        sim.reply(b"HTTP/1.1 400 Bad Request\r\n\r\n");
        sim.send(&data(ALERT)).gateway_fin();
        let event = sim.expect(Cause::TlsRecordCorrupt, Proof::Proven);
        assert!(event.evidence[0].text.contains("400 Bad Request"));
    });
}

#[test]
fn a_corrupt_handshake_record_is_told_by_the_gateways_alert() {
    for number in [20, 22, 10] {
        both(|sim| {
            sim.hello(&hello()).reply(&server_13());
            sim.send(&alert(2, number)).gateway_fin();
            sim.expect(Cause::TlsRecordCorrupt, Proof::Proven);
        });
    }
}

#[test]
fn a_request_inside_tls_that_gets_no_answer() {
    for (cause, rst) in [
        (Cause::TcpClosedNoResponse, false),
        (Cause::TcpResetNoResponse, true),
    ] {
        both(|sim| {
            sim.handshake_12(&hello(), Shown::default()).ask().ms(60);
            if rst {
                sim.upstream_rst();
            } else {
                sim.upstream_fin();
            }
            let event = sim.expect(cause, Proof::Inferred);
            assert_eq!(event.exchange.unwrap().request_bytes, 185);
        });
    }
}

#[test]
fn tickets_are_no_response() {
    // Ahead of the request.
    both(|sim| {
        sim.handshake_13()
            .tickets()
            .ask()
            .ms(60)
            .upstream_fin()
            .gateway_fin();
        sim.expect(Cause::TcpClosedNoResponse, Proof::Inferred);
    });
    // With it.
    both(|sim| {
        sim.hello(&hello()).reply(&server_13());
        sim.send(&finished_13()).send(&data(180)).ack().tickets();
        sim.ms(60).upstream_fin().gateway_fin();
        sim.expect(Cause::TcpClosedNoResponse, Proof::Inferred);
    });
    // One ahead of it, one with it.
    both(|sim| {
        sim.handshake_13().reply(&data(wire::TICKET)).ask();
        sim.reply(&data(wire::TICKET)).ms(60);
        sim.upstream_fin().gateway_fin();
        sim.expect(Cause::TcpClosedNoResponse, Proof::Inferred);
    });
    // One record alone may be either.
    both(|sim| {
        sim.hello(&hello()).reply(&server_13());
        sim.send(&finished_13())
            .send(&data(180))
            .ack()
            .reply(&data(wire::TICKET));
        sim.ms(60).upstream_fin().gateway_fin().expect_none();
    });
}

#[test]
fn a_close_notify_is_no_response() {
    both(|sim| {
        sim.handshake_13().tickets().ask().ms(60);
        sim.reply(&data(ALERT))
            .upstream_fin()
            .send(&data(ALERT))
            .gateway_fin();
        sim.expect(Cause::TcpClosedNoResponse, Proof::Inferred);
    });
    both(|sim| {
        sim.handshake_12(&hello(), Shown::default()).ask().ms(60);
        sim.reply(&alert_12()).upstream_fin().gateway_fin();
        sim.expect(Cause::TcpClosedNoResponse, Proof::Inferred);
    });
}

#[test]
fn a_stale_connection_inside_tls() {
    both(|sim| {
        sim.handshake_13().tickets().ask().answer().ms(5000);
        sim.reply(&data(ALERT)).upstream_fin();
        sim.send(&data(180)).upstream_rst();
        let event = sim.expect(Cause::PoolStaleReuse, Proof::Inferred);
        assert_eq!(event.exchange.unwrap().ordinal, 2);
    });
}

#[test]
fn a_gateway_that_waits_in_vain_inside_tls() {
    both(|sim| {
        sim.handshake_13().tickets().ask().answer().ms(100);
        sim.ask().ms(5000).send(&data(ALERT)).gateway_fin();
        let event = sim.expect(Cause::UpstreamSlowFirstByte, Proof::Underdetermined);
        assert_eq!(event.rivals, [Cause::UpstreamNotReading]);
    });
}

#[test]
fn a_request_inside_tls_that_the_network_swallows() {
    both(|sim| {
        let request = data(180);
        sim.handshake_12(&hello(), Shown::default()).ask().answer();
        sim.ms(100).send(&request).ms(300).again(&request).ms(600);
        sim.again(&request).ms(5000).gateway_fin();
        sim.expect(Cause::TcpRequestUnacknowledged, Proof::Inferred);
    });
}

#[test]
fn http_2_inside_tls_is_judged_until_its_first_answer() {
    let offering = client_hello(Some("app.test"), &["h2"], BOTH);
    both(|sim| {
        sim.hello(&offering)
            .reply(&server_13())
            .send(&finished_13())
            .ack();
        sim.tickets().ask().ms(60).upstream_fin().gateway_fin();
        sim.expect(Cause::TcpClosedNoResponse, Proof::Inferred);
    });
    both(|sim| {
        sim.hello(&offering)
            .reply(&server_13())
            .send(&finished_13())
            .ack();
        sim.tickets().ask().answer().ms(1000).ask();
        sim.upstream_fin().gateway_fin().expect_none();
    });
}

#[test]
fn the_same_in_any_split() {
    // Every byte in a segment of its own.
    let mut sim = Sim::packets();
    sim.open();
    for byte in hello() {
        sim.send(&[byte]);
    }
    sim.ack();
    for byte in server_12(
        &certificate(Shown {
            expired: true,
            ..Shown::default()
        }),
        false,
        None,
    ) {
        sim.reply(&[byte]);
    }
    for byte in alert(2, 45) {
        sim.send(&[byte]);
    }
    sim.gateway_fin();
    sim.expect(Cause::TlsCertificateExpired, Proof::Proven);
}

#[test]
fn a_missed_segment_silences_what_depends_on_it() {
    both(|sim| {
        sim.hello(&hello());
        sim.reply_unseen(900);
        sim.upstream_fin().gateway_fin().expect_none();
    });
    // An alert that was seen stays one.
    both(|sim| {
        sim.hello(&hello()).reply(&server_13()[..200]);
        sim.reply_unseen(900);
        sim.send(&alert(2, 45)).gateway_fin();
        let event = &sim.events()[0];
        assert_eq!(event.cause, Cause::TlsCertificateExpired);
        assert_ne!(event.proof, Proof::Proven);
    });
}

#[test]
fn a_finished_that_never_came_is_no_refusal() {
    let _ = (FINISHED, finished_12());
    // The gateway leaves in the middle, soon: its client did, most likely.
    both(|sim| {
        sim.hello(&hello())
            .reply(&server_13())
            .ms(20)
            .gateway_fin()
            .expect_none();
    });
}

#[test]
fn a_response_that_ends_inside_a_record_is_cut() {
    let mut last = data(1000);
    last.truncate(400);
    both(|sim| {
        sim.handshake_13()
            .tickets()
            .ask()
            .reply(&data(500))
            .reply(&last);
        let event = sim
            .upstream_fin()
            .gateway_fin()
            .ms(100)
            .expect(Cause::TlsTruncated, Proof::Inferred);
        assert_eq!(event.evidence[0].what, "record_cut");
    });
    // A gateway that lets go first leaves records behind.
    both(|sim| {
        sim.handshake_13()
            .tickets()
            .ask()
            .reply(&data(500))
            .reply(&last);
        sim.gateway_fin().upstream_fin().ms(100).expect_none();
    });
}
