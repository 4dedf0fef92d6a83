//! Files of noise, cut off, damaged, and with lengths that lie.

use std::io::{Read, Write as _};
use std::path::Path;

use hopscope::engine::{Config, Engine};
use hopscope::limits::Limits;
use hopscope::source::{self, CutReason, Options, SourceError, Summary};
use proptest::prelude::*;

use crate::measure::assert_linear;
use crate::scaled;

fn analyze(file: impl Read) -> Result<Summary, SourceError> {
    let mut engine = Engine::new(Config::default(), Limits::default());
    source::analyze(file, &Options::default(), &mut engine, &mut |event| {
        // Events must survive being written, whatever bytes they quote.
        serde_json::to_string(&event).unwrap();
    })
}

/// A capture of each group of scenarios, and one of them as a pcapng file.
fn captures() -> Vec<Vec<u8>> {
    let goldens = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens");
    let mut captures: Vec<_> = ["connect", "tcp", "http1", "stream"]
        .iter()
        .map(|group| {
            let mut paths: Vec<_> = std::fs::read_dir(goldens.join(group))
                .unwrap()
                .map(|entry| entry.unwrap().path())
                .filter(|path| path.extension().is_some_and(|name| name == "pcap"))
                .collect();
            paths.sort();
            let captures = paths.iter().map(|path| std::fs::read(path).unwrap());
            let short = captures.filter(|capture| capture.len() < 1500);
            short.max_by_key(Vec::len).unwrap()
        })
        .collect();
    let last = pcapng(captures.last().unwrap());
    captures.push(last);
    captures
}

/// The same, or one in each format where the code is slow.
fn few_captures() -> Vec<Vec<u8>> {
    let mut captures = captures();
    captures.drain(..if cfg!(debug_assertions) { 3 } else { 0 });
    captures
}

/// A pcap file of this machine's byte order as a pcapng file.
fn pcapng(pcap: &[u8]) -> Vec<u8> {
    let block = |kind: u32, body: &[u8]| {
        let mut body = body.to_vec();
        body.resize(body.len().next_multiple_of(4), 0);
        let length = u32::try_from(body.len() + 12).unwrap().to_le_bytes();
        [&kind.to_le_bytes()[..], &length, &body, &length].concat()
    };
    let number = |at: usize| u32::from_le_bytes(pcap[at..at + 4].try_into().unwrap());
    let mut file = block(
        0x0a0d_0d0a,
        &[
            &0x1a2b_3c4d_u32.to_le_bytes()[..],
            &[1, 0, 0, 0],
            &[0xff; 8],
        ]
        .concat(),
    );
    file.extend(block(1, &[&pcap[20..22], &[0; 6]].concat()));
    let mut at = 24;
    while at < pcap.len() {
        let units = u64::from(number(at)) * 1_000_000 + u64::from(number(at + 4));
        let [high, low] =
            [units >> 32, units & 0xffff_ffff].map(|half| u32::try_from(half).unwrap());
        let length = number(at + 8);
        let data = &pcap[at + 16..][..length as usize];
        let mut body = vec![0; 4];
        for field in [high, low, length, length] {
            body.extend(field.to_le_bytes());
        }
        body.extend(data);
        file.extend(block(6, &body));
        at += 16 + data.len();
    }
    file
}

#[test]
fn the_captures_are_whole() {
    for capture in captures() {
        let summary = analyze(&capture[..]).unwrap();
        assert!(summary.segments > 1);
        assert_eq!((summary.truncated_at, summary.skipped), (None, 0));
    }
}

#[test]
fn cut_off_at_any_byte() {
    for capture in captures() {
        let mut last = 0;
        for length in 4..capture.len() {
            let summary = analyze(&capture[..length]).unwrap();
            assert!(summary.packets == last || summary.packets == last + 1);
            last = summary.packets;
        }
    }
}

#[test]
fn any_byte_at_an_extreme() {
    // Each length and count is at its least, its greatest and in the middle once.
    for capture in few_captures() {
        for at in 4..capture.len() {
            for value in [0, 0x80, 0xff] {
                let mut damaged = capture.clone();
                damaged[at] = value;
                assert_reads(&damaged);
            }
        }
    }
}

#[test]
fn any_number_at_an_extreme() {
    for capture in few_captures() {
        for width in [2, 4] {
            for at in (4..capture.len() - width).step_by(2) {
                for value in [0, 0xff] {
                    let mut damaged = capture.clone();
                    damaged[at..at + width].fill(value);
                    assert_reads(&damaged);
                }
            }
        }
    }
}

/// Damage behind the first four bytes may cost everything but the reading: only a pcapng section
/// whose byte order is destroyed is no capture any more.
#[track_caller]
fn assert_reads(damaged: &[u8]) {
    match analyze(damaged) {
        Ok(_) => {}
        Err(SourceError::NotACapture { .. }) => assert_eq!(damaged[0], 0x0a),
        Err(error) => panic!("{error}"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(debug_assertions) { 300 } else { 20_000 }))]

    #[test]
    fn noise(
        magic in prop::sample::select(vec![
            &b""[..], b"\xd4\xc3\xb2\xa1", b"\xa1\xb2\xc3\xd4", b"\x4d\x3c\xb2\xa1", b"\xa1\xb2\xcd\x34",
            b"\x0a\x0d\x0d\x0a\x1c\0\0\0\x4d\x3c\x2b\x1a", b"\x1f\x8b\x08\0\0\0\0\0\0\xff", b"\x28\xb5\x2f\xfd",
        ]),
        noise in prop::collection::vec(any::<u8>(), 0..4096),
    ) {
        let read = analyze(&[magic, &noise].concat()[..]);
        let refused = matches!(read, Err(SourceError::NotACapture { .. }));
        prop_assert!(refused || read.is_ok());
    }

    #[test]
    fn bits_that_flipped(
        number in 0_usize..5,
        flips in prop::collection::vec((any::<prop::sample::Index>(), 0..8), 1..30),
    ) {
        let mut capture = captures().swap_remove(number);
        for (at, bit) in flips {
            let at = at.index(capture.len() - 24) + 24;
            capture[at] ^= 1_u8 << bit;
        }
        analyze(&capture[..]).unwrap();
    }
}

#[test]
fn lengths_that_lie() {
    let capture = captures().swap_remove(0);
    for stated in [0x10_0001_u32, 0x7fff_ffff, 0x8000_0000, u32::MAX] {
        let mut lying = capture.clone();
        lying[32..36].copy_from_slice(&stated.to_le_bytes());
        let summary = analyze(&lying[..]).unwrap();
        assert_eq!(summary.packets, 0);
        assert_eq!(
            summary.truncated_at.unwrap().reason,
            CutReason::Length(stated)
        );
    }
    let capture = pcapng(&capture);
    // The block of the first packet is behind the section header and one interface.
    let block = 28 + 20;
    for stated in [0_u32, 3, 8, 13, u32::MAX] {
        let mut lying = capture.clone();
        lying[block + 4..block + 8].copy_from_slice(&stated.to_le_bytes());
        let summary = analyze(&lying[..]).unwrap();
        assert_eq!(summary.packets, 0);
        assert_eq!(
            summary.truncated_at.unwrap().reason,
            CutReason::Length(stated)
        );
    }
    // Longer than any packet, and longer than the file.
    let mut lying = capture;
    lying[block + 4..block + 8].copy_from_slice(&0xffff_fffc_u32.to_le_bytes());
    let summary = analyze(&lying[..]).unwrap();
    assert_eq!((summary.packets, summary.skipped), (0, 1));
    assert_eq!(summary.truncated_at.unwrap().reason, CutReason::Ends);
}

/// A gzip file of so many megabytes of zeros behind these bytes: a member for each of them.
pub(crate) fn bomb(before: &[u8], megabytes: usize) -> Vec<u8> {
    let member = |bytes: &[u8]| {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(bytes).unwrap();
        gzip.finish().unwrap()
    };
    [
        member(before),
        member(&vec![0; 1024 * 1024]).repeat(megabytes),
    ]
    .concat()
}

#[test]
fn zeros_that_are_no_capture_are_not_unpacked() {
    let mut file = &bomb(b"", 1024)[..];
    let whole = file.len();
    assert!(matches!(
        analyze(&mut file),
        Err(SourceError::NotACapture { .. })
    ));
    assert!(file.len() * 2 > whole, "{} of {whole} left", file.len());
}

#[test]
fn a_gzip_file_within_another_is_no_capture() {
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&bomb(&captures()[0], 1)).unwrap();
    let read = analyze(&gzip.finish().unwrap()[..]);
    assert!(matches!(read, Err(SourceError::NotACapture { .. })));
}

#[test]
fn zeros_behind_a_header_are_empty_packets() {
    let header = &captures()[0][..24];
    assert_linear(scaled(1024, 64) / 4, |megabytes| {
        let summary = analyze(&bomb(header, megabytes)[..]).unwrap();
        assert_eq!(summary.packets, megabytes as u64 * 65_536);
        assert_eq!(summary.truncated_at, None);
    });
}
