//! `HAProxy`: its configuration, and its cases.

use std::fmt::Write as _;
use std::net::SocketAddr;

use anyhow::Result;

use super::{
    ANY, BAD_CHUNK, BUSY, CLOSES, Case, DROPPED, Drive, FAILS, Gateway, HALF_BODY, HALF_HEAD,
    HEALTHY, LEAVES, MALFORMED, NO_LENGTH, ODD_CODING, OPEN, PLAINTEXT, PROVEN, REFUSES, RESETS,
    SILENT, SMTP, STALLS, Setting, TLS_PORT, TWO_LENGTHS, UNROUTED,
};
use crate::access;
use crate::client::Seen;

/// The configuration of all cases, where lines of the log go to `log`.
pub(super) fn config(
    setting: Setting,
    log: &str,
    cases: &[(Case, Vec<SocketAddr>)],
) -> Result<String> {
    let mut text = format!(
        "global\n  log {log} format raw local0\n  maxconn 1000\n  nbthread {}\n\
         defaults\n  mode http\n  log global\n  log-format {}\n  retries 0\n  timeout client 60s\n\
         \x20 timeout connect 1s\n  timeout server 1s\n  timeout queue 500ms\n  timeout tarpit 500ms\n\
         frontend lab\n  bind {}\n",
        setting.workers,
        access::HAPROXY,
        Gateway::Haproxy.address()
    );
    for (case, addresses) in cases {
        if !case.rule.is_empty() {
            let condition = format!("if {{ path /{} }}", case.name);
            let rule = case.fill(case.rule, addresses);
            writeln!(text, "  {rule} {condition}")?;
        }
    }
    // A case without a group has no backend.
    let with_group = || cases.iter().filter(|(case, _)| !group(case).is_empty());
    for (Case { name, .. }, _) in with_group() {
        writeln!(text, "  use_backend {name} if {{ path /{name} }}")?;
    }
    for (case, addresses) in with_group() {
        let group = case.fill(group(case), addresses);
        writeln!(text, "backend {}\n  {group}", case.name)?;
    }
    Ok(text)
}

fn group(case: &Case) -> &'static str {
    match (case.group, case.upstreams) {
        ("", [_, ..]) => "server {s0}",
        (group, _) => group,
    }
}

/// The other server is asked at once.
const TWO: &str = "retries 1\n  option redispatch 1\n  server {s0}\n  server {s1}";

/// Cases that one `HAProxy` can have side by side.
pub fn cases() -> Vec<Case> {
    vec![
        Case::fails("refused", &[REFUSES], 503, " SC ", &["tcp.connect_refused"]),
        Case::fails(
            "dropped",
            &[DROPPED],
            503,
            " sC ",
            &["tcp.connect_blackholed"],
        ),
        Case::fails(
            "unrouted",
            &[UNROUTED],
            503,
            " SC ",
            &["tcp.connect_no_route"],
        ),
        Case::fails(
            "closes",
            &[CLOSES],
            502,
            " SH ",
            &["tcp.closed_no_response"],
        ),
        Case::fails("resets", &[RESETS], 502, " SH ", &["tcp.reset_no_response"]),
        Case::fails(
            "silent",
            &[SILENT],
            504,
            " sH ",
            &["upstream.slow_first_byte"],
        ),
        Case::fails(
            "stalls",
            &[STALLS],
            504,
            " sH ",
            &["upstream.stalled_in_head"],
        ),
        Case::fails(
            "malformed",
            &[MALFORMED],
            502,
            " PH ",
            &["http1.header_syntax"],
        ),
        Case::fails(
            "half_head",
            &[HALF_HEAD],
            502,
            " SH ",
            &["http1.head_truncated"],
        ),
        Case::fails("not_http", &[SMTP], 502, " PH ", &["http1.not_http"]),
        Case::fails(
            "tls_port",
            &[TLS_PORT],
            502,
            " PH ",
            &["tls.plaintext_to_tls_port"],
        ),
        Case::fails(
            "no_length",
            &[NO_LENGTH],
            502,
            " PH ",
            &["http1.content_length_invalid"],
        ),
        Case::fails(
            "two_lengths",
            &[TWO_LENGTHS],
            502,
            " PH ",
            &["http1.content_length_conflict"],
        ),
        Case::fails(
            "odd_coding",
            &[ODD_CODING],
            502,
            " PH ",
            &["http1.transfer_encoding_unsupported"],
        ),
        Case::fails(
            "bad_chunk",
            &[BAD_CHUNK],
            502,
            " PH ",
            &["http1.chunk_syntax"],
        ),
        Case::fails("busy", &[BUSY], 503, " -- ", &["upstream.own_error"]),
        Case::fails("fails", &[FAILS], 500, " -- ", &["upstream.own_error"]),
        Case::fails(
            "plaintext",
            &[PLAINTEXT],
            503,
            " SC ",
            &["tls.plaintext_upstream"],
        )
        .group("server {s0} ssl verify none"),
        Case {
            seen: Seen::Cut(200),
            said: " SD ",
            ..Case::new("half_body", &[HALF_BODY]).hides("http1.body_truncated")
        },
        // Two servers.
        Case::fails(
            "both_fail",
            &[REFUSES, UNROUTED],
            503,
            " SC ",
            &["tcp.connect_refused", "tcp.connect_no_route"],
        )
        .group(TWO),
        Case::fails(
            "both_fail_later",
            &[REFUSES, CLOSES],
            502,
            " SH ",
            &["tcp.connect_refused", "tcp.closed_no_response"],
        )
        .group(TWO),
        Case {
            said: " -- +1 ",
            ..Case::new("second_helps", &[REFUSES, HEALTHY])
                .group(TWO)
                .hides("tcp.connect_refused")
        },
        // No server is asked.
        Case::alone(
            "down",
            &[REFUSES, REFUSES],
            503,
            "<NOSRV> SC ",
            "pick.all_unhealthy",
            ANY,
        )
        .group(
            "default-server check inter 300ms downinter 10s fall 1\n  server {s0}\n  server {s1}",
        )
        .drive(Drive::After("backend down has no server available"))
        .checked("tcp.connect_refused"),
        Case::alone(
            "went_down",
            &[LEAVES],
            503,
            "<NOSRV> SC ",
            "pick.all_unhealthy",
            ANY,
        )
        .group("server {s0} check inter 300ms downinter 10s fall 1")
        .drive(Drive::Until("backend went_down has no server available"))
        .checked("tcp.connect_refused"),
        Case::alone("queued", &[SILENT], 503, " sQ ", "pick.queue_timeout", ANY)
            .group("timeout server 6s\n  server {s0} maxconn 1")
            .drive(Drive::Busy(1)),
        Case::alone("denied", &[HEALTHY], 503, " PR ", "gw.local_answer", OPEN)
            .rule("http-request deny deny_status 503"),
        Case::alone(
            "denied_502",
            &[HEALTHY],
            502,
            " PR ",
            "gw.local_answer",
            OPEN,
        )
        .rule("http-request deny deny_status 502"),
        Case::alone("returned", &[HEALTHY], 503, " LR ", "gw.local_answer", OPEN)
            .rule("http-request return status 503"),
        Case::alone("tarpit", &[HEALTHY], 503, " PT ", "gw.local_answer", OPEN)
            .rule("http-request tarpit deny_status 503"),
        Case::alone("nowhere", &[], 503, "<NOSRV> SC ", "pick.no_route", OPEN),
        Case::alone("empty", &[], 503, "<NOSRV> SC ", "pick.empty_set", OPEN)
            .group("balance roundrobin"),
        Case::alone(
            "disabled",
            &[HEALTHY],
            503,
            "<NOSRV> SC ",
            "pick.all_unhealthy",
            OPEN,
        )
        .group("server {s0} disabled"),
        Case::alone(
            "bound",
            &[HEALTHY],
            503,
            " SC ",
            "gw.source_bind_failed",
            PROVEN,
        )
        .group("source 10.98.0.1\n  server {s0}"),
        Case::new("healthy", &[HEALTHY]).drive(Drive::Times(20)),
    ]
}

/// Cases that each need a `HAProxy` of their own.
pub fn alone() -> Vec<(Setting, Case)> {
    let usual = Setting::default();
    vec![
        (
            usual,
            Case::alone(
                "starved",
                &[HEALTHY],
                503,
                " SC ",
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
            Case::fails("ports", &[SILENT], 503, " SC ", &["gw.port_exhausted"])
                .group("timeout server 6s\n  server {s0}")
                .drive(Drive::Busy(2)),
        ),
    ]
}

/// A case that fails behind nginx.
pub fn behind_nginx() -> Case {
    Case::fails("chained", &[REFUSES], 503, " SC ", &["tcp.connect_refused"])
}
