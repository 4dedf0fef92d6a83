//! Apache httpd: its configuration, and its cases.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::Path;

use anyhow::Result;

use super::{
    ANY, BUSY, CLOSES, Case, Drive, FAILS, Gateway, HALF_HEAD, HEALTHY, MALFORMED, REFUSES, RESETS,
    SILENT, UNROUTED,
};
use crate::access;
use crate::apache::load;

/// The configuration of all cases.
pub(super) fn config(directory: &Path, cases: &[(Case, Vec<SocketAddr>)]) -> Result<String> {
    let mut text = format!(
        "ServerRoot {0}\nDefaultRuntimeDir {0}\nPidFile {0}/pid\nErrorLog {0}/errors\nLogLevel info proxy:debug\n\
         ServerName lab\nListen {1}\nUser www-data\nGroup www-data\n",
        directory.display(),
        Gateway::Apache.address()
    );
    text += &load(&[
        "mpm_event",
        "authz_core",
        "alias",
        "slotmem_shm",
        "proxy",
        "proxy_http",
        "proxy_balancer",
        "lbmethod_byrequests",
    ]);
    writeln!(
        text,
        "ServerLimit 1\nStartServers 1\nThreadLimit 32\nThreadsPerChild 32\nMaxRequestWorkers 32\n\
         KeepAlive On\nProxyTimeout 1\nLogFormat {} hop\nCustomLog {}/access hop\n\
         ErrorLogFormat \"[%a] %E: %M\"",
        access::APACHE,
        directory.display()
    )?;
    for (case, addresses) in cases {
        if !case.group.is_empty() {
            writeln!(text, "{}", case.fill(case.group, addresses))?;
        }
        let rule = match case.rule {
            "" => "ProxyPass \"http://{0}/\" connectiontimeout=1 timeout=1 retry=0 disablereuse=On",
            rule => rule,
        };
        let rule = case.fill(rule, addresses);
        writeln!(text, "<Location \"/{}\">\n{rule}\n</Location>", case.name)?;
    }
    Ok(text)
}

/// The cases of one Apache.
pub fn cases() -> Vec<Case> {
    vec![
        Case::fails("refused", &[REFUSES], 503, "AH00957", &["tcp.connect_refused"]),
        Case::fails("unrouted", &[UNROUTED], 503, "AH00957", &["tcp.connect_no_route"]),
        Case::fails("closes", &[CLOSES], 502, "Error reading from remote server", &["tcp.closed_no_response"]),
        Case::fails("resets", &[RESETS], 502, "Error reading", &["tcp.reset_no_response"]),
        Case::fails("silent", &[SILENT], 502, "Error reading", &["upstream.slow_first_byte"]),
        Case::fails("malformed", &[MALFORMED], 500, "", &["http1.header_syntax"]),
        Case::fails("half_head", &[HALF_HEAD], 502, "AH01106", &["http1.head_truncated"]),
        Case::fails("busy", &[BUSY], 503, "", &["upstream.own_error"]),
        Case::fails("fails", &[FAILS], 500, "", &["upstream.own_error"]),
        // The members are not asked again before a minute is over.
        Case::alone("ejected", &[REFUSES], 503, "AH01170", "pick.passively_ejected", ANY)
            .group(
                "<Proxy \"balancer://{name}\">\nBalancerMember \"http://{0}\" connectiontimeout=1 retry=60\n\
                 ProxySet forcerecovery=Off\n</Proxy>",
            )
            .rule("ProxyPass \"balancer://{name}/\"")
            .drive(Drive::Times(2))
            .with("tcp.connect_refused"),
        Case::fails(
            "both_fail",
            &[REFUSES, UNROUTED],
            503,
            "AH00957",
            &["tcp.connect_refused", "tcp.connect_no_route"],
        )
        .group(
            "<Proxy \"balancer://{name}\">\nBalancerMember \"http://{0}\" connectiontimeout=1 retry=60\n\
             BalancerMember \"http://{1}\" connectiontimeout=1 retry=60\n</Proxy>",
        )
        .rule("ProxyPass \"balancer://{name}/\""),
        Case::alone("returned", &[], 503, "", "gw.local_answer", ANY).rule("Redirect 503"),
        Case::new("healthy", &[HEALTHY]).drive(Drive::Times(20)),
    ]
}
