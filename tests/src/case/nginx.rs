//! nginx: its configuration, and its cases.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::Path;

use anyhow::Result;

use super::{
    ABSENT, ANY, BUSY, CLOSES, Case, DROPPED, Drive, FAILS, FIRM, FORGETS, Gateway, HALF_BODY,
    HALF_HEAD, HANGS_UP, HEALTHY, MALFORMED, MUTE, NO_ALPN, NO_HELLO, NO_NAME, NUL, OLD_TLS, OPEN,
    PLAINTEXT, PROHIBITED, PROVEN, REFUSES, RESETS, SICK_TLS, SILENT, STALLS, Setting, Told,
    UNREACHABLE, UNROUTED, Up, WEAK_TLS,
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
/// Waits for longer than the next request takes to come, on a busy machine as well.
const PATIENT: &str = "proxy_read_timeout 6s;";
/// Two upstreams that are never put aside.
const TWO: &str = "server {0} max_fails=0; server {1} max_fails=0;";

/// Cases that one nginx can have side by side.
pub fn cases() -> Vec<Case> {
    [common(), rare(), over_tls(), by_name()].concat()
}

/// What fails between nginx and an upstream less often.
fn rare() -> Vec<Case> {
    vec![
        Case::fails(
            "prohibited",
            &[PROHIBITED],
            502,
            "(13: Permission denied)",
            &["tcp.connect_local_policy"],
        ),
        Case::fails(
            "unreachable",
            &[UNREACHABLE],
            502,
            "(113: No route to host)",
            &["tcp.connect_host_unreachable"],
        ),
        // Linux needs three seconds to find that nobody has the address.
        Case::fails(
            "absent",
            &[ABSENT],
            502,
            "(113: No route to host)",
            &["tcp.connect_no_neighbour"],
        )
        .rule("proxy_connect_timeout 8s;"),
        Case::fails(
            "no_socket",
            &[],
            502,
            "(2: No such file or directory)",
            &["unix.unavailable"],
        )
        .rule("proxy_pass http://unix:/nonexistent;"),
        Case::fails(
            "hangs_up",
            &[HANGS_UP],
            502,
            "while reading response header",
            &["tcp.closed_on_accept"],
        ),
        Case::fails(
            "stale",
            &[FORGETS],
            502,
            "while reading response header",
            &["pool.stale_reuse"],
        )
        .group("server {0}; keepalive 4;")
        .rule("proxy_set_header Connection \"\";")
        .drive(Drive::Again),
        Case::fails(
            "nul",
            &[NUL],
            502,
            "invalid header",
            &["http1.header_control_char"],
        ),
    ]
}

/// What fails as nginx shakes hands.
fn over_tls() -> Vec<Case> {
    let fails = |name, upstreams: &'static [Up], status, said, attempts| {
        Case::fails(name, upstreams, status, said, attempts).rule("proxy_pass https://{name};")
    };
    vec![
        fails(
            "plaintext",
            &[PLAINTEXT],
            502,
            "SSL",
            &["tls.plaintext_upstream"],
        ),
        fails(
            "no_hello",
            &[NO_HELLO],
            502,
            "peer closed connection in SSL handshake",
            &["tls.handshake_closed"],
        ),
        fails(
            "mute",
            &[MUTE],
            504,
            "while SSL handshaking",
            &["tls.handshake_timeout"],
        ),
        fails(
            "old_tls",
            &[OLD_TLS],
            502,
            "alert number 70",
            &["tls.version_mismatch"],
        ),
        fails(
            "weak_tls",
            &[WEAK_TLS],
            502,
            "alert number 71",
            &["tls.no_common_parameters"],
        ),
        fails(
            "sick_tls",
            &[SICK_TLS],
            502,
            "alert number 80",
            &["tls.internal_error"],
        ),
        fails(
            "no_name",
            &[NO_NAME],
            502,
            "alert number 112",
            &["tls.sni_unrecognised"],
        ),
        fails(
            "no_alpn",
            &[NO_ALPN],
            502,
            "alert number 120",
            &["tls.alpn_mismatch"],
        ),
    ]
}

/// What fails as nginx looks a name up.
fn by_name() -> Vec<Case> {
    let fails = |name, rule, said, attempts| Case::fails(name, &[], 502, said, attempts).rule(rule);
    vec![
        fails(
            "nxdomain",
            "set $upstream nxdomain.case.test; proxy_pass http://$upstream;",
            "(3: Host not found)",
            &["dns.nxdomain"],
        ),
        fails(
            "nodata",
            "set $upstream nodata.case.test; proxy_pass http://$upstream;",
            "(3: Host not found)",
            &["dns.nodata"],
        ),
        fails(
            "servfail",
            "set $upstream servfail.case.test; proxy_pass http://$upstream;",
            "(2: Server failure)",
            &["dns.servfail"],
        ),
        fails(
            "name_refused",
            "set $upstream refused.case.test; proxy_pass http://$upstream;",
            "(5: Operation refused)",
            &["dns.refused"],
        ),
    ]
}

fn common() -> Vec<Case> {
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
        .rule(PATIENT)
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
            .rule(PATIENT)
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
