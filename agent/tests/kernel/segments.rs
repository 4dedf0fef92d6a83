//! The segment programs, run by the kernel on packets that were made up.

use std::io;
use std::net::{TcpListener, UdpSocket};
use std::os::fd::AsFd as _;

use aya::maps::{Array, HashMap, MapData, PerCpuArray, RingBuf};
use aya::programs::{CgroupSkb, TestRun as _, TestRunOptions};
use aya::{Ebpf, EbpfLoader};
use hopscope::live::programs;
use hopscope_ebpf::{Counter, HEADER_ROOM, SEGMENT_TIERS, SegmentHeader};
use rustix::net::sockopt::socket_cookie;
use rustix::thread::{CpuSet, sched_setaffinity};

/// The kernel cuts an Ethernet header off a packet that a test brings.
const ETHERNET: usize = 14;

/// Cookies that a test takes for its own. The kernel gives each test packet a new socket, whose cookie
/// is the processor's next one unless another socket takes that first.
const COOKIES: u64 = 512;

struct Bench {
    ebpf: Ebpf,
    ring: RingBuf<MapData>,
    hops: HashMap<MapData, u64, [u32; 3]>,
    counts: PerCpuArray<MapData, u64>,
}

impl Bench {
    fn new(snap_len: u32) -> Self {
        let mut ebpf = EbpfLoader::new()
            .override_global("SNAP_LEN", &snap_len, true)
            .map_max_entries("EVENTS", 1 << 20)
            .load(programs())
            .unwrap();
        for name in ["segment_egress", "segment_ingress"] {
            let program: &mut CgroupSkb = ebpf.program_mut(name).unwrap().try_into().unwrap();
            program.load().unwrap();
        }
        let ring = ebpf.take_map("EVENTS").unwrap().try_into().unwrap();
        let mut ports: Array<MapData, u8> = ebpf.take_map("PORTS").unwrap().try_into().unwrap();
        // The kernel's own socket leads nowhere.
        ports.set(0, 1, 0).unwrap();
        let hops = ebpf.take_map("HOPS").unwrap().try_into().unwrap();
        let counts = ebpf.take_map("COUNTERS").unwrap().try_into().unwrap();
        Self {
            ebpf,
            ring,
            hops,
            counts,
        }
    }

    /// Tracks the cookies that come next on this processor, which the thread stays on from now on.
    fn track(&mut self) {
        let mut cpus = CpuSet::new();
        cpus.set(0);
        sched_setaffinity(None, &cpus).unwrap();
        let probe = UdpSocket::bind("127.0.0.1:0").unwrap();
        let last = socket_cookie(probe.as_fd()).unwrap();
        for cookie in last..last + COOKIES {
            self.hops.insert(cookie, [1, 0, 0], 0).unwrap();
        }
    }

    /// Runs a program on a packet of `len` bytes from the IP header on.
    fn run(&self, name: &str, len: usize) -> u32 {
        let program: &CgroupSkb = self.ebpf.program(name).unwrap().try_into().unwrap();
        let packet = packet(len);
        let mut options = TestRunOptions::new();
        options.data_in = Some(&packet);
        program.test_run(options).unwrap().return_value
    }

    /// Runs a program on a packet of a tracked socket, and gives back its record.
    fn run_tracked(&mut self, name: &str, len: usize) -> Vec<u8> {
        for _ in 0..20 {
            self.track();
            assert_eq!(self.run(name, len), 1);
            if let Some(record) = self.ring.next() {
                return record.to_vec();
            }
        }
        panic!("none of 20 packets had a cookie of ours");
    }

    fn count(&self, counter: Counter) -> u64 {
        self.counts.get(&(counter as u32), 0).unwrap().iter().sum()
    }
}

/// An Ethernet frame with `len` bytes from the IP header on, numbered from 0x45.
fn packet(len: usize) -> Vec<u8> {
    let mut out = vec![0; ETHERNET];
    out[12] = 8;
    out.extend((0..len).map(|at| 0x45_u8.wrapping_add(at.to_le_bytes()[0])));
    out
}

/// A number of the header.
fn header(record: &[u8], at: usize) -> usize {
    let word = u32::from_ne_bytes(record[at..at + 4].try_into().unwrap());
    usize::try_from(word).unwrap()
}

#[test]
fn an_untracked_packet_passes_without_a_record() {
    let mut bench = Bench::new(2048);
    for name in ["segment_egress", "segment_ingress"] {
        assert_eq!(bench.run(name, 60), 1);
    }
    assert!(bench.ring.next().is_none());
    assert_eq!(bench.count(Counter::Records), 0);
}

#[test]
fn a_tracked_packet_passes_and_comes_up_whole() {
    let mut bench = Bench::new(2048);
    let header_len = size_of::<SegmentHeader>();
    for (name, egress) in [("segment_egress", 1), ("segment_ingress", 0)] {
        for len in [40, 128, 129, 512, 513, 1500, 2176] {
            let record = bench.run_tracked(name, len);
            let end = header_len + len;
            assert_eq!(
                header(&record, std::mem::offset_of!(SegmentHeader, wire_len)),
                len
            );
            assert_eq!(
                header(&record, std::mem::offset_of!(SegmentHeader, captured)),
                len
            );
            assert_eq!(
                header(&record, std::mem::offset_of!(SegmentHeader, egress)),
                egress
            );
            assert_eq!(
                header(&record, std::mem::offset_of!(hopscope_ebpf::Header, len)),
                end
            );
            assert_eq!(
                record[header_len..end],
                packet(len)[ETHERNET..],
                "{len} bytes"
            );
            // The smallest room that holds it.
            let room = record.len() - header_len;
            let tier = SEGMENT_TIERS
                .iter()
                .map(|tier| usize::try_from(*tier).unwrap());
            assert_eq!(
                Some(room),
                tier.into_iter().find(|tier| *tier >= len),
                "{len} bytes"
            );
        }
    }
    assert_eq!(bench.count(Counter::Truncated), 0);
}

#[test]
fn a_long_packet_is_cut_and_counted() {
    let mut bench = Bench::new(100);
    let record = bench.run_tracked("segment_egress", 1500);
    let kept = usize::try_from(100 + HEADER_ROOM).unwrap();
    assert_eq!(
        header(&record, std::mem::offset_of!(SegmentHeader, wire_len)),
        1500
    );
    assert_eq!(
        header(&record, std::mem::offset_of!(SegmentHeader, captured)),
        kept
    );
    assert_eq!(bench.count(Counter::Truncated), 1);
}

#[test]
fn a_full_ring_is_counted_and_stops_no_packet() {
    let mut bench = Bench::new(2048);
    let len = 2000;
    while bench.count(Counter::RingFull) == 0 {
        bench.track();
        assert_eq!(bench.run("segment_ingress", len), 1);
    }
    let sent = bench.count(Counter::Records);
    let mut taken = 0;
    while bench.ring.next().is_some() {
        taken += 1;
    }
    assert_eq!(sent, taken);
}

#[test]
fn a_socket_of_this_test_has_a_cookie() -> io::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    assert_ne!(socket_cookie(listener.as_fd())?, 0);
    Ok(())
}
