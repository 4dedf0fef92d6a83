//! Captures over gRPC and through the commands, from a keeper that is made up.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read as _;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::commands::{hopscope, text};
use crate::support::{ANY_PORT, Agent, soon};
use hopscope::model::{Cause, Timestamp, UpstreamPattern};
use hopscope::serve::{
    Boost, CaptureError, CaptureFilter, CaptureKeeper, CaptureListing, Hub, HubConfig, Listener,
    duration_to_proto,
};
use hopscope::source::Reader;
use hopscope_proto::v1 as proto;
use hopscope_proto::v1::capture_filter::Outcome;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use tonic::{Code, Status};

const GATEWAY: SocketAddr = SocketAddr::new(
    std::net::IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1)),
    40000,
);

const GET: &[u8] = b"GET /cart HTTP/1.1\r\nHost: shop\r\n\r\n";
const OK: &[u8] = b"HTTP/1.1 200 OK\r\nServer: a\r\nContent-Length: 2\r\n\r\nok";
const BAD: &[u8] = b"HTTP/1.1 200 OK\r\nServer: a\r\nX-Id: 1\x002\r\nContent-Length: 2\r\n\r\nok";

/// 2023-11-14T22:13:20Z.
const START: u64 = 1_700_000_000;

fn upstream(port: u16) -> SocketAddr {
    ([10, 0, 0, 7], port).into()
}

/// An IPv4 packet with a TCP segment.
fn packet(from: SocketAddr, to: SocketAddr, seq: u32, payload: &[u8]) -> Vec<u8> {
    let ip = |address: SocketAddr| match address.ip() {
        std::net::IpAddr::V4(address) => address.octets(),
        std::net::IpAddr::V6(_) => unreachable!(),
    };
    let total = u16::try_from(40 + payload.len()).unwrap();
    let mut bytes = vec![0x45, 0];
    bytes.extend(total.to_be_bytes());
    bytes.extend([0, 0, 0, 0, 64, 6, 0, 0]);
    bytes.extend(ip(from));
    bytes.extend(ip(to));
    bytes.extend(from.port().to_be_bytes());
    bytes.extend(to.port().to_be_bytes());
    bytes.extend(seq.to_be_bytes());
    // Acknowledgement, header length of five words, PSH and ACK, window, checksum, urgent pointer.
    bytes.extend([0, 0, 0, 1, 0x50, 0x18, 0xff, 0xff, 0, 0, 0, 0]);
    bytes.extend(payload);
    bytes
}

fn block(kind: u32, body: &[u8]) -> Vec<u8> {
    let padded = body.len().next_multiple_of(4);
    let length = u32::try_from(12 + padded).unwrap().to_le_bytes();
    let mut block = kind.to_le_bytes().to_vec();
    block.extend(length);
    block.extend(body);
    block.resize(8 + padded, 0);
    block.extend(length);
    block
}

/// A pcapng section of raw IP packets.
fn section(packets: &[Vec<u8>]) -> Vec<u8> {
    let mut header = 0x1a2b_3c4d_u32.to_le_bytes().to_vec();
    header.extend([1, 0, 0, 0]);
    header.extend([0xff; 8]);
    let mut section = block(0x0a0d_0d0a, &header);
    section.extend(block(1, &[101, 0, 0, 0, 0, 0, 0, 0]));
    for packet in packets {
        let length = u32::try_from(packet.len()).unwrap().to_le_bytes();
        let mut body = vec![0; 12];
        body.extend(length);
        body.extend(length);
        body.extend(packet);
        section.extend(block(6, &body));
    }
    section
}

/// The packets of an exchange.
fn exchange(upstream: SocketAddr, request: &[u8], response: &[u8]) -> Vec<u8> {
    section(&[
        packet(GATEWAY, upstream, 1, request),
        packet(upstream, GATEWAY, 1, response),
    ])
}

type Boosted = (UpstreamPattern, u32, Duration);

/// Captures in memory.
#[derive(Debug, Default)]
struct Keeper {
    captures: Mutex<Vec<(CaptureListing, Vec<u8>)>>,
    boosts: Mutex<Vec<Boosted>>,
}

impl Keeper {
    fn add(&self, id: &str, cause: Option<Cause>, upstream: SocketAddr, bytes: Vec<u8>) {
        let mut captures = self.captures.lock().unwrap();
        let seconds = START + captures.len() as u64;
        let listing = CaptureListing {
            id: id.to_owned(),
            time: Timestamp::from_nanos(seconds * 1_000_000_000),
            cause,
            event_id: cause.map(|_| format!("event-of-{id}")),
            upstream,
            packets: 2,
            bytes: bytes.len() as u64,
        };
        captures.push((listing, bytes));
    }

    fn bytes(&self) -> BTreeMap<String, Vec<u8>> {
        let captures = self.captures.lock().unwrap();
        let captures = captures.iter();
        captures
            .map(|(listing, bytes)| (listing.id.clone(), bytes.clone()))
            .collect()
    }
}

impl CaptureKeeper for Keeper {
    fn list(&self, filter: &CaptureFilter) -> Result<Vec<CaptureListing>, CaptureError> {
        let captures = self.captures.lock().unwrap();
        let listings = captures.iter().map(|(listing, _)| listing.clone());
        let admitted =
            |listing: &CaptureListing| filter.admits(listing.cause, listing.time, listing.upstream);
        Ok(listings.filter(admitted).collect())
    }

    fn read(&self, id: &str) -> Result<Vec<u8>, CaptureError> {
        if id.starts_with("evicted") {
            return Err(CaptureError::Gone(id.to_owned()));
        }
        if id.starts_with("broken") {
            return Err(CaptureError::Read("the disk is on fire".to_owned()));
        }
        self.bytes()
            .remove(id)
            .ok_or_else(|| CaptureError::Gone(id.to_owned()))
    }

    fn boost(
        &self,
        upstream: UpstreamPattern,
        one_in: u32,
        duration: Duration,
    ) -> Result<Boost, CaptureError> {
        self.boosts
            .lock()
            .unwrap()
            .push((upstream, one_in, duration));
        Ok(Boost {
            one_in,
            until: Timestamp::from_nanos(START * 1_000_000_000).after(duration),
        })
    }
}

/// An agent with three captures: healthy and failing ones of two upstreams.
async fn agent() -> (Agent, Arc<Keeper>) {
    let keeper = Arc::new(Keeper::default());
    let bad = Some(Cause::Http1HeaderControlChar);
    let refused = Some(Cause::TcpConnectRefused);
    keeper.add("c-1", None, upstream(80), exchange(upstream(80), GET, OK));
    keeper.add("c-2", bad, upstream(80), exchange(upstream(80), GET, BAD));
    keeper.add(
        "c-3",
        refused,
        upstream(81),
        section(&[packet(GATEWAY, upstream(81), 0, b"")]),
    );
    (serve(&keeper).await, keeper)
}

async fn serve(keeper: &Arc<Keeper>) -> Agent {
    let hub = Hub::new(HubConfig::default());
    hub.set_capture_keeper(Arc::clone(keeper) as Arc<dyn CaptureKeeper>);
    Agent::serve_hub(Listener::bind(ANY_PORT).await.unwrap(), hub)
}

fn only(causes: &[&str], upstreams: &[&str], outcome: Outcome) -> proto::CaptureFilter {
    let owned = |texts: &[&str]| texts.iter().map(|&text| text.to_owned()).collect();
    proto::CaptureFilter {
        causes: owned(causes),
        upstreams: owned(upstreams),
        since: None,
        outcome: outcome.into(),
    }
}

async fn list(agent: &Agent, filter: proto::CaptureFilter, limit: u32) -> (Vec<String>, u32) {
    let request = proto::ListCapturesRequest {
        filter: Some(filter),
        limit,
    };
    let mut client = agent.client();
    let response = soon("list", client.list_captures(request))
        .await
        .unwrap()
        .into_inner();
    let ids = response.captures.into_iter().map(|capture| capture.id);
    (ids.collect(), response.omitted)
}

/// The chunks of a pull.
async fn pull(
    agent: &Agent,
    request: proto::PullCaptureRequest,
) -> Result<Vec<proto::CaptureChunk>, Status> {
    let mut client = agent.client();
    let mut stream = soon("pull", client.pull_capture(request))
        .await?
        .into_inner();
    let mut chunks = Vec::new();
    while let Some(chunk) = soon("chunk", stream.message()).await? {
        chunks.push(chunk);
    }
    Ok(chunks)
}

fn by_id(ids: &[&str]) -> proto::PullCaptureRequest {
    proto::PullCaptureRequest {
        ids: ids.iter().map(|&id| id.to_owned()).collect(),
        filter: None,
    }
}

#[tokio::test]
async fn a_list_is_filtered_and_limited_to_the_newest() {
    let (agent, _) = agent().await;
    let all = proto::CaptureFilter::default();
    let ids = |ids: &[&str]| ids.iter().map(|&id| id.to_owned()).collect::<Vec<_>>();
    assert_eq!(
        list(&agent, all.clone(), 0).await,
        (ids(&["c-1", "c-2", "c-3"]), 0)
    );
    assert_eq!(list(&agent, all, 2).await, (ids(&["c-2", "c-3"]), 1));
    let cases = [
        (only(&["http1.*"], &[], Outcome::Unspecified), ids(&["c-2"])),
        (
            only(&[], &["10.0.0.7:80"], Outcome::Unspecified),
            ids(&["c-1", "c-2"]),
        ),
        (only(&[], &["10.0.0.7:80"], Outcome::Healthy), ids(&["c-1"])),
        (only(&[], &[], Outcome::Failed), ids(&["c-2", "c-3"])),
        (only(&["tcp.*"], &[], Outcome::Healthy), ids(&[])),
    ];
    for (filter, expected) in cases {
        assert_eq!(list(&agent, filter, 0).await, (expected, 0));
    }
    let mut client = agent.client();
    let request = proto::ListCapturesRequest {
        filter: Some(only(&["http1.nope"], &[], Outcome::Unspecified)),
        limit: 0,
    };
    let refused = client.list_captures(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    agent.stop().await;
}

#[tokio::test]
async fn a_pull_is_one_valid_file_in_chunks() {
    let (agent, keeper) = agent().await;
    let large = exchange(upstream(82), GET, &vec![b'x'; 60_000]);
    let large = [large.clone(), large.clone(), large].concat();
    keeper.add("c-4", None, upstream(82), large);
    let chunks = pull(&agent, proto::PullCaptureRequest::default())
        .await
        .unwrap();
    let begins: Vec<_> = chunks
        .iter()
        .map(|chunk| chunk.capture_id.as_str())
        .filter(|id| !id.is_empty())
        .collect();
    assert_eq!(begins, ["c-1", "c-2", "c-3", "c-4"]);
    assert!(chunks.iter().all(|chunk| chunk.data.len() <= 64 * 1024));
    let file: Vec<u8> = chunks.into_iter().flat_map(|chunk| chunk.data).collect();
    assert_eq!(
        file,
        keeper.bytes().into_values().flatten().collect::<Vec<_>>()
    );
    let mut reader = Reader::open(file.as_slice()).unwrap();
    let mut packets = 0;
    while reader.next_packet().unwrap().is_some() {
        packets += 1;
    }
    assert_eq!((packets, reader.cut()), (2 + 2 + 1 + 6, None));
    agent.stop().await;
}

#[tokio::test]
async fn an_id_that_is_gone_is_not_found() {
    let (agent, keeper) = agent().await;
    let refused = pull(&agent, by_id(&["c-1", "c-9"])).await.unwrap_err();
    assert_eq!(refused.code(), Code::NotFound);
    assert!(
        refused
            .message()
            .starts_with("there is no capture c-9: it was evicted")
    );
    // Evicted between the list and the read: asked for by id it is missed, found by filter it is not.
    keeper.add("evicted", None, upstream(80), Vec::new());
    let refused = pull(&agent, by_id(&["c-1", "evicted"])).await.unwrap_err();
    assert_eq!(refused.code(), Code::NotFound);
    let filter = Some(only(&[], &[":80"], Outcome::Unspecified));
    let request = proto::PullCaptureRequest {
        ids: Vec::new(),
        filter,
    };
    assert_eq!(pull(&agent, request).await.unwrap().len(), 2);
    let both = proto::PullCaptureRequest {
        filter: Some(only(&[], &[":80"], Outcome::Unspecified)),
        ..by_id(&["c-1"])
    };
    let refused = pull(&agent, both).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    agent.stop().await;
}

#[tokio::test]
async fn a_client_that_leaves_frees_its_place() {
    let (agent, keeper) = agent().await;
    let large = vec![0; 1024 * 1024];
    for number in 0..8 {
        keeper.add(
            &format!("large-{number}"),
            None,
            upstream(83),
            large.clone(),
        );
    }
    let mut abandoned = Vec::new();
    for _ in 0..8 {
        let mut client = agent.client();
        abandoned.push(
            client
                .pull_capture(proto::PullCaptureRequest::default())
                .await
                .unwrap(),
        );
    }
    let refused = pull(&agent, by_id(&["c-1"])).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused:?}");
    drop(abandoned);
    let freed = async {
        while pull(&agent, by_id(&["c-1"])).await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    soon("a place", freed).await;
    agent.stop().await;
}

#[tokio::test]
async fn a_boost_is_limited_and_passed_on() {
    let (agent, keeper) = agent().await;
    let mut client = agent.client();
    let mut boost = async |upstream: &str, seconds, one_in| {
        let request = proto::BoostSamplingRequest {
            upstream: upstream.to_owned(),
            one_in,
            duration: Some(duration_to_proto(Duration::from_secs(seconds))),
        };
        soon("boost", client.boost_sampling(request)).await
    };
    let response = boost("10.0.0.0/8:80", 3600, 0).await.unwrap().into_inner();
    let until = response.until.unwrap().seconds;
    assert_eq!(
        (response.one_in, until),
        (1, i64::try_from(START).unwrap() + 3600)
    );
    let expected = ("10.0.0.0/8:80".parse().unwrap(), 1, Duration::from_hours(1));
    assert_eq!(*keeper.boosts.lock().unwrap(), [expected]);
    for (upstream, seconds, said) in [
        ("shop", 60, "bad upstream `shop`: give"),
        (
            ":80",
            3601,
            "a boost cannot last 3601s: give more than nothing and at most 60 minutes",
        ),
        (":80", 0, "a boost cannot last 0ns: give"),
    ] {
        let refused = boost(upstream, seconds, 1).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
        assert!(refused.message().starts_with(said), "{refused:?}");
    }
    agent.stop().await;
}

/// Runs `hopscope captures` against `agent`.
async fn captures(agent: &Agent, args: &[&str]) -> Output {
    let address = agent.address.to_string();
    let mut command = hopscope(&["captures"]);
    command.args(args).args(["--agent", &address]);
    let output = tokio::task::spawn_blocking(move || command.output().unwrap());
    soon("captures", output).await.unwrap()
}

/// Its output, where it succeeds and says nothing else.
async fn shown(agent: &Agent, args: &[&str]) -> String {
    let output = captures(agent, args).await;
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), ""));
    text(&output.stdout).to_owned()
}

/// Its message and exit code, where it fails.
async fn refused(agent: &Agent, args: &[&str]) -> (i32, String) {
    let output = captures(agent, args).await;
    assert_eq!(text(&output.stdout), "");
    let message = text(&output.stderr).strip_prefix("hopscope: ").unwrap();
    (output.status.code().unwrap(), message.trim_end().to_owned())
}

#[tokio::test]
async fn the_list_command_shows_what_the_agent_holds() {
    let (agent, keeper) = agent().await;
    let bytes = keeper.bytes();
    let expected = format!(
        "2023-11-14T22:13:20.000Z  -                               10.0.0.7:80                2 packets  {:>8} bytes  c-1\n\
         2023-11-14T22:13:21.000Z  http1.header_control_char       10.0.0.7:80                2 packets  {:>8} bytes  c-2\n\
         2023-11-14T22:13:22.000Z  tcp.connect_refused             10.0.0.7:81                2 packets  {:>8} bytes  c-3\n",
        bytes["c-1"].len(),
        bytes["c-2"].len(),
        bytes["c-3"].len(),
    );
    assert_eq!(shown(&agent, &["list"]).await, expected);
    let json = shown(&agent, &["list", "--cause", "http1.*", "--format", "jsonl"]).await;
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let expected = serde_json::json!({
        "id": "c-2", "time": "2023-11-14T22:13:21.000000000Z", "cause": "http1.header_control_char",
        "event_id": "event-of-c-2", "upstream": {"address": "10.0.0.7", "port": 80}, "packets": 2, "bytes": bytes["c-2"].len(),
    });
    assert_eq!(json, expected);
    let (code, message) = refused(&agent, &["list", "--cause", "http1.nope"]).await;
    assert_eq!(code, 2);
    assert!(
        message.starts_with("unknown cause `http1.nope`"),
        "{message}"
    );
    agent.stop().await;
}

fn files(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap();
    let mut names: Vec<_> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[tokio::test]
async fn the_pull_command_writes_a_whole_file_or_none() {
    let (agent, keeper) = agent().await;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("all.pcapng");
    let path = file.to_str().unwrap();
    let all: Vec<u8> = keeper.bytes().into_values().flatten().collect();
    let said = shown(&agent, &["pull", "-o", path]).await;
    assert_eq!(said, format!("3 captures, {} bytes in {path}\n", all.len()));
    assert_eq!(fs::read(&file).unwrap(), all);

    let output = captures(&agent, &["pull", "c-2", "--format", "jsonl"]).await;
    let one = &keeper.bytes()["c-2"];
    assert_eq!((output.status.code(), &output.stdout), (Some(0), one));
    let said: serde_json::Value = serde_json::from_slice(&output.stderr).unwrap();
    assert_eq!(
        said,
        serde_json::json!({"captures": 1, "bytes": one.len(), "file": null})
    );

    // A pull that breaks in the middle leaves the file as it was, and nothing beside it.
    keeper.add("broken", None, upstream(80), Vec::new());
    let (code, message) = refused(&agent, &["pull", "-o", path]).await;
    assert_eq!(code, 1);
    assert!(
        message.ends_with("says: cannot read the captures: the disk is on fire"),
        "{message}"
    );
    assert_eq!(fs::read(&file).unwrap(), all);
    assert_eq!(files(dir.path()), ["all.pcapng"]);

    let absent = dir.path().join("none");
    let none = absent.to_str().unwrap();
    let (code, message) = refused(&agent, &["pull", "c-9", "-o", none]).await;
    assert_eq!(code, 1);
    assert!(
        message.contains("says: there is no capture c-9"),
        "{message}"
    );
    let (code, message) = refused(&agent, &["pull", "--upstream", ":99", "-o", none]).await;
    assert_eq!(code, 1);
    assert!(
        message.contains("holds no capture that matches"),
        "{message}"
    );
    let (code, message) = refused(&agent, &["pull", "c-1", "--upstream", ":80", "-o", none]).await;
    assert_eq!(
        (code, message.as_str()),
        (
            2,
            "ids and filters exclude each other: give the one or the other"
        )
    );
    let (code, message) = refused(&agent, &["pull", "-o", dir.path().to_str().unwrap()]).await;
    assert_eq!(code, 2);
    assert!(
        message.ends_with("it is a directory; name a file in it"),
        "{message}"
    );
    let (code, message) = refused(&agent, &["pull", "c-1", "-o", "/dev/full"]).await;
    assert_eq!(code, 1);
    assert!(message.starts_with("cannot write /dev/full: "), "{message}");
    assert_eq!(files(dir.path()), ["all.pcapng"]);
    agent.stop().await;
}

#[tokio::test]
async fn the_boost_command_says_what_is_in_force() {
    let (agent, _) = agent().await;
    let said = shown(&agent, &["boost", "10.0.0.7:80", "--for", "5m"]).await;
    assert_eq!(
        said,
        "every exchange with 10.0.0.7/32:80 is kept until 2023-11-14T22:18:20.000Z\n"
    );
    let said = shown(
        &agent,
        &["boost", ":80", "--one-in", "10", "--format", "jsonl"],
    )
    .await;
    let said: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!(
        said,
        serde_json::json!({"upstream": ":80", "one_in": 10, "until": "2023-11-14T22:23:20.000000000Z"})
    );
    let (code, message) = refused(&agent, &["boost", ":80", "--for", "2h"]).await;
    assert_eq!(code, 2);
    assert!(message.contains("a boost cannot last 7200s"), "{message}");
    agent.stop().await;
}

#[tokio::test]
async fn the_diff_command_marks_the_byte() {
    let (agent, keeper) = agent().await;
    // Newer, but of another path: the one with the same path is compared.
    let other = exchange(
        upstream(80),
        b"GET /other HTTP/1.1\r\nHost: shop\r\n\r\n",
        b"HTTP/1.1 404 Not Found\r\n\r\n",
    );
    keeper.add("c-4", None, upstream(80), other);
    let page = shown(&agent, &["diff", "10.0.0.7"]).await;
    let expected = r"upstream 10.0.0.7:80
  failing  c-2  2023-11-14T22:13:21.000Z  http1.header_control_char  GET shop/cart
  healthy  c-1  2023-11-14T22:13:20.000Z  no failure  GET shop/cart

status line
  both     HTTP/1.1 200 OK

headers
  failing  X-Id: 1\x002
                  ^^^^ NUL in a header value (byte 35)
  healthy  (absent)
  both     2 more are the same

framing
  failing  Content-Length: complete with 2 bytes
  healthy  Content-Length: complete with 2 bytes
";
    assert_eq!(page, expected);
    let json = shown(
        &agent,
        &["diff", ":80", "--healthy", "c-4", "--format", "jsonl"],
    )
    .await;
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["healthy"]["capture_id"], "c-4");
    assert_eq!(json["headers"][1]["failing"][0]["marks"][0]["byte"], 0);
    agent.stop().await;
}

#[tokio::test]
async fn a_diff_without_two_sides_says_what_to_do() {
    let (agent, _) = agent().await;
    let cases = [
        (
            &["diff", ":99"][..],
            "there is no capture of a failure of :99 yet: wait for one",
        ),
        (
            &["diff", ":81"],
            "no response byte is in the 1 newest captures of failures of :81",
        ),
        (
            &["diff", ":80", "--failing", "c-1"],
            "no failing capture of :80 has the id c-1: `hopscope captures list",
        ),
        (
            &["diff", ":80", "--healthy", "c-2"],
            "no healthy capture of 10.0.0.7:80 has the id c-2",
        ),
    ];
    for (args, expected) in cases {
        let (code, message) = refused(&agent, args).await;
        assert_eq!(code, 1);
        assert!(message.starts_with(expected), "{message}");
    }
    agent.stop().await;
    let keeper = Arc::new(Keeper::default());
    let bad = Some(Cause::Http1HeaderControlChar);
    keeper.add("c-1", bad, upstream(80), exchange(upstream(80), GET, BAD));
    let agent = serve(&keeper).await;
    let (code, message) = refused(&agent, &["diff", ":80"]).await;
    assert_eq!(code, 1);
    assert_eq!(
        message,
        "there is no capture of a healthy response of 10.0.0.7:80 yet: `hopscope captures boost \
         10.0.0.7:80` has some kept as soon as there are requests"
    );
    agent.stop().await;
}

#[tokio::test]
async fn an_agent_without_captures_says_how_to_have_them() {
    let agent = Agent::start(HubConfig::default()).await;
    for args in [
        &["list"][..],
        &["pull", "-o", "/dev/null"],
        &["boost", ":80"],
        &["diff", ":80"],
    ] {
        let (code, message) = refused(&agent, args).await;
        assert_eq!(code, 1);
        assert!(
            message.contains("says: this agent keeps no captures: give"),
            "{message}"
        );
    }
    agent.stop().await;
}

/// Runs `hopscope captures` with a terminal as its standard output, and gives what that shows.
async fn on_a_terminal(agent: &Agent, args: &[&str]) -> (i32, String, String) {
    let controller = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&controller).unwrap();
    unlockpt(&controller).unwrap();
    let name = ptsname(&controller, Vec::new()).unwrap();
    let terminal = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(name.to_str().unwrap())
        .unwrap();
    let address = agent.address.to_string();
    let mut command = hopscope(&["captures"]);
    command.args(args).args(["--agent", &address]);
    command.stdout(terminal).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // The command keeps the terminal's end open; with it, the last one goes.
    drop(command);
    let ended = tokio::task::spawn_blocking(move || {
        let mut shown = Vec::new();
        // A terminal whose other end is closed reads as an error.
        let _ = File::from(controller).read_to_end(&mut shown);
        let mut said = String::new();
        child
            .stderr
            .take()
            .unwrap()
            .read_to_string(&mut said)
            .unwrap();
        let code = child.wait().unwrap().code().unwrap();
        (code, String::from_utf8(shown).unwrap(), said)
    });
    soon("captures", ended).await.unwrap()
}

#[tokio::test]
async fn a_terminal_gets_colours_but_no_packets() {
    let (agent, _) = agent().await;
    let (code, shown, said) = on_a_terminal(&agent, &["pull", "c-1"]).await;
    assert_eq!((code, shown.as_str()), (2, ""));
    assert_eq!(
        said,
        "hopscope: refusing to write pcapng to a terminal: give -o FILE, or pipe it into a program\n"
    );
    let (code, shown, said) = on_a_terminal(&agent, &["diff", ":80"]).await;
    assert_eq!((code, said.as_str()), (0, ""));
    assert!(shown.contains("1\u{1b}[7m\\x00\u{1b}[0m2"), "{shown}");
    agent.stop().await;
}
