//! The access logs of real gateways, which say which upstreams were tried for a request: the truth that
//! the agent's word is held against.

use anyhow::{Context as _, Result};
use serde::Deserialize;

use crate::socket::Target;

/// The log format of nginx that [`nginx`] reads.
pub(crate) const NGINX: &str =
    "'$remote_port $status $request_uri [$upstream_addr] [$upstream_status]'";

/// That of `HAProxy` for [`haproxy`]. Bytes are known at the end of a response only, so that the line is written then.
pub(crate) const HAPROXY: &str = "\"request %cp %ST %HP %b/%s %ts %rc %B\"";

/// That of Apache for [`apache`].
pub(crate) const APACHE: &str = "\"%{remote}p %>s %U\"";

/// One request as its gateway logged it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Logged {
    /// The client's port.
    pub client: u16,
    /// Status that the client got.
    pub status: u16,
    /// Path of the request.
    pub path: String,
    /// The upstreams that were asked.
    pub asked: Asked,
}

/// What a log says of the upstreams that were asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Asked {
    /// These, in order, with the status of each.
    All(Vec<(Target, String)>),
    /// So many, this one last, which is not known where none could be chosen, and how it ended.
    Last {
        /// The last one.
        server: Option<Target>,
        /// Their number.
        count: usize,
        /// `HAProxy`'s termination state: who ended it, and in which phase.
        state: String,
    },
    /// The log says nothing of them.
    Untold,
}

impl Asked {
    /// Whether the status is an upstream's own, where the log tells.
    pub fn passed_on(&self, status: u16) -> Option<bool> {
        match self {
            // A gateway says 502 of its own accord as well, so that nginx's status of an upstream that gave
            // none is 502, or 504: then only its error log tells.
            Self::All(asked) => {
                let own = |(_, upstream): &(Target, String)| *upstream == status.to_string();
                let same = asked.last().is_some_and(own);
                (!same || !matches!(status, 502 | 504)).then_some(same)
            }
            Self::Last { state, .. } => Some(state == "--"),
            Self::Untold => None,
        }
    }
}

/// Reads a line of nginx.
pub(crate) fn nginx(line: &str) -> Option<Logged> {
    let (request, upstreams) = line.split_once(" [")?;
    let (addresses, states) = upstreams.strip_suffix(']')?.split_once("] [")?;
    let list = |text: &str| -> Vec<String> {
        let all = text.split([',', ' ']).filter(|word| !word.is_empty());
        all.filter(|word| *word != ":").map(str::to_owned).collect()
    };
    // A group of which no member could be chosen stands for itself.
    let asked = list(addresses).into_iter().zip(list(states));
    let asked = asked.filter_map(|(address, status)| Some((target(&address)?, status)));
    request_of(request, Asked::All(asked.collect()))
}

/// Reads a line of `HAProxy`. The names of servers end in their port.
pub(crate) fn haproxy(line: &str, server: impl Fn(&str) -> Option<Target>) -> Option<Logged> {
    let line = line.strip_prefix("request ")?;
    let mut words = line.split(' ');
    let request: Vec<&str> = words.by_ref().take(3).collect();
    let (_, name) = words.next()?.split_once('/')?;
    let state = words.next()?.to_owned();
    let retries: usize = words.next()?.trim_start_matches('+').parse().ok()?;
    let server = server(name);
    let count = if server.is_some() { retries + 1 } else { 0 };
    let asked = Asked::Last {
        server,
        count,
        state,
    };
    request_of(&request.join(" "), asked)
}

/// Reads a line of Apache.
pub(crate) fn apache(line: &str) -> Option<Logged> {
    request_of(line, Asked::Untold)
}

/// Reads a line of Caddy, which logs errors in the same form; those are none.
pub(crate) fn caddy(line: &str) -> Result<Option<Logged>> {
    #[derive(Deserialize)]
    struct Line {
        logger: Option<String>,
        status: Option<u16>,
        request: Option<Request>,
    }
    #[derive(Deserialize)]
    struct Request {
        remote_port: String,
        uri: String,
    }
    let line: Line =
        serde_json::from_str(line).with_context(|| format!("not a line of Caddy: {line}"))?;
    let access = line
        .logger
        .is_some_and(|logger| logger.starts_with("http.log.access"));
    let (true, Some(status), Some(request)) = (access, line.status, line.request) else {
        return Ok(None);
    };
    Ok(Some(Logged {
        client: request.remote_port.parse().context("no port")?,
        status,
        path: request.uri,
        asked: Asked::Untold,
    }))
}

/// Port, status and path, in that order.
fn request_of(text: &str, asked: Asked) -> Option<Logged> {
    let mut words = text.split(' ');
    Some(Logged {
        client: words.next()?.parse().ok()?,
        status: words.next()?.parse().ok()?,
        path: words.next()?.to_owned(),
        asked,
    })
}

fn target(text: &str) -> Option<Target> {
    match text.strip_prefix("unix:") {
        Some(path) => Some(Target::Unix(path.into())),
        None => text.parse().ok().map(Target::Inet),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inet(text: &str) -> Target {
        Target::Inet(text.parse().unwrap())
    }

    #[test]
    fn nginx_lists_every_upstream_that_it_asked() {
        let line = "50000 502 /a [10.0.0.1:80, 10.0.0.2:80] [502, 504]";
        let logged = nginx(line).unwrap();
        assert_eq!(
            (logged.client, logged.status, &*logged.path),
            (50_000, 502, "/a")
        );
        let asked = vec![
            (inet("10.0.0.1:80"), "502".to_owned()),
            (inet("10.0.0.2:80"), "504".to_owned()),
        ];
        assert_eq!(logged.asked, Asked::All(asked));
        assert_eq!(
            nginx("1 502 /a [group] [502]").unwrap().asked,
            Asked::All(Vec::new())
        );
        assert_eq!(
            nginx("1 503 /a [-] [-]").unwrap().asked,
            Asked::All(Vec::new())
        );
        assert_eq!(nginx("no such line"), None);
        let passed = nginx("1 503 /a [10.0.0.1:80] [503]").unwrap();
        assert_eq!(passed.asked.passed_on(503), Some(true));
    }

    #[test]
    fn haproxy_names_the_last_server_and_counts_retries() {
        let server = |name: &str| (name == "s80").then(|| inet("10.0.0.1:80"));
        let logged = haproxy("request 50000 503 /a b/s80 SC +1 217", server).unwrap();
        let asked = Asked::Last {
            server: Some(inet("10.0.0.1:80")),
            count: 2,
            state: "SC".to_owned(),
        };
        assert_eq!((logged.status, logged.asked), (503, asked));
        let none = haproxy("request 50000 503 /a b/<NOSRV> SC 0 217", server).unwrap();
        let asked = Asked::Last {
            server: None,
            count: 0,
            state: "SC".to_owned(),
        };
        assert_eq!(none.asked, asked);
        assert_eq!(haproxy("[WARNING] something else", server), None);
    }

    #[test]
    fn caddy_logs_errors_beside_requests() {
        let line = r#"{"logger":"http.log.access.log0","status":502,"request":{"remote_port":"50000","uri":"/a"}}"#;
        assert_eq!(caddy(line).unwrap().unwrap().client, 50_000);
        let error = r#"{"logger":"http.log.error.log0","status":502,"request":{"remote_port":"50000","uri":"/a"}}"#;
        assert_eq!(caddy(error).unwrap(), None);
        assert!(caddy("no JSON").is_err());
    }
}
