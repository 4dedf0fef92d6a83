//! Responses with long heads, as large as gateways take by default and larger.

use crate::client::Seen;
use crate::gateway::Kind;
use crate::scenario::{Drive, Scenario, fails, trap};
use crate::upstream::Behaviour;

/// What nginx takes with a body behind it, and what it does not take: `proxy_buffer_size` is a page.
const NGINX: [usize; 2] = [4080, 4097];
/// What Apache takes of a line: `HUGE_STRING_LEN`. `HAProxy` takes more of a head.
const APACHE: usize = 8190;
/// Less than `HAProxy` takes, and more than that.
const HAPROXY: [usize; 2] = [15_000, 16_384];

/// The words of each gateway for a head that is too large for it.
pub const fn words(kind: Kind) -> &'static str {
    match kind {
        Kind::Nginx => "upstream sent too big header while reading response header from upstream",
        // Its log goes to a socket; it tells of nothing else.
        Kind::Haproxy => "",
        Kind::Apache => "AH10124",
    }
}

/// A response whose head has `HEAD` bytes in one long field, and three bytes of a body.
const fn response<const HEAD: usize, const ALL: usize>() -> [u8; ALL] {
    const BEGIN: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nX-Long: ";
    const END: &[u8] = b"\r\n\r\nok\n";
    assert!(ALL == HEAD + 3, "three bytes of body");
    let mut all = [b'a'; ALL];
    let mut at = 0;
    while at < BEGIN.len() {
        all[at] = BEGIN[at];
        at += 1;
    }
    at = 0;
    while at < END.len() {
        all[ALL - END.len() + at] = END[at];
        at += 1;
    }
    all
}

static AT_NGINX: [u8; NGINX[0] + 3] = response::<{ NGINX[0] }, { NGINX[0] + 3 }>();
static ABOVE_NGINX: [u8; NGINX[1] + 3] = response::<{ NGINX[1] }, { NGINX[1] + 3 }>();
static AT_APACHE: [u8; APACHE + 3] = response::<APACHE, { APACHE + 3 }>();
static AT_HAPROXY: [u8; HAPROXY[0] + 3] = response::<{ HAPROXY[0] }, { HAPROXY[0] + 3 }>();
static ABOVE_HAPROXY: [u8; HAPROXY[1] + 3] = response::<{ HAPROXY[1] }, { HAPROXY[1] + 3 }>();

/// Each as the first response of a connection, and behind one that was held back. Apache reads what it refuses to
/// its end and closes in order, as it does behind a good response: only what it takes is played.
pub fn scenarios() -> Vec<Scenario> {
    const NOBODY: &[Kind] = &Kind::TLS;
    let rows: [(_, &'static [u8], [&'static [Kind]; 2]); 5] = [
        (["at_nginx", "then_at_nginx"], &AT_NGINX, [NOBODY, &[]]),
        (
            ["above_nginx", "then_above_nginx"],
            &ABOVE_NGINX,
            [&[Kind::Haproxy, Kind::Apache], &[Kind::Nginx]],
        ),
        (
            ["at_apache", "then_at_apache"],
            &AT_APACHE,
            [&[Kind::Haproxy, Kind::Apache], &[Kind::Nginx]],
        ),
        (
            ["at_haproxy", "then_at_haproxy"],
            &AT_HAPROXY,
            [&[Kind::Haproxy, Kind::Apache], &[Kind::Nginx, Kind::Apache]],
        ),
        (
            ["above_haproxy", "then_above_haproxy"],
            &ABOVE_HAPROXY,
            [&[Kind::Apache], NOBODY],
        ),
    ];
    let mut all = Vec::new();
    for ([first, later], bytes, [refuse_not, take_not]) in rows {
        let behaviours = [
            (first, Behaviour::Answer(bytes), Drive::Once),
            (later, Behaviour::AnswerThen(bytes), Drive::Twice),
        ];
        for (name, behaviour, drive) in behaviours {
            let bad = Seen::Status(502);
            let refused = fails(name, "http1.header_too_large", behaviour, bad, bad);
            let refused = Scenario {
                without: refuse_not,
                ..refused.proofs(&["inferred"]).drive(drive)
            };
            let taken = Scenario {
                apache: Seen::Status(200),
                without: take_not,
                ..trap(taken(name), behaviour).drive(drive)
            };
            all.extend([refused, taken]);
        }
    }
    all.retain(|one| one.without.len() < NOBODY.len());
    all
}

/// The name of the row of those that take it.
fn taken(name: &'static str) -> &'static str {
    match name {
        "at_nginx" => "takes_nginx",
        "then_at_nginx" => "then_takes_nginx",
        "above_nginx" => "takes_above_nginx",
        "then_above_nginx" => "then_takes_above_nginx",
        "at_apache" => "takes_apache",
        "then_at_apache" => "then_takes_apache",
        "at_haproxy" => "takes_haproxy",
        _ => "then_takes_haproxy",
    }
}
