//! Caddy: its configuration, and its cases.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};

use super::{
    ANY, BAD_STATUS, BUSY, CLOSES, Case, DROPPED, Drive, FAILS, Gateway, HALF_HEAD, HEALTHY,
    REFUSES, RESETS, SILENT, UNROUTED,
};

/// The Caddy that `cargo xtask setup` installs.
pub(super) fn current() -> Result<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/parts/caddy/bin/caddy");
    let there = path.is_file();
    ensure!(
        there,
        "{} is not there: run `cargo xtask setup` as root",
        path.display()
    );
    Ok(path)
}

/// The configuration of all cases.
pub(super) fn config(directory: &Path, cases: &[(Case, Vec<SocketAddr>)]) -> Result<String> {
    let directory = directory.display();
    let mut text = format!(
        "{{\n  admin off\n  auto_https off\n  log {{\n    output file {directory}/errors\n\
         \x20   format json\n    level DEBUG\n  }}\n}}\nhttp://:{} {{\n  log {{\n    output file {directory}/access\n    format json\n  }}\n",
        Gateway::Caddy.address().port()
    );
    for (case, addresses) in cases {
        let rule = match case.group {
            "" => case.rule.to_owned(),
            group => format!(
                "reverse_proxy {group} {{\n    {}\n    transport http {{\n      dial_timeout 1s\n      \
                 response_header_timeout 1s\n    }}\n  }}",
                case.rule
            ),
        };
        let rule = case.fill(&rule, addresses);
        writeln!(text, "  handle /{} {{\n  {rule}\n  }}", case.name)?;
    }
    text.push_str("}\n");
    Ok(text)
}

/// Cases of several attempts: which upstream is the first one depends on who asked before.
pub(super) fn retries() -> Vec<Case> {
    const AGAIN: &str = "lb_policy round_robin\n    lb_retries 1\n    lb_try_interval 250ms";
    let two = |name, upstreams, attempts| {
        Case::fails(name, upstreams, 502, "", attempts)
            .group("{0} {1}")
            .rule(AGAIN)
    };
    vec![
        two(
            "both_refuse",
            &[REFUSES, REFUSES],
            &["tcp.connect_refused", "tcp.connect_refused"],
        ),
        two(
            "refuses_or_closes",
            &[REFUSES, CLOSES],
            &["tcp.connect_refused", "tcp.closed_no_response"],
        ),
    ]
}

/// The cases of one Caddy.
pub fn cases() -> Vec<Case> {
    let one = |case: Case| case.group("{0}");
    vec![
        one(Case::fails(
            "refused",
            &[REFUSES],
            502,
            "connection refused",
            &["tcp.connect_refused"],
        )),
        one(Case::fails(
            "dropped",
            &[DROPPED],
            502,
            "i/o timeout",
            &["tcp.connect_blackholed"],
        )),
        one(Case::fails(
            "unrouted",
            &[UNROUTED],
            502,
            "network is unreachable",
            &["tcp.connect_no_route"],
        )),
        one(Case::fails(
            "closes",
            &[CLOSES],
            502,
            "EOF",
            &["tcp.closed_no_response"],
        )),
        one(Case::fails(
            "resets",
            &[RESETS],
            502,
            "connection reset by peer",
            &["tcp.reset_no_response"],
        )),
        one(Case::fails(
            "silent",
            &[SILENT],
            504,
            "timeout awaiting response headers",
            &["upstream.slow_first_byte"],
        )),
        one(Case::fails(
            "malformed",
            &[BAD_STATUS],
            502,
            "malformed",
            &["http1.status_line_invalid"],
        )),
        one(Case::fails(
            "half_head",
            &[HALF_HEAD],
            502,
            "EOF",
            &["http1.head_truncated"],
        )),
        one(Case::fails(
            "busy",
            &[BUSY],
            503,
            "",
            &["upstream.own_error"],
        )),
        one(Case::fails(
            "fails",
            &[FAILS],
            500,
            "",
            &["upstream.own_error"],
        )),
        one(Case::alone(
            "ejected",
            &[REFUSES],
            503,
            "no upstreams available",
            "pick.passively_ejected",
            ANY,
        ))
        .rule("fail_duration 60s")
        .drive(Drive::Times(2))
        .with("tcp.connect_refused"),
        Case::alone("returned", &[], 503, "", "gw.local_answer", ANY).rule("respond 503"),
        one(Case::new("healthy", &[HEALTHY]).drive(Drive::Times(20))),
    ]
}
