//! The table of cases: what the clients of real gateways get, and why, one small configuration each. Beside what
//! upstreams do, these are the answers that a gateway makes with no upstream asked, and those behind several
//! attempts. The tests only read it.

mod account;
mod apache;
mod bench;
mod caddy;
mod crowd;
mod haproxy;
mod nginx;
mod settle;
pub mod tally;

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};

pub use self::account::Account;
pub use self::apache::cases as apache_cases;
pub use self::bench::{Bench, Reply, Setting};
pub use self::caddy::cases as caddy_cases;
pub use self::crowd::{CLIENTS, crowd};
pub use self::haproxy::{
    alone as haproxy_alone, behind_nginx as haproxy_behind_nginx, cases as haproxy_cases,
};
pub use self::nginx::{
    alone as nginx_alone, cases as nginx_cases, in_front_of_haproxy as nginx_in_front_of_haproxy,
};
pub use self::settle::settle;
use crate::client::Seen;
use crate::scenario::{GATEWAY, Trick};
use crate::upstream::{Behaviour, End};

/// Which gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Gateway {
    /// nginx with one worker.
    Nginx,
    /// `HAProxy` with one thread.
    Haproxy,
    /// Apache httpd, with one process that serves.
    Apache,
    /// Caddy.
    Caddy,
}

impl Gateway {
    /// Its program, and the name of its processes.
    pub const fn program(self) -> &'static str {
        match self {
            Self::Nginx => "nginx",
            Self::Haproxy => "haproxy",
            Self::Apache => "apache2",
            Self::Caddy => "caddy",
        }
    }

    /// Where its clients reach it.
    pub const fn address(self) -> SocketAddr {
        let port = match self {
            Self::Nginx => 8001,
            Self::Haproxy => 8002,
            Self::Apache => 8003,
            Self::Caddy => 8004,
        };
        SocketAddr::new(std::net::IpAddr::V4(GATEWAY), port)
    }
}

impl fmt::Display for Gateway {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.program())
    }
}

/// One upstream of a case.
#[derive(Clone, Copy, Debug)]
pub struct Up {
    /// What it does; `None` where nothing listens.
    pub behaviour: Option<Behaviour>,
    /// What the network does on the way.
    pub trick: Option<Trick>,
    /// Its address, where it is another than that of all upstreams.
    pub at: Option<Ipv4Addr>,
}

impl Up {
    const fn does(behaviour: Behaviour) -> Self {
        Self {
            behaviour: Some(behaviour),
            trick: None,
            at: None,
        }
    }

    /// Nothing listens there.
    const fn is_at([a, b, c, d]: [u8; 4]) -> Self {
        Self {
            behaviour: None,
            trick: None,
            at: Some(Ipv4Addr::new(a, b, c, d)),
        }
    }
}

const REFUSES: Up = Up {
    behaviour: None,
    trick: None,
    at: None,
};
const HEALTHY: Up = Up::does(Behaviour::Healthy);
const CLOSES: Up = Up::does(Behaviour::Reply(b"", End::Fin));
const RESETS: Up = Up::does(Behaviour::Reply(b"", End::Reset));
const SILENT: Up = Up::does(Behaviour::Reply(b"", End::Silence));
/// Answers its first request, and listens no more.
const LEAVES: Up = Up::does(Behaviour::CloseListener(std::time::Duration::ZERO));
const MALFORMED: Up = Up::does(Behaviour::Reply(
    b"HTTP/1.1 200 OK\r\nX-C ache: miss\r\nContent-Length: 3\r\n\r\nok\n",
    End::Fin,
));
const HALF_HEAD: Up = Up::does(Behaviour::Reply(
    b"HTTP/1.1 200 OK\r\nContent-Type: text/pl",
    End::Fin,
));
const HALF_BODY: Up = Up::does(Behaviour::Reply(
    b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nonly this",
    End::Fin,
));
const STALLS: Up = Up::does(Behaviour::Reply(
    b"HTTP/1.1 200 OK\r\nContent-Le",
    End::Silence,
));
const BUSY: Up = Up::does(Behaviour::Answer(
    b"HTTP/1.1 503 Service Unavailable\r\nX-From: lab\r\nContent-Length: 5\r\n\r\nbusy\n",
));
const FAILS: Up = Up::does(Behaviour::Answer(
    b"HTTP/1.1 500 Internal Server Error\r\nX-From: lab\r\nContent-Length: 4\r\n\r\nbug\n",
));
/// A status line without a status, which every gateway of the lab minds.
const BAD_STATUS: Up = Up::does(Behaviour::Reply(
    b"HTTP/1.1 abc Fine\r\nContent-Length: 3\r\n\r\nok\n",
    End::Fin,
));
/// Answers a `ClientHello` in plain text.
const PLAINTEXT: Up = Up::does(Behaviour::Hello(
    b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n",
    End::Fin,
));
/// Reads a `ClientHello` and says nothing to it, or nothing at all.
const NO_HELLO: Up = Up::does(Behaviour::Hello(b"", End::Fin));
const MUTE: Up = Up::does(Behaviour::Hello(b"", End::Silence));
/// Answers a `ClientHello` with a fatal alert (RFC 8446 section 6.2): 70, 71, 80, 112 and 120.
const OLD_TLS: Up = Up::does(Behaviour::Hello(b"\x15\x03\x03\x00\x02\x02\x46", End::Fin));
const WEAK_TLS: Up = Up::does(Behaviour::Hello(b"\x15\x03\x03\x00\x02\x02\x47", End::Fin));
const SICK_TLS: Up = Up::does(Behaviour::Hello(b"\x15\x03\x03\x00\x02\x02\x50", End::Fin));
const NO_NAME: Up = Up::does(Behaviour::Hello(b"\x15\x03\x03\x00\x02\x02\x70", End::Fin));
const NO_ALPN: Up = Up::does(Behaviour::Hello(b"\x15\x03\x03\x00\x02\x02\x78", End::Fin));
/// Answers a plain request with an alert.
const TLS_PORT: Up = Up::does(Behaviour::Reply(b"\x15\x03\x01\x00\x02\x02\x0a", End::Fin));
const SMTP: Up = Up::does(Behaviour::Banner(b"220 mail.lab.test ESMTP\r\n"));
const NUL: Up = Up::does(Behaviour::Reply(
    b"HTTP/1.1 200 OK\r\nX-Cache: mi\0ss\r\nContent-Length: 3\r\n\r\nok\n",
    End::Fin,
));
const NO_LENGTH: Up = Up::does(Behaviour::Reply(
    b"HTTP/1.1 200 OK\r\nContent-Length: three\r\n\r\nok\n",
    End::Fin,
));
const TWO_LENGTHS: Up = Up::does(Behaviour::Reply(
    b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nok\n",
    End::Fin,
));
const ODD_CODING: Up = Up::does(Behaviour::Reply(
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, chunked\r\n\r\n3\r\nok\n\r\n0\r\n\r\n",
    End::Fin,
));
const BAD_CHUNK: Up = Up::does(Behaviour::Reply(
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\nok\n\r\n",
    End::Fin,
));
/// Closes before the request comes.
const HANGS_UP: Up = Up {
    trick: Some(Trick::DropFirstData),
    ..Up::does(Behaviour::CloseOnAccept)
};
/// Closes a kept connection, which its gateway does not get to know.
const FORGETS: Up = Up {
    trick: Some(Trick::DropFin),
    ..Up::does(Behaviour::CloseIdle(std::time::Duration::ZERO))
};
const DROPPED: Up = Up {
    behaviour: None,
    trick: Some(Trick::DropAll),
    at: None,
};
const UNROUTED: Up = Up::is_at([10, 99, 0, 1]);
/// As the places of the scenarios: behind a route of type prohibit, behind a router that cannot reach it, and where
/// nobody is.
const PROHIBITED: Up = Up::is_at([10, 77, 3, 1]);
const UNREACHABLE: Up = Up::is_at([10, 77, 2, 1]);
const ABSENT: Up = Up::is_at([10, 77, 0, 99]);

/// What the clients do. The last answer is the one that the case is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drive {
    /// One sends one request.
    Once,
    /// One sends one request with a body.
    Post,
    /// A request that succeeds, and one more once the upstream has closed that connection.
    Again,
    /// So many requests, one after the other.
    Times(u32),
    /// So many requests that wait at the first upstream, and one more.
    Busy(usize),
    /// A request that waits at the first upstream as the gateway's worker is killed.
    Kill,
    /// A request for which the gateway has a descriptor, but none for its upstream.
    Starve,
    /// A request that succeeds, and one more once the gateway has logged this.
    Until(&'static str),
    /// A request once the gateway has logged this.
    After(&'static str),
}

/// What the agent must say of the last answer.
#[derive(Clone, Copy, Debug)]
pub enum Told {
    /// One event with what the client got.
    Answer {
        /// Its cause, or one of its rivals where the proof may be underdetermined.
        cause: &'static str,
        /// How firmly it may stand.
        proofs: &'static [&'static str],
        /// The causes of all attempts, in order.
        attempts: &'static [&'static str],
        /// What some piece of its evidence, or the name of the upstream, says.
        with: &'static str,
    },
    /// One event that no client was told of.
    Hidden(&'static str),
    /// No event.
    Nothing,
}

/// One case.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// Its name, also the path of its requests.
    pub name: &'static str,
    /// The upstreams. In the configuration, `{0}` is the address of the first.
    pub upstreams: &'static [Up],
    /// The group of upstreams, in the gateway's words.
    pub group: &'static str,
    /// What the gateway does with requests for this path beside passing them on.
    pub rule: &'static str,
    /// What the clients do.
    pub drive: Drive,
    /// What the client sees last.
    pub seen: Seen,
    /// Words of the gateway's log about it.
    pub said: &'static str,
    /// What the agent must say.
    pub told: Told,
    /// Why the gateway's own checks of the upstreams fail, where it makes any.
    pub checks: Option<&'static str>,
}

impl Case {
    const fn new(name: &'static str, upstreams: &'static [Up]) -> Self {
        Self {
            name,
            upstreams,
            group: "",
            rule: "",
            drive: Drive::Once,
            seen: Seen::Status(200),
            said: "",
            told: Told::Nothing,
            checks: None,
        }
    }

    /// One attempt fails, and the client gets this status.
    const fn fails(
        name: &'static str,
        upstreams: &'static [Up],
        status: u16,
        said: &'static str,
        attempts: &'static [&'static str],
    ) -> Self {
        Self {
            said,
            seen: Seen::Status(status),
            told: Told::Answer {
                cause: match attempts {
                    [.., last] => last,
                    [] => "",
                },
                proofs: ANY,
                attempts,
                with: "",
            },
            ..Self::new(name, upstreams)
        }
    }

    /// The gateway answers by itself.
    const fn alone(
        name: &'static str,
        upstreams: &'static [Up],
        status: u16,
        said: &'static str,
        cause: &'static str,
        proofs: &'static [&'static str],
    ) -> Self {
        Self {
            said,
            seen: Seen::Status(status),
            told: Told::Answer {
                cause,
                proofs,
                attempts: &[],
                with: "",
            },
            ..Self::new(name, upstreams)
        }
    }

    const fn group(mut self, group: &'static str) -> Self {
        self.group = group;
        self
    }

    const fn rule(mut self, rule: &'static str) -> Self {
        self.rule = rule;
        self
    }

    const fn drive(mut self, drive: Drive) -> Self {
        self.drive = drive;
        self
    }

    const fn with(mut self, words: &'static str) -> Self {
        if let Told::Answer { with, .. } = &mut self.told {
            *with = words;
        }
        self
    }

    const fn hides(mut self, cause: &'static str) -> Self {
        self.told = Told::Hidden(cause);
        self
    }

    const fn checked(mut self, cause: &'static str) -> Self {
        self.checks = Some(cause);
        self
    }

    /// Its text with the upstreams' addresses put in: `{0}`, and `{s0}` for a server of `HAProxy`.
    fn fill(&self, text: &str, addresses: &[SocketAddr]) -> String {
        let mut text = text.replace("{name}", self.name);
        for (number, address) in addresses.iter().enumerate() {
            text = text.replace(&format!("{{{number}}}"), &address.to_string());
            let server = format!("s{} {address}", address.port());
            text = text.replace(&format!("{{s{number}}}"), &server);
        }
        text
    }
}

/// Any proof.
const ANY: &[&str] = &["proven", "inferred", "underdetermined"];
/// The cause itself, beyond doubt or with all rivals excluded.
const FIRM: &[&str] = &["proven", "inferred"];
const PROVEN: &[&str] = &["proven"];
/// One of several causes: nothing that can be seen tells them apart.
const OPEN: &[&str] = &["underdetermined"];

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn names_are_unique_within_a_gateway() {
        for cases in [
            [
                nginx_cases(),
                nginx_alone().into_iter().map(|(_, case)| case).collect(),
            ]
            .concat(),
            [
                haproxy_cases(),
                haproxy_alone().into_iter().map(|(_, case)| case).collect(),
            ]
            .concat(),
            apache_cases(),
            caddy_cases(),
        ] {
            let names: HashSet<_> = cases.iter().map(|case| case.name).collect();
            assert_eq!(names.len(), cases.len());
        }
    }
}
