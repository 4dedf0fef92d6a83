//! The truth rows: what tshark saw of each connection.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use hopscope::model::Timestamp;
use serde_json::Value;

/// One capture with its connections.
pub(crate) struct Capture {
    pub(crate) name: String,
    pub(crate) path: PathBuf,
    pub(crate) packets: u64,
    pub(crate) streams: Vec<Stream>,
}

/// One connection.
pub(crate) struct Stream {
    pub(crate) number: u64,
    /// The gateway's end.
    pub(crate) client: SocketAddr,
    /// The upstream's end.
    pub(crate) server: SocketAddr,
    pub(crate) first: Timestamp,
    /// Whether the gateway's first bytes begin an HTTP/1 request.
    pub(crate) http: bool,
    pub(crate) requests: usize,
    /// How each response ended.
    pub(crate) responses: Vec<String>,
    /// The first FIN or RST.
    pub(crate) ending: Option<Ending>,
    /// Whether bytes are missing before others that were seen.
    pub(crate) hole: bool,
    pub(crate) facts: Vec<Fact>,
    /// The row itself.
    pub(crate) row: Value,
}

pub(crate) struct Ending {
    pub(crate) by_client: bool,
    /// Seconds of silence before it.
    pub(crate) silent: f64,
}

/// One fact: `rst(s2c before_response)` is named `rst`.
pub(crate) struct Fact {
    pub(crate) name: String,
    pub(crate) detail: String,
}

impl Fact {
    fn new(text: &str) -> Self {
        let (name, detail) = text.split_once('(').unwrap_or((text, ""));
        Self {
            name: name.to_owned(),
            detail: detail.strip_suffix(')').unwrap_or(detail).to_owned(),
        }
    }

    /// The name with what tells facts of the same name apart.
    pub(crate) fn kind(&self) -> String {
        match self.name.as_str() {
            "rst" => format!("rst {}", self.detail),
            "http1_odd" | "http1_bad_response_header" => format!("{} {}", self.name, self.detail),
            name => name.to_owned(),
        }
    }
}

impl Stream {
    fn new(row: &Value) -> Self {
        let ending = &row["ending"];
        let list = |name: &str| row[name].as_array().cloned().unwrap_or_default();
        let nanos = row["first"].as_f64().unwrap() * 1e9;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a time of this century"
        )]
        let first = Timestamp::from_nanos(nanos as u64);
        Self {
            number: row["stream"].as_u64().unwrap(),
            client: address(&row["client"]),
            server: address(&row["server"]),
            first,
            // A request line without a version is not HTTP/1.
            http: row["kind_c2s"] == "http1_request"
                && row["http1_requests"][0]["state"] != "bad_status_line",
            requests: list("http1_requests").len(),
            responses: list("http1_responses")
                .iter()
                .map(|response| response["state"].as_str().unwrap().to_owned())
                .collect(),
            ending: ending.is_object().then(|| Ending {
                by_client: ending["dir"] == "c2s",
                silent: ending["silent_before"].as_f64().unwrap(),
            }),
            hole: row.get("hole").is_some(),
            row: row.clone(),
            facts: list("facts")
                .iter()
                .map(|fact| Fact::new(fact.as_str().unwrap()))
                .collect(),
        }
    }
}

/// The rows have no brackets around IPv6 addresses.
fn address(value: &Value) -> SocketAddr {
    let (ip, port) = value.as_str().unwrap().rsplit_once(':').unwrap();
    SocketAddr::new(ip.parse::<IpAddr>().unwrap(), port.parse().unwrap())
}

/// Every capture of the corpus, in the order of their names.
pub(crate) fn captures(corpus: &Path) -> Vec<Capture> {
    let mut paths: Vec<_> = std::fs::read_dir(corpus.join("truth"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    paths.sort();
    assert!(!paths.is_empty(), "the corpus is empty");
    paths
        .into_iter()
        .map(|path| {
            let text = std::fs::read_to_string(path).unwrap();
            let mut rows = text
                .lines()
                .map(|line| serde_json::from_str::<Value>(line).unwrap());
            let file = rows.next().unwrap();
            let name = file["file"].as_str().unwrap().to_owned();
            Capture {
                path: corpus.join("pcaps").join(&name),
                packets: file["packets"].as_u64().unwrap(),
                streams: rows
                    .filter(|row| row["kind"] == "tcp")
                    .map(|row| Stream::new(&row))
                    .collect(),
                name,
            }
        })
        .collect()
}
