//! The access logs of real gateways, which say which upstreams were tried for a request: the truth that
//! the agent's word is held against.

use std::collections::HashMap;

use anyhow::{Context as _, Result};
use serde::Deserialize;

use crate::socket::Target;

/// The upstreams that were asked for each client, by its port, in order, with the status of each where that is told.
pub(crate) type ByClient = HashMap<u16, Vec<(Target, String)>>;

/// The log format of nginx that [`nginx`] reads.
pub(crate) const NGINX: &str =
    "'$remote_port $status $request_uri [$upstream_addr] [$upstream_status]'";

/// That of `HAProxy` for [`haproxy`]. Bytes are known at the end of a response only, so that the line is written then.
pub(crate) const HAPROXY: &str = "\"request %cp %ST %HP %b/%s %ts %rc %B\"";

/// That of Apache for [`apache`]. Only upstreams of the lab send that field: with it, a response was passed on.
pub(crate) const APACHE: &str = "\"%{remote}p %>s %U %{X-From}o\"";

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
}

impl Asked {
    /// The upstreams that are named.
    pub(crate) fn upstreams(&self) -> impl Iterator<Item = &Target> {
        let (all, last) = match self {
            Self::All(asked) => (&asked[..], None),
            Self::Last { server, .. } => (&[][..], server.as_ref()),
        };
        all.iter().map(|(upstream, _)| upstream).chain(last)
    }

    /// Whether the first upstream of a group was asked, of which a second one is asked only if that fails. Where the log
    /// names the last one alone, it was asked if there was another one before.
    pub(crate) fn includes(&self, first: &Target) -> bool {
        match self {
            Self::All(asked) => asked.iter().any(|(upstream, _)| upstream == first),
            Self::Last { server, count, .. } => server.as_ref() == Some(first) || *count > 1,
        }
    }

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

/// Reads a line of Apache. Which upstreams it asked is in its error log alone.
pub(crate) fn apache(line: &str, asked: &ByClient) -> Option<Logged> {
    let (request, from) = line.rsplit_once(' ')?;
    let mut logged = request_of(request, Asked::All(Vec::new()))?;
    let mut all = asked.get(&logged.client).cloned().unwrap_or_default();
    if let Some((_, status)) = all.last_mut().filter(|_| from != "-") {
        *status = logged.status.to_string();
    }
    logged.asked = Asked::All(all);
    Some(logged)
}

/// The upstreams that Apache asked, from the lines of its error log in which it says where it will connect to for whom:
/// `[10.0.0.1:50000] AH00944: connecting http://10.0.0.2:80/ to 10.0.0.2:80`.
pub(crate) fn apache_asked(log: &str) -> ByClient {
    let mut asked = ByClient::new();
    for line in log.lines() {
        let attempt = || {
            let (client, what) = line.strip_prefix('[')?.split_once("] ")?;
            let (_, port) = client.rsplit_once(':')?;
            let (_, upstream) = what.strip_prefix("AH00944: ")?.rsplit_once(" to ")?;
            Some((port.parse().ok()?, target(upstream)?))
        };
        if let Some((client, upstream)) = attempt() {
            let all: &mut Vec<_> = asked.entry(client).or_default();
            all.push((upstream, "-".to_owned()));
        }
    }
    asked
}

/// The upstreams that Caddy asked, from the lines of its log of level DEBUG about each.
pub(crate) fn caddy_asked(log: &str) -> Result<ByClient> {
    #[derive(Deserialize)]
    struct Line {
        msg: String,
        upstream: Option<String>,
        status: Option<u16>,
        request: Option<Request>,
    }
    #[derive(Deserialize)]
    struct Request {
        remote_port: String,
    }
    let mut asked = ByClient::new();
    for line in log.lines() {
        let line: Line =
            serde_json::from_str(line).with_context(|| format!("not a line of Caddy: {line}"))?;
        if let (Some(upstream), Some(request), "upstream roundtrip") =
            (line.upstream, line.request, &*line.msg)
        {
            let upstream = target(&upstream).context("no address")?;
            let status = line
                .status
                .map_or_else(|| "-".to_owned(), |code| code.to_string());
            let client = request.remote_port.parse().context("no port")?;
            asked.entry(client).or_default().push((upstream, status));
        }
    }
    Ok(asked)
}

/// Reads a line of Caddy, which logs errors in the same form; those are none.
pub(crate) fn caddy(line: &str, asked: &ByClient) -> Result<Option<Logged>> {
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
    let client = request.remote_port.parse().context("no port")?;
    Ok(Some(Logged {
        client,
        status,
        path: request.uri,
        asked: Asked::All(asked.get(&client).cloned().unwrap_or_default()),
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
    fn apache_says_in_its_error_log_whom_it_asked() {
        let asked = apache_asked(
            "[10.0.0.9:50000] AH00944: connecting http://10.0.0.1:80/ to 10.0.0.1:80\n\
             \x20(111)Connection refused: AH00957: http: attempt to connect to 10.0.0.1:80 (10.0.0.1:80) failed\n\
             [10.0.0.9:50001] AH00944: connecting http://10.0.0.3:80/ to 10.0.0.3:80\n\
             [10.0.0.9:50000] AH00944: connecting http://10.0.0.2:80/ to 10.0.0.2:80\n",
        );
        let made = apache("50000 503 /a -", &asked).unwrap();
        let two = ["10.0.0.1:80", "10.0.0.2:80"].map(|one| (inet(one), "-".to_owned()));
        assert_eq!(made.asked, Asked::All(two.to_vec()));
        assert_eq!(made.asked.passed_on(503), Some(false));
        let passed = apache("50001 503 /b lab", &asked).unwrap();
        assert_eq!(passed.asked.passed_on(503), Some(true));
        let none = apache("50002 503 /c -", &asked).unwrap();
        assert_eq!(none.asked, Asked::All(Vec::new()));
    }

    #[test]
    fn caddy_logs_errors_and_attempts_beside_requests() {
        let log = r#"{"msg":"upstream roundtrip","upstream":"10.0.0.1:80","request":{"remote_port":"50000"},"error":"EOF"}
{"msg":"upstream roundtrip","upstream":"10.0.0.2:80","request":{"remote_port":"50000"},"status":503}
{"msg":"something else","request":{"remote_port":"50000"}}
"#;
        let asked = caddy_asked(log).unwrap();
        let line = r#"{"logger":"http.log.access.log0","status":503,"request":{"remote_port":"50000","uri":"/a"}}"#;
        let logged = caddy(line, &asked).unwrap().unwrap();
        assert_eq!(logged.client, 50_000);
        let two = vec![
            (inet("10.0.0.1:80"), "-".to_owned()),
            (inet("10.0.0.2:80"), "503".to_owned()),
        ];
        assert_eq!(logged.asked, Asked::All(two));
        assert_eq!(logged.asked.passed_on(503), Some(true));
        let error = r#"{"logger":"http.log.error.log0","status":502,"request":{"remote_port":"50000","uri":"/a"}}"#;
        assert_eq!(caddy(error, &asked).unwrap(), None);
        assert!(caddy("no JSON", &asked).is_err());
    }
}
