//! What the gateway's TLS library adds.

use super::wire::{
    ALERT, alert, data, finished_13, finished_13_with, hello, server_13, server_13_asking,
};
use crate::engine::tests::sim::Sim;
use crate::model::{Cause, EvidenceSource, LibraryFact, Proof, Signal};

const SSL: u32 = 20;

fn raised(reason: u32) -> Signal {
    Signal::Library(LibraryFact::Raised {
        library: SSL,
        reason,
    })
}

fn verified(code: u32, asked: bool) -> Signal {
    Signal::Library(LibraryFact::Verified { code, asked })
}

const CODES: [(u32, Cause); 16] = [
    (9, Cause::TlsCertificateNotYetValid),
    (10, Cause::TlsCertificateExpired),
    (18, Cause::TlsCertificateSelfSigned),
    (2, Cause::TlsCertificateUntrusted),
    (19, Cause::TlsCertificateUntrusted),
    (20, Cause::TlsCertificateUntrusted),
    (21, Cause::TlsCertificateUntrusted),
    (62, Cause::TlsCertificateNameMismatch),
    (64, Cause::TlsCertificateNameMismatch),
    (26, Cause::TlsCertificatePurpose),
    (66, Cause::TlsCertificateWeak),
    (67, Cause::TlsCertificateWeak),
    (68, Cause::TlsCertificateWeak),
    (23, Cause::TlsCertificateRevoked),
    (3, Cause::TlsCertificateRevoked),
    (12, Cause::TlsCertificateRevoked),
];

#[test]
fn nginx_asks_behind_the_handshake() {
    for (code, cause) in CODES {
        let mut sim = Sim::live("nginx");
        sim.handshake_13().signal(verified(code, true));
        sim.send(&data(ALERT)).gateway_fin();
        let event = sim.expect(cause, Proof::Proven);
        assert_eq!(event.tls.unwrap().source, EvidenceSource::TlsLibrary);
        assert_eq!(sim.engine.stats().tls_sources_disagree, 0);
    }
}

#[test]
fn the_last_word_on_a_chain_counts() {
    let mut sim = Sim::live("nginx");
    sim.handshake_13()
        .signal(verified(20, true))
        .signal(verified(21, true));
    sim.signal(verified(10, true))
        .send(&data(ALERT))
        .gateway_fin();
    sim.expect(Cause::TlsCertificateExpired, Proof::Proven);
}

#[test]
fn a_good_chain_that_is_refused_has_the_wrong_name() {
    let mut sim = Sim::live("nginx");
    sim.handshake_13().signal(verified(0, true));
    sim.send(&data(ALERT)).gateway_fin();
    sim.expect(Cause::TlsCertificateNameMismatch, Proof::Inferred);
}

#[test]
fn a_library_that_gives_up_names_the_reason() {
    for (code, number, cause) in [
        (10, 45, Cause::TlsCertificateExpired),
        (18, 48, Cause::TlsCertificateSelfSigned),
        (9, 42, Cause::TlsCertificateNotYetValid),
        (66, 42, Cause::TlsCertificateWeak),
    ] {
        let mut sim = Sim::live("haproxy");
        sim.hello(&hello()).reply(&server_13());
        sim.signal(verified(code, false)).signal(raised(134));
        sim.send(&alert(2, number)).gateway_fin();
        let event = sim.expect(cause, Proof::Proven);
        let sources: Vec<_> = event.evidence.iter().map(|piece| piece.source).collect();
        assert!(sources.contains(&EvidenceSource::TlsLibrary), "{sources:?}");
        assert!(sources.contains(&EvidenceSource::Packet), "{sources:?}");
        assert_eq!(sim.engine.stats().tls_sources_disagree, 0);
    }
    // The program's own check.
    let mut sim = Sim::live("haproxy");
    sim.hello(&hello()).reply(&server_13());
    sim.signal(verified(0, false)).signal(raised(134));
    sim.send(&alert(2, 80)).gateway_fin();
    sim.expect(Cause::TlsCertificateNameMismatch, Proof::Inferred);
}

#[test]
fn alerts_that_only_the_library_can_read() {
    for (number, certificate, cause) in [
        (116, 25, Cause::TlsClientCertificateRequired),
        (48, 860, Cause::TlsClientCertificateRejected),
        (42, 860, Cause::TlsClientCertificateRejected),
    ] {
        let mut sim = Sim::live("nginx");
        sim.hello(&hello()).reply(&server_13_asking());
        sim.send(&finished_13_with(certificate))
            .send(&data(180))
            .ack();
        sim.reply(&data(ALERT)).signal(raised(1000 + number));
        sim.upstream_fin().gateway_fin();
        let event = sim.expect(cause, Proof::Proven);
        assert_eq!(event.tls.unwrap().source, EvidenceSource::TlsLibrary);
    }
}

#[test]
fn a_record_that_does_not_decrypt() {
    let mut sim = Sim::live("nginx");
    sim.handshake_13().tickets().ask().reply(&data(221));
    sim.signal(raised(281)).send(&data(ALERT)).gateway_fin();
    let event = sim.expect(Cause::TlsRecordCorrupt, Proof::Proven);
    assert_eq!(event.tls.unwrap().source, EvidenceSource::TlsLibrary);
    // In the middle of the handshake.
    let mut sim = Sim::live("haproxy");
    sim.hello(&hello()).reply(&server_13()).signal(raised(281));
    sim.send(&alert(2, 20)).gateway_fin();
    sim.expect(Cause::TlsRecordCorrupt, Proof::Proven);
}

#[test]
fn both_sources_say_the_same_in_other_words() {
    for (bytes, reason, cause) in [
        (
            &b"HTTP/1.1 400 No\r\n\r\n"[..],
            267,
            Cause::TlsPlaintextUpstream,
        ),
        (&alert(2, 70)[..], 1070, Cause::TlsVersionMismatch),
        (&alert(2, 112), 1112, Cause::TlsSniUnrecognised),
    ] {
        let mut sim = Sim::live("nginx");
        sim.hello(&hello())
            .reply(bytes)
            .signal(raised(reason))
            .gateway_fin();
        let event = sim.expect(cause, Proof::Proven);
        assert_eq!(event.tls.unwrap().source, EvidenceSource::Packet);
        assert_eq!(sim.engine.stats().tls_sources_disagree, 0);
    }
}

#[test]
fn a_disagreement_is_counted() {
    let mut sim = Sim::live("haproxy");
    sim.hello(&hello())
        .reply(&alert(2, 70))
        .signal(raised(1112))
        .gateway_fin();
    sim.expect(Cause::TlsVersionMismatch, Proof::Proven);
    assert_eq!(sim.engine.stats().tls_sources_disagree, 1);
}

#[test]
fn an_end_that_the_library_did_not_expect() {
    let mut sim = Sim::live("nginx");
    sim.hello(&hello())
        .upstream_fin()
        .signal(raised(294))
        .gateway_fin();
    sim.expect(Cause::TlsHandshakeClosed, Proof::Proven);
    // Behind the handshake, at rest, it means nothing.
    let mut sim = Sim::live("nginx");
    sim.hello(&hello())
        .reply(&server_13())
        .send(&finished_13())
        .ack();
    sim.tickets().ask().answer().ms(500).upstream_fin();
    sim.signal(raised(294)).gateway_fin().expect_none();
}
