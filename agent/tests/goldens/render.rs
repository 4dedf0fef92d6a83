//! A capture and its verdicts as text for people: who sent what when, then what hopscope says.

use std::fmt::Write as _;

use hopscope::input::frame::parse_frame;
use hopscope::input::packet::{Datagram, IpPacket, TcpPacket};
use hopscope::model::{HopEvent, TcpFlags, Timestamp};
use hopscope::source::{Reader, Summary};
use hopscope::stats::Stats;

/// Everything that a reader has to know of one capture.
pub(crate) fn text(
    story: &str,
    capture: &[u8],
    events: &[HopEvent],
    summary: &Summary,
    stats: &Stats,
) -> String {
    let mut out = format!("{story}\n\n");
    packets(&mut out, capture);
    if events.is_empty() {
        out.push_str("\nno failure\n");
    }
    for event in events {
        out.push('\n');
        verdict(&mut out, event);
    }
    out.push('\n');
    counters(&mut out, summary, stats);
    out
}

fn packets(out: &mut String, capture: &[u8]) {
    let mut reader = Reader::open(capture).unwrap();
    let mut first = None;
    while let Some(packet) = reader.next_packet().unwrap() {
        let since = packet.at.since(*first.get_or_insert(packet.at));
        write!(out, "{:>12.6}  ", since.as_secs_f64()).unwrap();
        match parse_frame(packet.link, packet.data, packet.wire_len) {
            Ok(IpPacket::Tcp(tcp)) => segment(out, &tcp),
            Ok(IpPacket::Icmp(icmp)) => {
                let (from, code) = (icmp.from, icmp.code);
                writeln!(out, "{from} says unreachable, code {code}, to {}", icmp.src).unwrap();
            }
            Ok(IpPacket::Dns(datagram)) => message(out, &datagram),
            other => writeln!(out, "{other:?}").unwrap(),
        }
    }
}

fn message(out: &mut String, datagram: &Datagram<'_>) {
    let arrow = if datagram.dst.port() == 53 {
        "->"
    } else {
        "<-"
    };
    let port = datagram.src.port().max(datagram.dst.port());
    let (length, bytes) = (datagram.wire_len, datagram.payload.escape_ascii());
    writeln!(out, "{port} {arrow} DNS {length} bytes \"{bytes}\"").unwrap();
}

fn segment(out: &mut String, tcp: &TcpPacket<'_>) {
    let arrow = if tcp.dst.port() == 8080 { "->" } else { "<-" };
    let port = tcp.src.port().max(tcp.dst.port());
    write!(out, "{port} {arrow}").unwrap();
    let names = [
        (TcpFlags::SYN, "SYN"),
        (TcpFlags::FIN, "FIN"),
        (TcpFlags::RST, "RST"),
    ];
    for (flag, name) in names {
        if tcp.flags.contains(flag) {
            write!(out, " {name}").unwrap();
        }
    }
    write!(out, " seq {}", tcp.seq).unwrap();
    if tcp.flags.contains(TcpFlags::ACK) {
        write!(out, " ack {}", tcp.ack).unwrap();
    }
    if tcp.window == 0 {
        out.push_str(" window 0");
    }
    if tcp.wire_len > 0 {
        let shown = &tcp.payload[..tcp.payload.len().min(96)];
        write!(out, " {} bytes \"{}\"", tcp.wire_len, shown.escape_ascii()).unwrap();
        let rest = tcp.payload.len() - shown.len();
        if rest > 0 {
            write!(out, " and {rest} more").unwrap();
        }
        let missing = tcp.wire_len as usize - tcp.payload.len();
        if missing > 0 {
            write!(out, ", {missing} not captured").unwrap();
        }
    }
    out.push('\n');
}

fn verdict(out: &mut String, event: &HopEvent) {
    let start = Timestamp::from_nanos(1_700_000_000_000_000_000);
    let (cause, proof, phase) = (event.cause, event.proof.as_str(), event.phase.as_str());
    writeln!(out, "{cause}: {proof}, in phase {phase}").unwrap();
    writeln!(
        out,
        "  time         {:.6} s",
        event.time.since(start).as_secs_f64()
    )
    .unwrap();
    let upstream = &event.upstream;
    match &event.local {
        Some(local) => writeln!(
            out,
            "  hop          {} port {} to {upstream}",
            local.address, local.port
        ),
        None => writeln!(out, "  hop          to {upstream}"),
    }
    .unwrap();
    let connection = &event.connection;
    write!(
        out,
        "  connection   {}",
        if connection.reused { "reused" } else { "fresh" }
    )
    .unwrap();
    for (count, what) in [
        (connection.syn_retransmits, "SYNs sent again"),
        (connection.retransmits, "request segments sent again"),
    ] {
        if count > 0 {
            write!(out, ", {count} {what}").unwrap();
        }
    }
    out.push('\n');
    if let Some(exchange) = &event.exchange {
        let method = exchange.method.as_deref().unwrap_or("?");
        let path = exchange.path.as_deref().unwrap_or("?");
        write!(out, "  exchange     {} {method} {path}", exchange.ordinal).unwrap();
        if let Some(status) = exchange.status {
            write!(out, ", status {status}").unwrap();
        }
        let (request, response) = (exchange.request_bytes, exchange.response_bytes);
        writeln!(out, ", {request} bytes sent, {response} received").unwrap();
    }
    for evidence in &event.evidence {
        let (source, what) = (evidence.source.as_str(), &evidence.what);
        writeln!(out, "  {source:<12} {what}: {}", evidence.text).unwrap();
        if let Some(offset) = evidence.offset {
            writeln!(out, "  {:<12} at byte {offset}", "").unwrap();
        }
        if !evidence.bytes.is_empty() {
            let bytes = evidence.bytes.escape_ascii();
            writeln!(out, "  {:<12} bytes \"{bytes}\"", "").unwrap();
        }
    }
    for rival in &event.rivals {
        writeln!(out, "  or           {rival}").unwrap();
    }
    if let Some(splitter) = &event.splitter {
        writeln!(out, "  to be split  by {splitter}").unwrap();
    }
    let completeness = &event.completeness;
    if completeness.lost_segments > 0 {
        writeln!(out, "  incomplete   {} lost", completeness.lost_segments).unwrap();
    }
    if completeness.truncated {
        writeln!(out, "  incomplete   captured short").unwrap();
    }
    if completeness.mid_stream {
        writeln!(out, "  incomplete   joined mid-stream").unwrap();
    }
}

/// The counters that are not zero.
fn counters(out: &mut String, summary: &Summary, stats: &Stats) {
    let hops = &summary.hops;
    let of_source = [
        ("guessed", hops.guessed),
        ("corrected", hops.corrected),
        ("dropped", hops.dropped),
    ];
    let told: Vec<_> = stats
        .counters()
        .into_iter()
        .chain(of_source)
        .filter(|(_, count)| *count > 0)
        .map(|(name, count)| format!("{name} {count}"))
        .collect();
    writeln!(out, "{}", told.join(", ")).unwrap();
}
