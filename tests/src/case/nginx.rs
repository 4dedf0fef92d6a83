//! nginx: its configuration, and its cases.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::Path;

use anyhow::Result;

use super::{
    ANY, BUSY, CLOSES, Case, DROPPED, Drive, FAILS, FIRM, Gateway, HALF_BODY, HALF_HEAD, HEALTHY,
    MALFORMED, OPEN, PLAINTEXT, PROVEN, REFUSES, RESETS, SILENT, STALLS, Setting, Told, UNROUTED,
};
use crate::access;
use crate::client::Seen;

/// The configuration of all cases.
pub(super) fn config(
    directory: &Path,
    setting: Setting,
    cases: &[(Case, Vec<SocketAddr>)],
) -> Result<String> {
    let (directory, workers) = (directory.display(), setting.workers);
    let mut text = format!(
        "daemon off;\nuser root;\nworker_processes {workers};\npid {directory}/pid;\n\
         error_log {directory}/errors info;\nevents {{ worker_connections {}; }}\n\
         http {{\nlog_format hop {};\naccess_log {directory}/access hop;\n",
        setting.connections,
        access::NGINX
    );
    for kind in ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"] {
        writeln!(text, "{kind}_temp_path {directory}/{kind};")?;
    }
    text.push_str(
        "proxy_http_version 1.1;\nproxy_next_upstream off;\nproxy_connect_timeout 1s;\n\
         proxy_read_timeout 1s;\nproxy_send_timeout 1s;\nresolver 127.0.0.1 ipv6=off;\n\
         limit_req_zone $binary_remote_addr zone=few:64k rate=1r/m;\n",
    );
    for (case, addresses) in cases.iter().filter(|(case, _)| !case.upstreams.is_empty()) {
        let group = match case.group {
            "" => "server {0};",
            group => group,
        };
        let group = case.fill(group, addresses);
        writeln!(text, "upstream {} {{ {group} }}", case.name)?;
    }
    writeln!(text, "server {{ listen {};", Gateway::Nginx.address())?;
    for (case, addresses) in cases {
        let rule = case.fill(case.rule, addresses);
        let own = rule.contains("_pass ") || rule.contains("return ");
        let pass = if own {
            String::new()
        } else {
            format!("proxy_pass http://{};", case.name)
        };
        writeln!(text, "location = /{} {{ {rule} {pass} }}", case.name)?;
    }
    text.push_str("}\n}\n");
    Ok(text)
}

/// Tries the next upstream on every failure.
const AGAIN: &str = "proxy_next_upstream error timeout invalid_header http_500;";
/// Two upstreams that are never put aside.
const TWO: &str = "server {0} max_fails=0; server {1} max_fails=0;";

/// Cases that one nginx can have side by side.
pub fn cases() -> Vec<Case> {
    vec![
        Case::fails(
            "refused",
            &[REFUSES],
            502,
            "(111: Connection refused)",
            &["tcp.connect_refused"],
        ),
        Case::fails(
            "dropped",
            &[DROPPED],
            504,
            "while connecting to upstream",
            &["tcp.connect_blackholed"],
        ),
        Case::fails(
            "unrouted",
            &[UNROUTED],
            502,
            "(101: Network is unreachable)",
            &["tcp.connect_no_route"],
        ),
        Case::fails(
            "closes",
            &[CLOSES],
            502,
            "prematurely closed",
            &["tcp.closed_no_response"],
        ),
        Case::fails(
            "resets",
            &[RESETS],
            502,
            "(104: Connection reset by peer)",
            &["tcp.reset_no_response"],
        ),
        Case::fails(
            "silent",
            &[SILENT],
            504,
            "while reading response header",
            &["upstream.slow_first_byte"],
        ),
        Case::fails(
            "stalls",
            &[STALLS],
            504,
            "while reading response header",
            &["upstream.stalled_in_head"],
        ),
        Case::fails(
            "malformed",
            &[MALFORMED],
            502,
            "invalid header",
            &["http1.header_syntax"],
        ),
        Case::fails(
            "half_head",
            &[HALF_HEAD],
            502,
            "prematurely closed",
            &["http1.head_truncated"],
        ),
        Case::fails("busy", &[BUSY], 503, "", &["upstream.own_error"]),
        Case::fails("fails", &[FAILS], 500, "", &["upstream.own_error"]),
        Case::fails(
            "plaintext",
            &[PLAINTEXT],
            502,
            "SSL",
            &["tls.plaintext_upstream"],
        )
        .rule("proxy_pass https://{name};"),
        Case::fails(
            "post",
            &[CLOSES, HEALTHY],
            502,
            "prematurely closed",
            &["tcp.closed_no_response"],
        )
        .group(TWO)
        .rule("proxy_next_upstream error timeout;")
        .drive(Drive::Post),
        // The gateway passes the beginning on and closes: nothing in its status tells.
        Case {
            seen: Seen::Cut(200),
            said: "while reading upstream",
            ..Case::new("half_body", &[HALF_BODY]).hides("http1.body_truncated")
        },
        // Two upstreams.
        Case::fails(
            "both_fail",
            &[REFUSES, CLOSES],
            502,
            "prematurely closed",
            &["tcp.connect_refused", "tcp.closed_no_response"],
        )
        .group(TWO)
        .rule(AGAIN),
        Case::fails(
            "three_fail",
            &[RESETS, MALFORMED, REFUSES],
            502,
            "(111: Connection refused)",
            &[
                "tcp.reset_no_response",
                "http1.header_syntax",
                "tcp.connect_refused",
            ],
        )
        .group("server {0} max_fails=0; server {1} max_fails=0; server {2} max_fails=0;")
        .rule(AGAIN),
        Case::fails(
            "slow_then_refused",
            &[SILENT, REFUSES],
            502,
            "(111: Connection refused)",
            &["upstream.slow_first_byte", "tcp.connect_refused"],
        )
        .group(TWO)
        .rule(AGAIN),
        Case::fails(
            "error_then_refused",
            &[FAILS, REFUSES],
            502,
            "(111: Connection refused)",
            &["upstream.own_error", "tcp.connect_refused"],
        )
        .group(TWO)
        .rule(AGAIN),
        Case {
            said: "(111: Connection refused)",
            ..Case::new("second_helps", &[REFUSES, HEALTHY])
                .group(TWO)
                .rule(AGAIN)
                .hides("tcp.connect_refused")
        },
        Case {
            said: "prematurely closed",
            ..Case::new("second_answers", &[CLOSES, HEALTHY])
                .group(TWO)
                .rule(AGAIN)
                .hides("tcp.closed_no_response")
        },
        // No upstream is asked.
        Case::alone(
            "ejected",
            &[REFUSES, CLOSES],
            502,
            "no live upstreams",
            "pick.passively_ejected",
            OPEN,
        )
        .group("server {0} max_fails=1 fail_timeout=60s; server {1} max_fails=1 fail_timeout=60s;")
        .rule(AGAIN)
        .drive(Drive::Times(2))
        .with("tcp.connect_refused"),
        Case::alone(
            "limited",
            &[SILENT],
            502,
            "no live upstreams",
            "pick.connection_limit",
            ANY,
        )
        .group("server {0} max_conns=1;")
        .drive(Drive::Busy(1)),
        Case::alone(
            "down",
            &[HEALTHY],
            502,
            "no live upstreams",
            "pick.empty_set",
            OPEN,
        )
        .group("server {0} down;"),
        Case::alone("returns", &[], 503, "", "gw.local_answer", ANY).rule("return 503;"),
        Case::alone("returns_502", &[], 502, "", "gw.local_answer", ANY).rule("return 502;"),
        Case::alone("returns_504", &[], 504, "", "gw.local_answer", ANY).rule("return 504;"),
        Case::alone(
            "rate",
            &[HEALTHY],
            503,
            "limiting requests",
            "gw.local_answer",
            ANY,
        )
        .rule("limit_req zone=few;")
        .drive(Drive::Times(2)),
        Case::alone(
            "nowhere",
            &[],
            500,
            "invalid URL prefix",
            "pick.no_route",
            OPEN,
        )
        .rule("proxy_pass $http_x_upstream;"),
        Case::alone(
            "bound",
            &[HEALTHY],
            500,
            "bind(10.98.0.1) failed (99",
            "gw.source_bind_failed",
            PROVEN,
        )
        .rule("proxy_bind 10.98.0.1;"),
        Case {
            told: Told::Answer {
                cause: "dns.nxdomain",
                proofs: ANY,
                attempts: &["dns.nxdomain"],
                with: "",
            },
            ..Case::alone("nxdomain", &[], 502, "(3: Host not found)", "", &[])
                .rule("set $upstream nxdomain.case.test; proxy_pass http://$upstream;")
        },
        Case {
            told: Told::Answer {
                cause: "dns.servfail",
                proofs: ANY,
                attempts: &["dns.servfail"],
                with: "",
            },
            ..Case::alone("servfail", &[], 502, "(2: Server failure)", "", &[])
                .rule("set $upstream servfail.case.test; proxy_pass http://$upstream;")
        },
        Case::new("healthy", &[HEALTHY]).drive(Drive::Times(20)),
    ]
}

/// Cases that each need an nginx of their own.
pub fn alone() -> Vec<(Setting, Case)> {
    let usual = Setting::default();
    vec![
        (
            usual,
            Case::alone(
                "starved",
                &[HEALTHY],
                500,
                "(24: Too many open files)",
                "gw.fd_exhausted",
                PROVEN,
            )
            .drive(Drive::Starve),
        ),
        (
            Setting {
                ports: Some((40_000, 40_001)),
                ..usual
            },
            Case::fails(
                "ports",
                &[SILENT],
                502,
                "(99: Cannot assign requested address)",
                &["gw.port_exhausted"],
            )
            .drive(Drive::Busy(2)),
        ),
        (
            usual,
            Case {
                seen: Seen::Nothing,
                said: "exited on signal 9",
                told: Told::Answer {
                    cause: "gw.worker_died",
                    proofs: PROVEN,
                    attempts: &[],
                    with: "signal 9",
                },
                ..Case::new("killed", &[SILENT]).drive(Drive::Kill)
            },
        ),
        (
            Setting {
                connections: 32,
                ..usual
            },
            Case {
                told: Told::Answer {
                    cause: "gw.loop",
                    proofs: FIRM,
                    attempts: &["gw.loop"],
                    with: "",
                },
                ..Case::fails("loop", &[], 502, "(104: Connection reset by peer)", &[])
                    .rule("proxy_set_header Host $host; proxy_pass http://10.77.0.1:8001;")
            },
        ),
    ]
}

/// A case whose upstream is `HAProxy` on the same host, which fails.
pub fn in_front_of_haproxy() -> Case {
    Case::fails("chained", &[], 503, "", &["upstream.own_error"])
        .rule("proxy_pass http://10.77.0.1:8002;")
        .with("itself a gateway on this host")
}

/// A case whose event comes when its time is over: what happened before it is told by then.
pub(super) fn canary() -> Case {
    Case {
        said: "(111: Connection refused)",
        ..Case::new("canary", &[REFUSES, HEALTHY])
            .group(TWO)
            .rule(AGAIN)
            .hides("tcp.connect_refused")
    }
}
