//! The table of scenarios: how each upstream fails, what a client of each gateway then sees, and which
//! cause it is. The tests and the demo only read it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use crate::client::Seen;
use crate::gateway::{Kind, TIMEOUT};
use crate::socket::Socket;
use crate::tls::{self, openssl};
use crate::upstream::{Behaviour, End};

/// The gateways' address on the link to the upstreams.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
/// The upstreams' address.
pub const UPSTREAM: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);
/// The gateways' IPv6 address on that link.
pub const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 1);
/// The upstreams' IPv6 address.
pub const UPSTREAM_V6: Ipv6Addr = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 2);

/// One way in which an upstream fails, or a trap that must not look like a failure.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// Name, also the path of the request.
    pub name: &'static str,
    /// Where the upstream is, or is not.
    pub place: Place,
    /// What the upstream does; `None` where nothing listens.
    pub behaviour: Option<Behaviour>,
    /// What is at the path of the upstream, where that is a unix socket.
    pub socket: Option<Socket>,
    /// What the network does on the way.
    pub trick: Option<Trick>,
    /// What the client does.
    pub drive: Drive,
    /// What a client of nginx sees last.
    pub nginx: Seen,
    /// What a client of HAProxy sees last.
    pub haproxy: Seen,
    /// What a client of Apache sees last.
    pub apache: Seen,
    /// How the gateway speaks TLS to the upstream, where it does.
    pub tls: Option<tls::Client>,
    /// The upstream, where it is a program of its own.
    pub openssl: Option<openssl::Server>,
    /// The verdict; `None` for a trap, which must give none.
    pub verdict: Option<Verdict>,
    /// What a client of this gateway may see instead, where that is a race inside it.
    pub or: Option<(Kind, Seen)>,
    /// Gateways that reject a certificate once the handshake is over, without an alert.
    pub late: &'static [Kind],
    /// Gateways that cannot do this, do it more than once, or much later.
    pub without: &'static [Kind],
    /// The gateway that takes such a response as it is: behind it, nothing failed.
    pub tolerated_by: Option<Kind>,
    /// The checks that HAProxy makes meanwhile.
    pub check: Option<Check>,
}

/// What the engine must say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// The cause.
    pub cause: &'static str,
    /// How firmly it may stand on a live host.
    pub proofs: &'static [&'static str],
    /// What shows it.
    pub shown: Shown,
}

impl Verdict {
    /// Whose fault it may be called: a few causes leave it open.
    pub fn sides(&self) -> &'static [&'static str] {
        match self.cause {
            "tls.plaintext_upstream"
            | "tls.plaintext_to_tls_port"
            | "tls.sni_unrecognised"
            | "tls.client_certificate_required"
            | "tls.client_certificate_rejected" => &["gateway"],
            "tls.version_mismatch" | "tls.no_common_parameters" | "tls.alpn_mismatch" => &["both"],
            "tls.certificate_name_mismatch" | "tls.certificate_untrusted" => {
                &["upstream", "gateway", "both"]
            }
            "tls.handshake_closed" | "tls.handshake_timeout" | "tls.record_corrupt" => {
                &["upstream", "network"]
            }
            cause if cause.starts_with("tls.") => &["upstream"],
            _ => &["upstream", "gateway", "network", "both"],
        }
    }
}

/// What shows a failure for what it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shown {
    /// Packets do, live and recorded.
    Packets,
    /// The kernel does: no packet was ever sent.
    Kernel,
    /// The gateway's TLS library does. Packets leave more than one cause, this among them.
    Partly,
    /// The gateway's TLS library does. Packets may look like a gateway that has nothing to ask.
    Library,
    /// Packets leave it open whether there was a response. Nothing else knows.
    Perhaps,
}

impl Shown {
    /// Whether something must be said on a live host.
    pub const fn live(self) -> bool {
        !matches!(self, Self::Perhaps)
    }

    /// Whether something must be said of a recording.
    pub const fn recorded(self) -> bool {
        matches!(self, Self::Packets | Self::Partly)
    }

    /// Whether this cause may be one of several.
    pub const fn rivals(self) -> bool {
        matches!(self, Self::Partly | Self::Library | Self::Perhaps)
    }
}

/// Where the gateway is told that its upstream is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// At the upstreams' address.
    Upstream,
    /// At the upstreams' IPv6 address.
    UpstreamV6,
    /// At an address for which there is no route.
    Unrouted,
    /// Behind a route of type prohibit.
    Prohibited,
    /// Behind a route of type blackhole.
    Blackholed,
    /// At an address on the link that nobody has.
    Absent,
    /// Behind a router that cannot reach it.
    BehindRouter,
}

impl Place {
    /// The address itself.
    pub const fn address(self) -> IpAddr {
        match self {
            Self::Upstream => IpAddr::V4(UPSTREAM),
            Self::UpstreamV6 => IpAddr::V6(UPSTREAM_V6),
            Self::Absent => IpAddr::V4(Ipv4Addr::new(10, 77, 0, 99)),
            Self::BehindRouter => IpAddr::V4(Ipv4Addr::new(10, 77, 2, 1)),
            Self::Prohibited => IpAddr::V4(Ipv4Addr::new(10, 77, 3, 1)),
            Self::Blackholed => IpAddr::V4(Ipv4Addr::new(10, 77, 4, 1)),
            Self::Unrouted => IpAddr::V4(Ipv4Addr::new(10, 99, 0, 1)),
        }
    }
}

/// What the network at the upstream does to some segments.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Trick {
    /// Every segment to the upstream is lost.
    DropAll,
    /// The first SYN of each connection is lost.
    DropFirstSyn,
    /// The first segment with data of each connection is lost. Then the upstream closes before the
    /// request arrives, however fast the gateway is.
    DropFirstData,
    /// The upstream's FIN is lost. Then the gateway cannot know that a pooled connection is closed.
    DropFin,
}

impl Trick {
    /// Every trick.
    pub const ALL: [Self; 4] = [
        Self::DropAll,
        Self::DropFirstSyn,
        Self::DropFirstData,
        Self::DropFin,
    ];
}

/// What the client does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drive {
    /// Sends one request.
    Once,
    /// Sends one that succeeds, and one more once the upstream has closed that connection.
    Again,
    /// Sends one that succeeds, and one more, each on a connection of its own.
    Twice,
    /// Sends one, and waits until the gateway has closed the connection that it kept.
    Idle,
    /// Sends one and goes away in the middle of the answer.
    GoAway,
    /// Sends this many on one connection, each after the other's answer.
    Many(u32),
    /// Sends one and goes away while it waits for the answer.
    Leave(Departure),
    /// Sends one, and reads the answer only after a while.
    Crawl,
    /// Asks for another protocol and speaks it.
    Upgrade,
}

/// How a client goes away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Departure {
    /// With a FIN.
    Fin,
    /// With a RST.
    Reset,
}

/// How HAProxy checks the health of an upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Check {
    /// It connects and closes, without TLS.
    Tcp,
    /// It makes a TLS handshake and closes.
    Tls,
    /// It sends a request.
    Http,
}

impl Scenario {
    /// What a client of `kind` sees last.
    pub const fn seen(&self, kind: Kind) -> Seen {
        match kind {
            Kind::Nginx => self.nginx,
            Kind::Haproxy => self.haproxy,
            Kind::Apache => self.apache,
        }
    }

    /// Whether a client of `kind` may see this last.
    pub fn accepts(&self, kind: Kind, seen: Seen) -> bool {
        seen == self.seen(kind) || self.or == Some((kind, seen))
    }

    /// Whether it can be played through `kind`.
    pub fn plays(&self, kind: Kind) -> bool {
        !self.without.contains(&kind)
    }

    /// What the agent must say of it behind `kind`.
    pub fn verdict(&self, kind: Kind) -> Option<Verdict> {
        let verdict = self.verdict.filter(|_| self.tolerated_by != Some(kind))?;
        Some(if self.late.contains(&kind) {
            Verdict {
                shown: Shown::Library,
                ..verdict
            }
        } else {
            verdict
        })
    }

    /// Whether the gateway needs a pool of upstream connections for it.
    pub const fn keep_alive(&self) -> bool {
        match self.behaviour {
            Some(
                Behaviour::Answer(_)
                | Behaviour::AnswerThen(_)
                | Behaviour::Healthy
                | Behaviour::CloseIdle(_)
                | Behaviour::CloseListener(_),
            ) => true,
            Some(Behaviour::Tls(server)) => server.keeps(),
            _ => false,
        }
    }

    /// The gateway's time-out for connecting.
    pub const fn connect_timeout(&self) -> Duration {
        match self.place {
            // Linux needs three seconds to find that nobody has the address.
            Place::Absent => Duration::from_secs(5),
            _ => TIMEOUT,
        }
    }

    /// The gateway's time-out for the answer.
    pub const fn read_timeout(&self) -> Duration {
        match self.drive {
            // It must be the client whose patience ends.
            Drive::Leave(_) | Drive::Crawl => Duration::from_mins(1),
            _ => TIMEOUT,
        }
    }

    /// How long nginx is to keep a connection that it has no use for.
    pub const fn idle_timeout(&self) -> Duration {
        match self.drive {
            Drive::Idle => Duration::from_millis(300),
            _ => Duration::from_mins(1),
        }
    }

    /// Whether the gateway is to use one source port again and again.
    pub const fn fixed_source(&self) -> bool {
        matches!(self.drive, Drive::Again) && !self.keep_alive()
    }

    const fn at(mut self, place: Place) -> Self {
        self.place = place;
        self
    }

    const fn trick(mut self, trick: Trick) -> Self {
        self.trick = Some(trick);
        self
    }

    pub(crate) const fn drive(mut self, drive: Drive) -> Self {
        self.drive = drive;
        self
    }

    pub(crate) const fn proofs(mut self, proofs: &'static [&'static str]) -> Self {
        if let Some(verdict) = &mut self.verdict {
            verdict.proofs = proofs;
        }
        self
    }

    const fn not_in_packets(mut self) -> Self {
        if let Some(verdict) = &mut self.verdict {
            verdict.shown = Shown::Kernel;
        }
        self
    }
}

pub(crate) const fn fails(
    name: &'static str,
    cause: &'static str,
    behaviour: Behaviour,
    nginx: Seen,
    haproxy: Seen,
) -> Scenario {
    Scenario {
        behaviour: Some(behaviour),
        nginx,
        haproxy,
        ..cannot_connect(name, cause)
    }
}

const fn cannot_connect(name: &'static str, cause: &'static str) -> Scenario {
    Scenario {
        name,
        place: Place::Upstream,
        behaviour: None,
        socket: None,
        trick: None,
        drive: Drive::Once,
        nginx: BAD_GATEWAY,
        haproxy: UNAVAILABLE,
        apache: UNAVAILABLE,
        tls: None,
        openssl: None,
        verdict: Some(Verdict {
            cause,
            proofs: &["proven"],
            shown: Shown::Packets,
        }),
        or: None,
        late: &[],
        without: &[],
        tolerated_by: None,
        check: None,
    }
}

pub(crate) const fn trap(name: &'static str, behaviour: Behaviour) -> Scenario {
    let ok = Seen::Status(200);
    Scenario {
        verdict: None,
        ..fails(name, "", behaviour, ok, ok)
    }
}

const fn reply(bytes: &'static [u8], end: End) -> Behaviour {
    Behaviour::Reply(bytes, end)
}

const BAD_GATEWAY: Seen = Seen::Status(502);
const UNAVAILABLE: Seen = Seen::Status(503);
const TIMED_OUT: Seen = Seen::Status(504);
const OK: Seen = Seen::Status(200);

/// Every failure, in the order of the catalogue.
pub fn failures() -> Vec<Scenario> {
    let mut all = Vec::new();
    all.extend(connecting());
    all.extend(established());
    all.extend(time());
    all.extend(http1_heads());
    all.extend(http1_bodies());
    all
}

fn connecting() -> [Scenario; 11] {
    let unix = |name, socket| Scenario {
        socket: Some(socket),
        ..cannot_connect(name, "unix.unavailable").not_in_packets()
    };
    [
        unix("unix_missing", Socket::Missing),
        unix("unix_stale", Socket::Stale),
        unix("unix_full", Socket::Full),
        cannot_connect("refused", "tcp.connect_refused"),
        cannot_connect("refused_v6", "tcp.connect_refused").at(Place::UpstreamV6),
        cannot_connect("no_route", "tcp.connect_no_route")
            .at(Place::Unrouted)
            .not_in_packets(),
        cannot_connect("no_neighbour", "tcp.connect_no_neighbour")
            .at(Place::Absent)
            .not_in_packets(),
        cannot_connect("host_unreachable", "tcp.connect_host_unreachable").at(Place::BehindRouter),
        cannot_connect("prohibited", "tcp.connect_local_policy")
            .at(Place::Prohibited)
            .not_in_packets(),
        cannot_connect("blackhole_route", "tcp.connect_local_policy")
            .at(Place::Blackholed)
            .not_in_packets(),
        Scenario {
            nginx: TIMED_OUT,
            ..cannot_connect("blackholed", "tcp.connect_blackholed")
                .trick(Trick::DropAll)
                .proofs(&["inferred"])
        },
    ]
}

fn established() -> [Scenario; 5] {
    [
        fails(
            "closed_on_accept",
            "tcp.closed_on_accept",
            Behaviour::CloseOnAccept,
            BAD_GATEWAY,
            BAD_GATEWAY,
        )
        .trick(Trick::DropFirstData),
        fails(
            "closed_no_response",
            "tcp.closed_no_response",
            reply(b"", End::Fin),
            BAD_GATEWAY,
            BAD_GATEWAY,
        ),
        fails(
            "closed_no_response_v6",
            "tcp.closed_no_response",
            reply(b"", End::Fin),
            BAD_GATEWAY,
            BAD_GATEWAY,
        )
        .at(Place::UpstreamV6),
        fails(
            "reset_no_response",
            "tcp.reset_no_response",
            reply(b"", End::Reset),
            BAD_GATEWAY,
            BAD_GATEWAY,
        ),
        // The upstream's FIN never arrives, so that the next request runs into the closed socket.
        fails(
            "stale_reuse",
            "pool.stale_reuse",
            Behaviour::CloseIdle(Duration::ZERO),
            BAD_GATEWAY,
            BAD_GATEWAY,
        )
        .trick(Trick::DropFin)
        .drive(Drive::Again)
        .proofs(&["inferred"]),
    ]
}

/// That an upstream is late is seen; that it would have come is not, so the proof is inferred.
fn time() -> [Scenario; 6] {
    const HEAD: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Le";
    const BODY: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nonly this";
    const ERROR_500: &[u8] =
        b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 4\r\n\r\nbug\n";
    const ERROR_502: &[u8] = b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 4\r\n\r\nbad\n";
    const ERROR_503: &[u8] =
        b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 5\r\nContent-Length: 5\r\n\r\nbusy\n";
    [
        fails(
            "slow_first_byte",
            "upstream.slow_first_byte",
            reply(b"", End::Silence),
            TIMED_OUT,
            TIMED_OUT,
        )
        // So small a request does not show in the window whether it was read.
        .proofs(&["underdetermined"]),
        fails(
            "stalled_in_head",
            "upstream.stalled_in_head",
            reply(HEAD, End::Silence),
            TIMED_OUT,
            TIMED_OUT,
        )
        .proofs(&["inferred"]),
        fails(
            "stalled_in_body",
            "upstream.stalled_in_body",
            reply(BODY, End::Silence),
            Seen::Cut(200),
            Seen::Cut(200),
        )
        .proofs(&["inferred"]),
        fails(
            "own_error_500",
            "upstream.own_error",
            Behaviour::Answer(ERROR_500),
            Seen::Status(500),
            Seen::Status(500),
        ),
        fails(
            "own_error_502",
            "upstream.own_error",
            Behaviour::Answer(ERROR_502),
            BAD_GATEWAY,
            BAD_GATEWAY,
        ),
        fails(
            "own_error_503",
            "upstream.own_error",
            Behaviour::Answer(ERROR_503),
            UNAVAILABLE,
            UNAVAILABLE,
        ),
    ]
}

fn http1_heads() -> [Scenario; 13] {
    const HTML: &[u8] = b"<!doctype html><title>hello</title>\n";
    const TLS_ALERT: &[u8] = b"\x15\x03\x01\x00\x02\x02\x0a";
    const H2_SETTINGS: &[u8] = b"\x00\x00\x06\x04\x00\x00\x00\x00\x00\x00\x03\x00\x00\x00\x64";
    const STATUS_2XX: &[u8] = b"HTTP/1.1 2xx Fine\r\nContent-Length: 3\r\n\r\nok\n";
    const VERSION_2: &[u8] = b"HTTP/2 200\r\nContent-Length: 3\r\n\r\nok\n";
    const SPACE: &[u8] = b"HTTP/1.1 200 OK\r\nX-Cache : miss\r\nContent-Length: 3\r\n\r\nok\n";
    const NUL: &[u8] = b"HTTP/1.1 200 OK\r\nX-\0ache: miss\r\nContent-Length: 3\r\n\r\nok\n";
    const NO_COLON: &[u8] = b"HTTP/1.1 200 OK\r\nX-Cache-Miss\r\nContent-Length: 3\r\n\r\nok\n";
    const HALF_HEAD: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Type: text/pl";
    let not_http =
        |name, behaviour| fails(name, "http1.not_http", behaviour, Seen::Raw, BAD_GATEWAY);
    let status_line = |name, bytes| {
        let behaviour = reply(bytes, End::Fin);
        fails(
            name,
            "http1.status_line_invalid",
            behaviour,
            Seen::Raw,
            BAD_GATEWAY,
        )
    };
    let header = |name, bytes, nginx| {
        fails(
            name,
            "http1.header_syntax",
            reply(bytes, End::Fin),
            nginx,
            BAD_GATEWAY,
        )
    };
    let truncated = |name, end| {
        let behaviour = reply(HALF_HEAD, end);
        fails(
            name,
            "http1.head_truncated",
            behaviour,
            BAD_GATEWAY,
            BAD_GATEWAY,
        )
    };
    [
        not_http(
            "not_http_ssh",
            Behaviour::Banner(b"SSH-2.0-OpenSSH_9.2\r\n"),
        ),
        not_http(
            "not_http_smtp",
            Behaviour::Banner(b"220 mail.lab.test ESMTP\r\n"),
        ),
        not_http("not_http_html", Behaviour::Reply(HTML, End::Fin)),
        fails(
            "tls_alert",
            "tls.plaintext_to_tls_port",
            reply(TLS_ALERT, End::Fin),
            Seen::Raw,
            BAD_GATEWAY,
        ),
        not_http("not_http_h2", Behaviour::Reply(H2_SETTINGS, End::Fin)),
        status_line("status_2xx", STATUS_2XX),
        status_line("status_http2", VERSION_2),
        header("header_space", SPACE, BAD_GATEWAY),
        header("header_nul", NUL, BAD_GATEWAY),
        // nginx drops such a line and serves the rest.
        Scenario {
            tolerated_by: Some(Kind::Nginx),
            ..header("header_no_colon", NO_COLON, OK)
        },
        truncated("head_truncated_fin", End::Fin),
        truncated("head_truncated_reset", End::Reset),
        fails(
            "content_length_word",
            "http1.content_length_invalid",
            reply(
                b"HTTP/1.1 200 OK\r\nContent-Length: three\r\n\r\nok\n",
                End::Fin,
            ),
            OK,
            BAD_GATEWAY,
        ),
    ]
}

fn http1_bodies() -> [Scenario; 7] {
    const SIGNED: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: +3\r\n\r\nok\n";
    const SHORT: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nonly this";
    const BAD_SIZE: &[u8] = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\nok\n\r\n";
    const NO_CRLF: &[u8] =
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nok\n3\r\nok\n\r\n0\r\n\r\n";
    const NO_LAST: &[u8] = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nok\n\r\n";
    let cut = |name, cause, bytes, end| {
        fails(
            name,
            cause,
            reply(bytes, end),
            Seen::Cut(200),
            Seen::Cut(200),
        )
    };
    let chunk = |name, bytes| {
        let behaviour = reply(bytes, End::Fin);
        fails(
            name,
            "http1.chunk_syntax",
            behaviour,
            Seen::Nothing,
            BAD_GATEWAY,
        )
    };
    [
        fails(
            "content_length_sign",
            "http1.content_length_invalid",
            reply(SIGNED, End::Fin),
            OK,
            BAD_GATEWAY,
        ),
        chunk("chunk_size", BAD_SIZE),
        chunk("chunk_no_crlf", NO_CRLF),
        cut(
            "body_truncated_fin",
            "http1.body_truncated",
            SHORT,
            End::Fin,
        ),
        cut(
            "body_truncated_reset",
            "http1.body_truncated",
            SHORT,
            End::Reset,
        ),
        cut(
            "last_chunk_missing",
            "http1.last_chunk_missing",
            NO_LAST,
            End::Fin,
        ),
        cut(
            "last_chunk_reset",
            "http1.last_chunk_missing",
            NO_LAST,
            End::Reset,
        ),
    ]
}

/// What looks like a failure to a tool that counts packets or errors, and is none.
pub fn traps() -> Vec<Scenario> {
    const EOF_BODY: &[u8] = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nok\n";
    const NOT_MODIFIED: &[u8] = b"HTTP/1.1 304 Not Modified\r\nContent-Length: 500\r\n\r\n";
    let seen = |seen, scenario| Scenario {
        nginx: seen,
        haproxy: seen,
        ..scenario
    };
    let left = |name, departure| {
        let silent = trap(name, reply(b"", End::Silence));
        seen(Seen::Nothing, silent.drive(Drive::Leave(departure)))
    };
    let checked = |name, check| Scenario {
        check: Some(check),
        ..trap(name, Behaviour::Healthy).drive(Drive::Many(100))
    };
    vec![
        trap(
            "slow_success",
            Behaviour::AcceptLate(Duration::from_millis(9)),
        ),
        // The handshake ends a second late, with the second SYN.
        trap("late_handshake", Behaviour::AcceptLate(Duration::ZERO)).trick(Trick::DropFirstSyn),
        trap(
            "idle_close",
            Behaviour::CloseIdle(Duration::from_millis(200)),
        ),
        trap(
            "listener_close",
            Behaviour::CloseListener(Duration::from_millis(200)),
        ),
        // The client leaves, so the gateway closes a connection on which data is still coming.
        trap("unread_data", Behaviour::Flood(64 << 20)).drive(Drive::GoAway),
        // The same four addresses and ports, one connection after the other.
        trap("port_reuse", Behaviour::Reply(EOF_BODY, End::Fin)).drive(Drive::Again),
        // The gateway gives the upstream up, but only because nobody waits for the answer any more.
        left("client_left", Departure::Fin),
        left("client_reset", Departure::Reset),
        Scenario {
            behaviour: None,
            socket: Some(Socket::Healthy),
            ..trap("unix_healthy", Behaviour::Healthy)
        },
        // The gateway's window closes, for longer than an upstream may be silent.
        trap("slow_reader", Behaviour::Flood(8 << 20)).drive(Drive::Crawl),
        trap("large_body", Behaviour::Flood(32 << 20)),
        // A body is announced that must not follow.
        seen(
            Seen::Status(304),
            trap("not_modified", reply(NOT_MODIFIED, End::Fin)),
        ),
        seen(
            Seen::Status(101),
            trap("upgrade", Behaviour::Upgrade).drive(Drive::Upgrade),
        ),
        checked("checked_tcp", Check::Tcp),
        checked("checked_http", Check::Http),
    ]
}

/// Healthy requests on pooled connections.
pub fn healthy(requests: u32) -> Scenario {
    trap("healthy", Behaviour::Healthy).drive(Drive::Many(requests))
}

/// A failure whose event says that the agent is listening.
pub fn canary() -> Scenario {
    cannot_connect("canary", "tcp.connect_refused")
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn names_are_unique_and_fit_into_a_configuration() {
        let mut names = HashSet::new();
        for scenario in failures()
            .into_iter()
            .chain(traps())
            .chain([healthy(1), canary()])
        {
            let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
            assert!(scenario.name.chars().all(plain), "{}", scenario.name);
            assert!(
                names.insert(scenario.name),
                "{} is there twice",
                scenario.name
            );
        }
    }
}
