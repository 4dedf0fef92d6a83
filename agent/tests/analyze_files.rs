//! Capture files made here, in each format and byte order, whole, cut off and damaged.

#![cfg(feature = "std-edges")]
#![expect(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

use std::io::{Read, Write as _};

use hopscope::engine::{Config, Engine};
use hopscope::input::frame::LinkType;
use hopscope::limits::Limits;
use hopscope::source::{self, Cut, CutReason, Options, Reader, SourceError, Summary};
use proptest::prelude::*;

/// Writes numbers in one byte order.
#[derive(Clone, Copy, Debug)]
enum Order {
    Little,
    Big,
}

impl Order {
    fn u16(self, value: u16) -> [u8; 2] {
        match self {
            Self::Little => value.to_le_bytes(),
            Self::Big => value.to_be_bytes(),
        }
    }

    fn u32(self, value: u32) -> [u8; 4] {
        match self {
            Self::Little => value.to_le_bytes(),
            Self::Big => value.to_be_bytes(),
        }
    }

    fn u64(self, value: u64) -> [u8; 8] {
        match self {
            Self::Little => value.to_le_bytes(),
            Self::Big => value.to_be_bytes(),
        }
    }
}

/// A raw IPv4 segment.
fn segment(flags: u8, from_server: bool, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x45, 0];
    let total = u16::try_from(40 + payload.len()).unwrap();
    packet.extend(total.to_be_bytes());
    packet.extend([0, 1, 0x40, 0, 64, 6, 0, 0]);
    let (client, server) = ([10, 0, 0, 1], [10, 0, 0, 2]);
    let (src, dst) = if from_server {
        (server, client)
    } else {
        (client, server)
    };
    packet.extend([src, dst].concat());
    let (client, server) = (40_000u16.to_be_bytes(), 80u16.to_be_bytes());
    let (src, dst) = if from_server {
        (server, client)
    } else {
        (client, server)
    };
    packet.extend([src, dst].concat());
    packet.extend([0, 0, 0, 1, 0, 0, 0, 1, 0x50, flags, 4, 0, 0, 0, 0, 0]);
    packet.extend(payload);
    packet
}

fn conversation() -> Vec<Vec<u8>> {
    vec![
        segment(0x02, false, b""),
        segment(0x12, true, b""),
        segment(0x18, false, b"GET / HTTP/1.1\r\n\r\n"),
        segment(0x18, true, b"HTTP/1.1 204 No Content\r\n\r\n"),
        segment(0x11, true, b""),
    ]
}

const RAW: u16 = 101;

fn pcap_header(order: Order, magic: u32, link: u16) -> Vec<u8> {
    let mut file = order.u32(magic).to_vec();
    file.extend(order.u16(2));
    file.extend(order.u16(4));
    file.extend([0; 8]);
    file.extend(order.u32(65_535));
    file.extend(order.u32(u32::from(link)));
    file
}

fn pcap_record(order: Order, time: (u32, u32), data: &[u8], wire_len: u32) -> Vec<u8> {
    let caplen = u32::try_from(data.len()).unwrap();
    let mut record = Vec::new();
    for field in [time.0, time.1, caplen, wire_len] {
        record.extend(order.u32(field));
    }
    record.extend(data);
    record
}

fn pcap(order: Order) -> Vec<u8> {
    let mut file = pcap_header(order, 0xa1b2_c3d4, RAW);
    for (second, packet) in (1u32..).zip(conversation()) {
        let length = u32::try_from(packet.len()).unwrap();
        file.extend(pcap_record(order, (second, 5), &packet, length));
    }
    file
}

fn block(order: Order, kind: u32, body: &[u8]) -> Vec<u8> {
    let mut body = body.to_vec();
    body.resize(body.len().next_multiple_of(4), 0);
    let length = order.u32(u32::try_from(body.len() + 12).unwrap());
    [&order.u32(kind)[..], &length, &body, &length].concat()
}

fn section(order: Order) -> Vec<u8> {
    let mut body = order.u32(0x1a2b_3c4d).to_vec();
    body.extend(order.u16(1));
    body.extend(order.u16(0));
    body.extend(order.u64(u64::MAX));
    block(order, 0x0a0d_0d0a, &body)
}

fn option(order: Order, code: u16, value: &[u8]) -> Vec<u8> {
    let mut option = order.u16(code).to_vec();
    option.extend(order.u16(u16::try_from(value.len()).unwrap()));
    option.extend(value);
    option.resize(option.len().next_multiple_of(4), 0);
    option
}

fn interface(order: Order, link: u16, snap_len: u32, options: &[Vec<u8>]) -> Vec<u8> {
    let mut body = order.u16(link).to_vec();
    body.extend([0, 0]);
    body.extend(order.u32(snap_len));
    if !options.is_empty() {
        body.extend(options.concat());
        body.extend([0; 4]);
    }
    block(order, 1, &body)
}

fn enhanced(order: Order, interface: u32, units: u64, data: &[u8]) -> Vec<u8> {
    let length = u32::try_from(data.len()).unwrap();
    let mut body = Vec::new();
    let (high, low) = (u32::try_from(units >> 32).unwrap(), units & 0xffff_ffff);
    for field in [interface, high, u32::try_from(low).unwrap(), length, length] {
        body.extend(order.u32(field));
    }
    body.extend(data);
    block(order, 6, &body)
}

fn pcapng(order: Order) -> Vec<u8> {
    let mut file = section(order);
    file.extend(interface(order, RAW, 0, &[]));
    for (second, packet) in (1u64..).zip(conversation()) {
        file.extend(enhanced(order, 0, second * 1_000_000 + 5, &packet));
    }
    file
}

fn analyze(file: impl Read) -> Result<Summary, SourceError> {
    let mut engine = Engine::new(Config::default(), Limits::default());
    source::analyze(file, &Options::default(), &mut engine, &mut |_| {})
}

/// Times, link types, lengths and the reason for stopping early.
type Packets = (Vec<(u64, u16, usize, u32)>, Option<Cut>);

fn packets(file: &[u8]) -> Packets {
    let mut reader = Reader::open(file).unwrap();
    let mut packets = Vec::new();
    while let Some(packet) = reader.next_packet().unwrap() {
        let LinkType(link) = packet.link;
        packets.push((
            packet.at.as_nanos(),
            link,
            packet.data.len(),
            packet.wire_len,
        ));
    }
    (packets, reader.cut().cloned())
}

#[track_caller]
fn holds_the_conversation(file: impl Read) {
    let summary = analyze(file).unwrap();
    assert_eq!(
        (summary.packets, summary.segments, summary.hops.hops),
        (5, 5, 1)
    );
    assert_eq!(
        summary.upstreams[0].upstream,
        "10.0.0.2:80".parse().unwrap()
    );
    assert_eq!(summary.first.unwrap().as_nanos(), 1_000_005_000);
    assert_eq!(summary.last.unwrap().as_nanos(), 5_000_005_000);
    assert_eq!(summary.truncated_at, None);
}

#[test]
fn both_formats_in_both_orders() {
    for order in [Order::Little, Order::Big] {
        holds_the_conversation(&pcap(order)[..]);
        holds_the_conversation(&pcapng(order)[..]);
    }
}

#[test]
fn compressed_and_slow_streams() {
    for file in [pcap(Order::Little), pcapng(Order::Big)] {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&file).unwrap();
        let gzip = gzip.finish().unwrap();
        holds_the_conversation(&gzip[..]);
        let zstd = zstd::encode_all(&file[..], 1).unwrap();
        holds_the_conversation(&zstd[..]);
        holds_the_conversation(OneByOne(&file));
        holds_the_conversation(OneByOne(&zstd));
    }
}

#[test]
fn compressed_files_cut_off_give_what_was_packed() {
    // Noise, so that compression makes blocks all along.
    let mut state = 1u32;
    let mut noise = vec![0; 1000];
    let mut file = pcap_header(Order::Little, 0xa1b2_c3d4, RAW);
    for _ in 0..2000 {
        noise.fill_with(|| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state.to_be_bytes()[0]
        });
        file.extend(pcap_record(
            Order::Little,
            (1, 0),
            &segment(0x18, true, &noise),
            1040,
        ));
    }
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&file).unwrap();
    for packed in [
        gzip.finish().unwrap(),
        zstd::encode_all(&file[..], 1).unwrap(),
    ] {
        assert_eq!(analyze(&packed[..]).unwrap().packets, 2000);
        let summary = analyze(&packed[..packed.len() / 2]).unwrap();
        assert!(
            (500..1100).contains(&summary.packets),
            "{}",
            summary.packets
        );
        let reason = summary.truncated_at.expect("nothing was missed").reason;
        assert!(matches!(reason, CutReason::Compression(_)), "{reason:?}");
    }
}

/// A pipe that gives one byte at a time.
struct OneByOne<'a>(&'a [u8]);

impl Read for OneByOne<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let length = buffer.len().min(1);
        self.0.read(&mut buffer[..length])
    }
}

/// The events of a capture as JSON.
fn events(file: &[u8]) -> Vec<String> {
    let mut engine = Engine::new(Config::default(), Limits::default());
    let mut events = Vec::new();
    source::analyze(file, &Options::default(), &mut engine, &mut |event| {
        events.push(serde_json::to_string(&event).unwrap());
    })
    .unwrap();
    events
}

#[test]
fn the_format_does_not_change_the_events() {
    let refused = [segment(0x02, false, b""), segment(0x14, true, b"")];
    let order = Order::Little;
    let mut pcap = pcap_header(order, 0xa1b2_3c4d, RAW);
    let mut pcapng = section(Order::Big);
    pcapng.extend(interface(
        Order::Big,
        RAW,
        0,
        &[option(Order::Big, 9, &[9])],
    ));
    for (index, packet) in (0u32..).zip(&refused) {
        let nanos = 1000 * index + 7;
        pcap.extend(pcap_record(order, (9, nanos), packet, 40));
        let units = 9_000_000_000 + u64::from(nanos);
        pcapng.extend(enhanced(Order::Big, 0, units, packet));
    }
    let expected = events(&pcap);
    assert_eq!(expected.len(), 1);
    assert!(expected[0].contains("tcp.connect_refused"), "{expected:?}");
    assert!(
        expected[0].contains("1970-01-01T00:00:09.000001007Z"),
        "{expected:?}"
    );
    assert_eq!(events(&pcapng), expected);
    assert_eq!(events(&zstd::encode_all(&pcap[..], 1).unwrap()), expected);
}

#[test]
fn packets_out_of_order_are_counted() {
    let mut file = pcap_header(Order::Little, 0xa1b2_c3d4, RAW);
    for (seconds, micros) in [(9, 0), (8, 500_000), (7, 0), (10, 0)] {
        file.extend(pcap_record(Order::Little, (seconds, micros), b"", 0));
    }
    let summary = analyze(&file[..]).unwrap();
    assert_eq!(summary.late, 1);
    assert_eq!(summary.first.unwrap().as_nanos(), 7_000_000_000);
    assert_eq!(summary.last.unwrap().as_nanos(), 10_000_000_000);
}

#[test]
fn a_length_on_the_wire_that_no_packet_has_is_not_believed() {
    let mut file = pcap_header(Order::Little, 0xa1b2_c3d4, RAW);
    for wire_len in [2, 3, 1_048_576, 0xffff_0000] {
        file.extend(pcap_record(Order::Little, (1, 0), b"abc", wire_len));
    }
    let lengths: Vec<_> = packets(&file).0.iter().map(|packet| packet.3).collect();
    assert_eq!(lengths, [3, 3, 1_048_576, 3]);
}

#[test]
fn fractions_of_pcap_seconds() {
    for order in [Order::Little, Order::Big] {
        for (magic, nanos) in [(0xa1b2_c3d4, 7000), (0xa1b2_3c4d, 7)] {
            let mut file = pcap_header(order, magic, RAW);
            file.extend(pcap_record(order, (2, 7), b"abc", 1500));
            assert_eq!(
                packets(&file),
                (vec![(2_000_000_000 + nanos, RAW, 3, 1500)], None)
            );
        }
    }
}

#[test]
fn the_modified_format_has_longer_records() {
    let order = Order::Little;
    let mut file = pcap_header(order, 0xa1b2_cd34, 1);
    for time in 1..3 {
        let mut record = pcap_record(order, (time, 0), b"", 3);
        record[8..12].copy_from_slice(&order.u32(3));
        file.extend(record);
        file.extend([0; 8]);
        file.extend(b"abc");
    }
    let (packets, cut) = packets(&file);
    assert_eq!(
        packets,
        [(1_000_000_000, 1, 3, 3), (2_000_000_000, 1, 3, 3)]
    );
    assert_eq!(cut, None);
}

#[test]
fn the_length_of_a_check_sequence_is_not_part_of_the_link_type() {
    let mut file = pcap_header(Order::Little, 0xa1b2_c3d4, 1);
    file[23] = 0x24;
    file.extend(pcap_record(Order::Little, (1, 0), b"abc", 3));
    assert_eq!(packets(&file).0, [(1_000_000_000, 1, 3, 3)]);
}

#[test]
fn interfaces_have_their_own_link_type_and_clock() {
    for order in [Order::Little, Order::Big] {
        let offset = |seconds: i64| option(order, 14, &order.u64(seconds.cast_unsigned()));
        let resolution = |value: u8| option(order, 9, &[value]);
        let mut file = section(order);
        file.extend(interface(order, 1, 0, &[]));
        file.extend(interface(order, 113, 0, &[resolution(9), offset(10)]));
        file.extend(interface(order, 276, 0, &[resolution(3), offset(-2)]));
        file.extend(interface(order, 101, 0, &[resolution(0x8a)]));
        file.extend(interface(order, 0, 0, &[resolution(12)]));
        for (number, units) in [(0, 3_000_000), (1, 3), (2, 3000), (3, 3584), (4, 3_000_000)] {
            file.extend(enhanced(order, number, units, b"abc"));
        }
        let (packets, cut) = packets(&file);
        let times: Vec<_> = packets.iter().map(|packet| (packet.1, packet.0)).collect();
        let expected = [
            (1, 3_000_000_000),
            (113, 10_000_000_003),
            (276, 1_000_000_000),
            (101, 3_500_000_000),
            (0, 3000),
        ];
        assert_eq!(times, expected);
        assert_eq!(cut, None);
    }
}

#[test]
fn sections_may_change_the_order_and_forget_interfaces() {
    let mut file = pcapng(Order::Big);
    file.extend(section(Order::Little));
    file.extend(interface(Order::Little, 1, 0, &[]));
    file.extend(enhanced(Order::Little, 0, 9, b"abc"));
    file.extend(section(Order::Big));
    // Not described in this section.
    file.extend(enhanced(Order::Big, 0, 9, b"abc"));
    let mut reader = Reader::open(&file[..]).unwrap();
    let mut links = Vec::new();
    while let Some(packet) = reader.next_packet().unwrap() {
        links.push(packet.link.0);
    }
    assert_eq!(links, [RAW, RAW, RAW, RAW, RAW, 1]);
    assert_eq!((reader.skipped(), reader.cut()), (1, None));
}

#[test]
fn simple_and_obsolete_packets_and_blocks_of_other_kinds() {
    let order = Order::Big;
    let mut file = section(order);
    file.extend(interface(order, RAW, 4, &[]));
    file.extend(block(order, 0x0bad, &vec![7; 600_000]));
    file.extend(enhanced(order, 0, 2_000_000, b"abc"));
    let mut simple = order.u32(9).to_vec();
    simple.extend(b"abcd");
    file.extend(block(order, 3, &simple));
    let mut obsolete = order.u16(0).to_vec();
    obsolete.extend(order.u16(1));
    for field in [0, 4_000_000, 3, 60] {
        obsolete.extend(order.u32(field));
    }
    obsolete.extend(b"abc");
    file.extend(block(order, 2, &obsolete));
    let (packets, cut) = packets(&file);
    let second = 1_000_000_000;
    assert_eq!(packets[0], (2 * second, RAW, 3, 3));
    // It has no time of its own.
    assert_eq!(packets[1], (2 * second, RAW, 4, 9));
    assert_eq!(packets[2], (4 * second, RAW, 3, 60));
    assert_eq!((packets.len(), cut), (3, None));
}

#[test]
fn every_cut_gives_the_packets_before_it() {
    for whole in [pcap(Order::Little), pcap(Order::Big), pcapng(Order::Little)] {
        // Where each record ends: there a file is whole.
        let mut ends = vec![];
        let mut last = 0;
        for length in 0..=whole.len() {
            let file = &whole[..length];
            let summary = match analyze(file) {
                Ok(summary) => summary,
                Err(SourceError::NotACapture { .. }) if length < 4 => continue,
                Err(error) => panic!("{length}: {error}"),
            };
            assert!(summary.packets == last || summary.packets == last + 1);
            last = summary.packets;
            match summary.truncated_at {
                None => ends.push(length),
                Some(cut) => {
                    assert_eq!((cut.packets, cut.reason), (last, CutReason::Ends));
                    assert_eq!(
                        usize::try_from(cut.offset).unwrap(),
                        ends.last().copied().unwrap_or(0)
                    );
                }
            }
        }
        assert_eq!(last, 5);
        assert_eq!(ends.last(), Some(&whole.len()));
    }
}

#[test]
fn a_record_length_that_no_packet_has_ends_the_reading() {
    let mut file = pcap(Order::Little);
    let end = file.len() as u64;
    file.extend(pcap_record(Order::Little, (6, 0), b"", 0));
    let at = file.len() - 8;
    file[at..at + 4].copy_from_slice(&0x7fff_ffff_u32.to_le_bytes());
    file.extend(pcap(Order::Little));
    let cut = analyze(&file[..]).unwrap().truncated_at.unwrap();
    assert_eq!((cut.packets, cut.offset), (5, end));
    assert_eq!(cut.reason, CutReason::Length(0x7fff_ffff));
    assert_eq!(
        cut.to_string(),
        format!("file is damaged: a record length of 2147483647 at offset {end}, after 5 packets")
    );
}

#[test]
fn what_is_no_capture_says_what_it_looks_like() {
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(b"hello, world").unwrap();
    let gzip = gzip.finish().unwrap();
    for (file, expected) in [
        (&b""[..], "nothing"),
        (
            b"<!DOCTYPE html>",
            "text, first bytes 3c 21 44 4f 43 54 59 50",
        ),
        (
            b"\x7fELF\x02\x01",
            "an ELF program, first bytes 7f 45 4c 46 02 01",
        ),
        (
            b"PK\x03\x04",
            "a zip archive: unpack it first, first bytes 50 4b 03 04",
        ),
        (b"\0\0\0\0", "unknown data, first bytes 00 00 00 00"),
        (
            &gzip,
            "text, first bytes 68 65 6c 6c 6f 2c 20 77, inside gzip",
        ),
    ] {
        match analyze(file) {
            Err(SourceError::NotACapture { found }) => assert_eq!(found, expected),
            other => panic!("{other:?}"),
        }
    }
    let wrong_order = [&[0x0a, 0x0d, 0x0d, 0x0a, 28, 0, 0, 0][..], &[9; 20]].concat();
    assert!(matches!(
        analyze(&wrong_order[..]),
        Err(SourceError::NotACapture { .. })
    ));
    let error = analyze(&b"hello"[..]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "not a pcap or pcapng capture: text, first bytes 68 65 6c 6c 6f"
    );
}

proptest! {
    #[test]
    fn any_bytes_do(bytes in proptest::collection::vec(any::<u8>(), 0..2000), kind in 0..4) {
        let mut file = match kind {
            0 => Vec::new(),
            1 => pcap_header(Order::Little, 0xa1b2_c3d4, 1),
            2 => section(Order::Little),
            _ => pcapng(Order::Big),
        };
        file.extend(bytes);
        match analyze(&file[..]) {
            Ok(_) => {}
            Err(SourceError::NotACapture { .. }) => prop_assert_eq!(kind, 0),
            Err(error) => return Err(TestCaseError::fail(error.to_string())),
        }
    }

    #[test]
    fn any_damage_does(
        flips in proptest::collection::vec((any::<prop::sample::Index>(), 0u8..8), 1..6),
        kind in 0..3,
    ) {
        let mut file = match kind {
            0 => pcap(Order::Little),
            1 => pcapng(Order::Little),
            _ => pcapng(Order::Big),
        };
        for (at, bit) in flips {
            let at = at.index(file.len());
            file[at] ^= 1 << bit;
        }
        match analyze(&file[..]) {
            Ok(summary) => prop_assert!(summary.packets <= 5),
            Err(SourceError::NotACapture { .. }) => {}
            Err(error) => return Err(TestCaseError::fail(error.to_string())),
        }
        let mut packed = zstd::encode_all(&file[..], 1).unwrap();
        let last = packed.len() - 1;
        packed[last / 2] ^= 1;
        let _ = analyze(&packed[..]);
    }
}
