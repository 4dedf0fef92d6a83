//! Healthy connections, and those whose end is no failure of the hop.

use super::wire::{
    ALERT, BOTH, Shown, alert, alert_12, client_hello, data, finished_13, finished_13_with, hello,
    record, server_13, server_13_asking,
};
use crate::engine::tests::sim::{Sim, TURN, both};
use crate::model::{Departure, Input, LibraryFact, Signal};
use std::time::Duration;

#[test]
fn exchanges_and_a_close_in_order() {
    let ends: [fn(&mut Sim) -> &mut Sim; 6] = [
        |sim| sim.upstream_fin().gateway_fin(),
        |sim| sim.gateway_fin().upstream_fin(),
        |sim| {
            sim.reply(&data(ALERT))
                .upstream_fin()
                .send(&data(ALERT))
                .gateway_fin()
        },
        |sim| sim.send(&data(ALERT)).gateway_fin().upstream_fin(),
        |sim| sim.upstream_rst(),
        |sim| sim.send(&data(ALERT)).gateway_rst(),
    ];
    for end in ends {
        both(|sim| {
            sim.handshake_13().tickets();
            for _ in 0..3 {
                sim.ask().answer().ms(700);
            }
            end(sim).expect_none();
            assert_eq!(sim.engine.stats().exchanges, 3);
            assert_eq!(sim.engine.stats().hops_tls, 1);
        });
        both(|sim| {
            sim.handshake_13().ask().tickets().answer();
            end(sim).expect_none();
        });
    }
}

#[test]
fn tls_12() {
    both(|sim| {
        sim.handshake_12(&hello(), Shown::default());
        for _ in 0..3 {
            sim.ask().answer().ms(700);
        }
        sim.reply(&alert_12())
            .upstream_fin()
            .send(&alert_12())
            .gateway_fin();
        sim.expect_none();
    });
}

#[test]
fn certificates_are_kept_no_longer_than_they_are_needed() {
    let mut sim = Sim::packets();
    sim.handshake_12(&hello(), Shown::default());
    let before = sim.engine.kept_bytes;
    sim.ask().answer();
    let after = sim.engine.kept_bytes;
    assert!(after + 100 < before, "{after} of {before} bytes");
    sim.upstream_fin().gateway_fin().expect_none();
}

#[test]
fn a_response_and_the_close_in_one_segment() {
    both(|sim| {
        sim.handshake_12(&hello(), Shown::default()).ask();
        sim.reply(&[data(464), alert_12()].concat()).ms(60);
        sim.upstream_fin().gateway_fin().expect_none();
    });
    both(|sim| {
        sim.handshake_13().tickets().ask();
        sim.reply(&[data(464), data(ALERT)].concat()).ms(60);
        sim.upstream_fin().gateway_fin().expect_none();
    });
}

#[test]
fn a_bad_certificate_that_the_gateway_does_not_mind() {
    let expired = Shown {
        expired: true,
        self_signed: true,
        ..Shown::default()
    };
    both(|sim| {
        sim.handshake_12(&hello(), expired).ask().answer();
        sim.upstream_fin().gateway_fin().expect_none();
    });
}

#[test]
fn checks_that_only_connect_or_only_shake_hands() {
    for comm in ["haproxy", "envoy", "something"] {
        for mut sim in [Sim::live(comm), Sim::packets()] {
            sim.open().gateway_rst().expect_none();
        }
        for mut sim in [Sim::live(comm), Sim::packets()] {
            sim.handshake_13()
                .send(&data(ALERT))
                .gateway_fin()
                .upstream_fin()
                .expect_none();
        }
        for mut sim in [Sim::live(comm), Sim::packets()] {
            sim.handshake_13().tickets().gateway_rst().expect_none();
        }
        let expired = Shown {
            expired: true,
            ..Shown::default()
        };
        for mut sim in [Sim::live(comm), Sim::packets()] {
            sim.handshake_12(&hello(), expired)
                .send(&alert_12())
                .gateway_fin()
                .expect_none();
        }
    }
}

#[test]
fn a_connection_that_is_never_used() {
    both(|sim| {
        sim.handshake_13().tickets().ms(60_000);
        sim.reply(&data(ALERT))
            .upstream_fin()
            .gateway_fin()
            .expect_none();
    });
    both(|sim| sim.handshake_13().ms(10).upstream_rst().expect_none());
    let mut sim = Sim::live("nginx");
    sim.handshake_13()
        .tickets()
        .ms(60_000)
        .send(&data(ALERT))
        .gateway_fin()
        .expect_none();
}

#[test]
fn a_client_certificate_that_is_not_needed() {
    both(|sim| {
        sim.hello(&hello())
            .reply(&server_13_asking())
            .send(&finished_13_with(25))
            .ack();
        sim.tickets().ask().answer().ms(5000);
        sim.reply(&data(ALERT))
            .upstream_fin()
            .gateway_fin()
            .expect_none();
    });
    // Idle, and closed in order.
    both(|sim| {
        sim.hello(&hello())
            .reply(&server_13_asking())
            .send(&finished_13_with(25))
            .ack();
        sim.ms(5000)
            .reply(&data(ALERT))
            .upstream_fin()
            .gateway_fin()
            .expect_none();
    });
    both(|sim| {
        sim.hello(&hello())
            .reply(&server_13_asking())
            .send(&finished_13_with(860))
            .ack();
        sim.tickets()
            .ask()
            .answer()
            .reply(&data(ALERT))
            .upstream_fin()
            .gateway_fin();
        sim.expect_none();
    });
}

#[test]
fn a_warning_about_the_name_that_changes_nothing() {
    both(|sim| {
        sim.hello(&hello())
            .reply(&alert(1, 112))
            .reply(&server_13());
        sim.send(&finished_13()).ack().tickets().ask().answer();
        sim.upstream_fin().gateway_fin().expect_none();
    });
}

#[test]
fn a_client_that_leaves() {
    let leaves: [fn(&mut Sim); 3] = [
        |sim| {
            sim.hello(&hello()).ms(5000);
        },
        |sim| {
            sim.handshake_13().ask().ms(5000);
        },
        |sim| {
            sim.handshake_13().ms(5).send(&data(ALERT));
        },
    ];
    for leave in leaves {
        let mut sim = Sim::live("nginx");
        leave(&mut sim);
        sim.gateway_fin();
        sim.input(Input::ClientLeft {
            turn: TURN,
            departure: Departure::Waiting,
        });
        sim.expect_none();
    }
}

#[test]
fn a_gateway_that_leaves_soon() {
    both(|sim| sim.hello(&hello()).ms(50).gateway_fin().expect_none());
    both(|sim| sim.handshake_13().ask().ms(50).gateway_fin().expect_none());
}

#[test]
fn an_unfinished_response_is_not_judged() {
    both(|sim| {
        sim.handshake_13().tickets().ask().reply(&data(221)).ms(100);
        sim.upstream_rst().expect_none();
    });
    both(|sim| {
        sim.handshake_13()
            .tickets()
            .ask()
            .reply(&data(221))
            .ms(60_000);
        sim.send(&data(ALERT)).gateway_fin().expect_none();
    });
}

#[test]
fn small_records_are_no_requests() {
    // A frame of HTTP/2, a key update, `QUIT`: the upstream closes without an answer.
    for length in [17 + 9, 17 + 13, 17 + 6, 22] {
        both(|sim| {
            sim.handshake_13().tickets().ask().answer().ms(500);
            sim.send(&data(length))
                .ack()
                .upstream_fin()
                .gateway_fin()
                .expect_none();
        });
    }
}

#[test]
fn a_large_upload_in_many_records() {
    both(|sim| {
        sim.handshake_13().tickets();
        for _ in 0..20 {
            sim.send(&data(16_401)).ack().ms(150);
        }
        sim.answer().upstream_fin().gateway_fin().expect_none();
        assert_eq!(sim.engine.stats().exchanges, 1);
    });
}

#[test]
fn segments_that_are_captured_short() {
    both(|sim| {
        sim.handshake_13();
        for _ in 0..4 {
            let request = [data(300), data(4000)].concat();
            sim.send_short(&request, 64).ack();
            let response = [data(221), data(16_401), data(3000)].concat();
            sim.reply_short(&response, 64).ms(300);
        }
        sim.reply_short(&data(ALERT), 24)
            .upstream_fin()
            .gateway_fin()
            .expect_none();
    });
}

#[test]
fn exchanges_that_stay_in_the_kernel() {
    let mut sim = Sim::live("nginx");
    sim.handshake_13().tickets().ask().answer();
    sim.held(5, Duration::from_millis(300));
    sim.ask()
        .answer()
        .ms(100)
        .upstream_fin()
        .gateway_fin()
        .expect_none();
    assert_eq!(sim.engine.stats().exchanges, 7);
}

#[test]
fn a_failed_verification_that_nobody_minds() {
    let mut sim = Sim::live("haproxy");
    sim.hello(&hello()).reply(&server_13());
    sim.signal(Signal::Library(LibraryFact::Verified {
        code: 20,
        asked: false,
    }));
    sim.send(&finished_13()).ack().tickets().ask().answer();
    sim.upstream_fin().gateway_fin().expect_none();
}

#[test]
fn a_hop_that_was_joined_says_nothing_of_its_requests() {
    let mut sim = Sim::live("nginx");
    sim.seeded();
    sim.send(&data(180))
        .ack()
        .ms(60)
        .upstream_fin()
        .gateway_fin()
        .expect_none();
    let mut sim = Sim::packets();
    sim.send(&data(180))
        .ack()
        .ms(60)
        .upstream_rst()
        .expect_none();
}

#[test]
fn http_2_by_its_alpn() {
    both(|sim| {
        let offering = client_hello(Some("app.test"), &["h2", "http/1.1"], BOTH);
        sim.hello(&offering)
            .reply(&server_13())
            .send(&finished_13())
            .ack();
        sim.ask().reply(&data(60)).answer().ms(500);
        // A ping that the upstream's close crosses.
        sim.send(&data(100))
            .upstream_fin()
            .gateway_fin()
            .expect_none();
    });
}

#[test]
fn records_of_another_kind_are_no_response() {
    // TLS 1.2: a request to negotiate anew is not answered, and the exchange goes on.
    both(|sim| {
        sim.handshake_12(&hello(), Shown::default()).ask();
        sim.reply(&record(22, &[0x5a; 28])).answer();
        sim.upstream_fin().gateway_fin().expect_none();
    });
}
