//! What the TLS parser tells of each connection, against what tshark does.

use std::collections::BTreeMap;
use std::fs::File;
use std::net::SocketAddr;

use hopscope::input::frame::parse_frame;
use hopscope::input::packet::{IpPacket, TcpPacket};
use hopscope::limits::Limits;
use hopscope::model::{TcpFlags, Timestamp};
use hopscope::source::Reader;
use hopscope::tcp::Reassembler;
use hopscope::tls::{Facts, Session, Step, SubjectName, Version, alert_name};
use serde_json::Value;

use crate::truth::{Capture, Stream, captures};

/// Made-up connections whose ServerHello has one byte of extensions, which is no extension: it is not
/// taken for a hello, tshark tells what comes before.
const MALFORMED: [(&str, u64); 2] = [
    ("arkime/tests/pcap/arkime_synthetic.pcap", 90),
    ("arkime/tests/pcap/arkime_synthetic.pcap", 97),
];

/// One connection on its way through the parser.
struct Followed<'c> {
    stream: &'c Stream,
    last: Timestamp,
    session: Session,
    to: Reassembler,
    from: Reassembler,
}

impl<'c> Followed<'c> {
    fn new(stream: &'c Stream) -> Self {
        let begins = ["first_bytes_c2s", "first_bytes_s2c"].iter().all(|field| {
            stream.row[field]
                .as_str()
                .is_some_and(|bytes| bytes.starts_with("1603"))
        });
        let session = if begins || stream.row["begin_captured"] == true {
            Session::new()
        } else {
            Session::joined()
        };
        Self {
            stream,
            last: seconds(&stream.row["last"]),
            session,
            to: Reassembler::default(),
            from: Reassembler::default(),
        }
    }

    fn packet(&mut self, at: Timestamp, packet: &TcpPacket<'_>) {
        let limits = Limits::default();
        let Self {
            session, to, from, ..
        } = self;
        let sent = packet.src == self.stream.client;
        if packet.flags.contains(TcpFlags::SYN) {
            let side = if sent { to } else { from };
            side.start(packet.seq.wrapping_add(1));
            return;
        }
        let TcpPacket {
            seq,
            ack,
            payload,
            wire_len,
            ..
        } = *packet;
        let end = seq.wrapping_add(wire_len);
        let ends = packet.flags.contains(TcpFlags::FIN);
        let acknowledges = packet.flags.contains(TcpFlags::ACK);
        if sent {
            if acknowledges {
                from.acknowledged(ack, |chunk| session.received(at, chunk));
            }
            to.push(seq, payload, wire_len, &limits, |chunk| {
                session.sent(at, chunk);
            });
            if ends {
                to.fin(end);
            }
        } else {
            if acknowledges {
                to.acknowledged(ack, |chunk| session.sent(at, chunk));
            }
            from.push(seq, payload, wire_len, &limits, |chunk| {
                session.received(at, chunk);
            });
            if ends {
                from.fin(end);
            }
        }
    }
}

fn seconds(value: &Value) -> Timestamp {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a time of this century"
    )]
    Timestamp::from_nanos((value.as_f64().unwrap() * 1e9) as u64)
}

/// Whether both sides spoke TLS from the first byte on.
fn is_tls(stream: &Stream) -> bool {
    let begins = |field: &str| {
        let bytes = stream.row[field].as_str().unwrap_or_default();
        bytes.is_empty() || bytes.starts_with("1603") || bytes.starts_with("1503")
    };
    stream.row["tls"].is_object() && begins("first_bytes_c2s") && begins("first_bytes_s2c")
}

fn follow<'c>(capture: &'c Capture, mut told: impl FnMut(&'c Stream, &Session)) {
    const SLACK: std::time::Duration = std::time::Duration::from_millis(1);
    let mut ends: BTreeMap<(SocketAddr, SocketAddr), Vec<Followed<'c>>> = BTreeMap::new();
    for stream in capture.streams.iter().filter(|stream| is_tls(stream)) {
        let list = ends.entry((stream.client, stream.server)).or_default();
        list.push(Followed::new(stream));
    }
    if ends.is_empty() {
        return;
    }
    let mut reader = Reader::open(File::open(&capture.path).unwrap()).unwrap();
    while let Some(packet) = reader.next_packet().unwrap() {
        let read = parse_frame(packet.link, packet.data, packet.wire_len);
        let Ok(IpPacket::Tcp(tcp)) = read else {
            continue;
        };
        for (one, other) in [(tcp.src, tcp.dst), (tcp.dst, tcp.src)] {
            let Some(list) = ends.get_mut(&(one, other)) else {
                continue;
            };
            let at = packet.at;
            let found = list.iter_mut().find(|followed| {
                at.after(SLACK) >= followed.stream.first && at <= followed.last.after(SLACK)
            });
            if let Some(followed) = found {
                followed.packet(at, &tcp);
            }
        }
    }
    for followed in ends.values().flatten() {
        told(followed.stream, &followed.session);
    }
}

/// A disagreement, and whether it is only that something was not told.
struct Difference {
    what: &'static str,
    ours: String,
    theirs: String,
    missing: bool,
}

fn compare(facts: &Facts, tls: &Value) -> Vec<Difference> {
    let mut found = Vec::new();
    let mut note = |what, ours: Option<String>, theirs: String| {
        if ours.as_ref() != Some(&theirs) {
            found.push(Difference {
                what,
                missing: ours.is_none(),
                ours: ours.unwrap_or_default(),
                theirs,
            });
        }
    };
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let list = |value: &Value| {
        let mut list: Vec<_> = value.as_array().unwrap().iter().map(text).collect();
        list.sort();
        list.join(" ")
    };
    let client = facts.client.as_deref();
    if tls["sni"].is_string() {
        note(
            "sni",
            client.and_then(|client| client.sni.clone()),
            text(&tls["sni"]),
        );
    }
    if tls["client_alpn"].is_array() {
        let ours = client.map(|client| {
            let mut list = client.alpn.clone();
            list.sort();
            list.join(" ")
        });
        note("client_alpn", ours, list(&tls["client_alpn"]));
    }
    if tls["client_supported_versions"].is_array() {
        let ours = client.map(|client| {
            let mut list: Vec<_> = client.versions.iter().copied().map(version).collect();
            list.retain(|version| !version.starts_with("0x"));
            list.sort();
            list.join(" ")
        });
        note("versions", ours, list(&tls["client_supported_versions"]));
    }
    let server = facts.server.as_ref();
    // tshark does not know the draft of Facebook's own and tells the version that is there for show.
    let own_draft = server.is_some_and(|server| server.version == Version(0xfb1a));
    if tls["version"].is_string() && !own_draft {
        let ours = server.map(|server| version(server.version));
        note("version", ours, text(&tls["version"]));
    }
    if tls["cipher"].is_string() {
        let ours = server.map(|server| format!("0x{:04x}", server.cipher));
        note("cipher", ours, text(&tls["cipher"]));
    }
    if tls["server_alpn"].is_array() {
        note(
            "server_alpn",
            server.and_then(|server| server.alpn.clone()),
            list(&tls["server_alpn"]),
        );
    }
    let leaf = facts.chain.first();
    if tls["leaf_not_before"].is_number() {
        let ours = leaf.map(|leaf| leaf.not_before.to_string());
        note("not_before", ours, tls["leaf_not_before"].to_string());
        let ours = leaf.map(|leaf| leaf.not_after.to_string());
        note("not_after", ours, tls["leaf_not_after"].to_string());
        // The rows have twenty names at most.
        let theirs = tls["leaf_san"].as_array().unwrap();
        let most = theirs.len() == 20;
        let ours = leaf.map(|leaf| {
            let mut names: Vec<_> = leaf
                .names
                .iter()
                .filter_map(|name| match name {
                    SubjectName::Dns(name) => Some(name.clone()),
                    SubjectName::Address(_) => None,
                })
                .collect();
            names.sort();
            if most {
                names.retain(|name| theirs.contains(&Value::from(name.as_str())));
            }
            names.join(" ")
        });
        note("names", ours, list(&tls["leaf_san"]));
    }
    for alert in tls["alerts"].as_array().into_iter().flatten() {
        let by = if alert["dir"] == "c2s" {
            hopscope::model::Actor::Gateway
        } else {
            hopscope::model::Actor::Upstream
        };
        let theirs = alert["desc"].as_str();
        let any = facts.alerts.iter().any(|one| {
            let ours = one.said.and_then(|(_, number)| alert_name(number));
            one.by == by && ours == theirs
        });
        let ours = any.then(|| alert.to_string());
        note("alert", ours, alert.to_string());
    }
    // In TLS 1.3 it is seen only where no messages share a record.
    let hidden = server.is_some_and(|server| server.version.hides_handshake());
    if tls["handshake_completed"] == true && !hidden {
        let done = facts.is_complete();
        note("complete", done.then(|| "yes".to_owned()), "yes".to_owned());
    }
    found
}

/// The version as tshark's rows have it, which know no drafts.
fn version(version: Version) -> String {
    match version.0 {
        0x0300 => "SSL3".to_owned(),
        0x0301..=0x0304 => version.to_string().replace(' ', ""),
        other => format!("0x{other:04x}"),
    }
}

#[test]
fn the_tls_parser_agrees_with_tshark() {
    let Some(corpus) = super::corpus() else {
        return;
    };
    let mut wrong = Vec::new();
    let (mut connections, mut whole) = (0, 0);
    for capture in captures(&corpus) {
        follow(&capture, |stream, session| {
            connections += 1;
            let facts = session.facts();
            let gap = facts.to.gap || facts.from.gap || stream.hole;
            whole += u64::from(!gap);
            for difference in compare(facts, &stream.row["tls"]) {
                let Difference {
                    what,
                    ours,
                    theirs,
                    missing,
                } = difference;
                let listed = MALFORMED.contains(&(capture.name.as_str(), stream.number));
                if !(missing && (gap || listed)) {
                    wrong.push(format!(
                        "{} {}: {what}: {ours} not {theirs}",
                        capture.name, stream.number
                    ));
                }
            }
            if facts.to.step == Step::Nothing && facts.from.step == Step::Nothing && !gap {
                wrong.push(format!(
                    "{} {}: nothing was read",
                    capture.name, stream.number
                ));
            }
        });
    }
    println!("{connections} connections, {whole} without a gap");
    assert!(wrong.is_empty(), "{wrong:#?}");
}
