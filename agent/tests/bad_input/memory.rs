//! The peak memory of `hopscope analyze` while hostile captures come through a pipe.

use std::io::{Read as _, Write};
use std::net::Ipv4Addr;
use std::process::{Command, Stdio};

use crate::feed::{GET, SEGMENT};
use crate::files::bomb;
use crate::scaled;
use crate::tls::client_hello;

const MIB: usize = 1024 * 1024;

/// The peak resident memory of an analysis when it has read what `write` gives it.
fn peak(write: impl FnOnce(&mut dyn Write)) -> usize {
    let mut child = Command::new(env!("CARGO_BIN_EXE_hopscope"))
        .args(["analyze", "-", "--limit", "1"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = std::io::BufWriter::with_capacity(64 * 1024, child.stdin.take().unwrap());
    write(&mut stdin);
    // All but what fits into the pipe was read by now.
    stdin.flush().unwrap();
    let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
    drop(stdin);
    let mut out = String::new();
    child
        .stdout
        .take()
        .unwrap()
        .read_to_string(&mut out)
        .unwrap();
    assert!(child.wait().unwrap().success());
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kilobytes = peak.unwrap().trim().trim_end_matches(" kB");
    kilobytes.parse::<usize>().unwrap() * 1024
}

fn header(out: &mut dyn Write) {
    out.write_all(b"\xd4\xc3\xb2\xa1\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\x04\0\x65\0\0\0")
        .unwrap();
}

/// A packet of one connection: which client, whether from the upstream, flags, sequence number.
fn packet(out: &mut dyn Write, client: u32, down: bool, flags: u8, seq: u32, payload: &[u8]) {
    let length = u16::try_from(40 + payload.len()).unwrap();
    let wire = u32::from(length).to_le_bytes();
    let ends = [
        (Ipv4Addr::from_bits(0x0b00_0000 + client), 40_000_u16),
        (Ipv4Addr::new(10, 0, 0, 2), 80),
    ];
    let ((src, src_port), (dst, dst_port)) = if down {
        (ends[1], ends[0])
    } else {
        (ends[0], ends[1])
    };
    let packet = [
        &[1, 0, 0, 0, 0, 0, 0, 0][..],
        &wire,
        &wire,
        &[0x45, 0],
        &length.to_be_bytes(),
        &[0, 1, 0x40, 0, 64, 6, 0, 0],
        &src.octets(),
        &dst.octets(),
        &src_port.to_be_bytes(),
        &dst_port.to_be_bytes(),
        &seq.to_be_bytes(),
        &[0, 0, 0, 1, 0x50, flags, 4, 0, 0, 0, 0, 0],
        payload,
    ];
    out.write_all(&packet.concat()).unwrap();
}

fn opened(out: &mut dyn Write, client: u32) {
    packet(out, client, false, 0x02, 0, b"");
    packet(out, client, true, 0x12, 0, b"");
    packet(out, client, false, 0x18, 1, GET);
}

#[track_caller]
fn assert_peak(bound: usize, write: impl FnOnce(&mut dyn Write)) {
    let peak = peak(write);
    assert!(peak < bound, "{} MiB", peak / MIB);
}

#[test]
fn very_many_syns() {
    // The bound of the tables, of which a SYN alone fills a quarter.
    assert_peak(300 * MIB, |out| {
        header(out);
        for client in 0..u32::try_from(scaled(1_000_000, 5)).unwrap() {
            packet(out, client, false, 0x02, 0, b"");
        }
    });
}

#[test]
fn a_header_of_ten_megabytes_both_ways() {
    assert_peak(64 * MIB, |out| {
        header(out);
        opened(out, 0);
        packet(out, 0, true, 0x18, 1, b"HTTP/1.1 200 OK\r\nX: ");
        packet(out, 1, false, 0x18, 1, b"GET / HTTP/1.1\r\nX: ");
        for index in 0..u32::try_from(10_000_000 / SEGMENT).unwrap() {
            let at = 21 + index * 1460;
            packet(out, 0, true, 0x18, at, &[b'x'; SEGMENT]);
            packet(out, 1, false, 0x18, at, &[b'x'; SEGMENT]);
        }
    });
}

#[test]
fn holes_on_very_many_connections() {
    // What waits behind holes is capped at 64 MiB over all hops.
    assert_peak(300 * MIB, |out| {
        header(out);
        for client in 0..u32::try_from(scaled(20_000, 10)).unwrap() {
            opened(out, client);
            for index in 0..40 {
                packet(
                    out,
                    client,
                    true,
                    0x10,
                    1000 + 2000 * index,
                    &[b'x'; SEGMENT],
                );
            }
        }
    });
}

#[test]
fn chains_of_certificates_that_never_end() {
    // They count as heads do.
    assert_peak(300 * MIB, |out| {
        header(out);
        for client in 0..u32::try_from(scaled(20_000, 10)).unwrap() {
            packet(out, client, false, 0x02, 0, b"");
            packet(out, client, true, 0x12, 0, b"");
            packet(out, client, false, 0x18, 1, &client_hello());
            // A Certificate message of 16 MiB less one.
            let begin = [22, 3, 3, 0x40, 0, 11, 0xff, 0xff, 0xff];
            packet(out, client, true, 0x18, 1, &begin);
            for index in 0..11 {
                packet(out, client, true, 0x10, 10 + 1460 * index, &[0x30; SEGMENT]);
            }
        }
    });
}

#[test]
fn zeros_that_were_packed() {
    assert_peak(64 * MIB, |out| {
        let mut head = Vec::new();
        header(&mut head);
        out.write_all(&bomb(&head, scaled(1024, 64))).unwrap();
    });
}
