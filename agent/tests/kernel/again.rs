//! The programs that do what the kernel leaves out, and do nothing where it left nothing out.

use std::net::{TcpListener, TcpStream};

use aya::maps::{MapData, PerCpuArray, PerCpuValues};
use aya::programs::BtfTracePoint;
use aya::util::nr_cpus;
use aya::{Btf, Ebpf, EbpfLoader};
use hopscope::live::programs;
use hopscope_ebpf::Counter;
use rustix::thread::{CpuSet, sched_setaffinity};

/// The place of `state` in the map.
const STATE: u32 = 0;

struct Bench {
    ebpf: Ebpf,
    working: PerCpuArray<MapData, u32>,
    counts: PerCpuArray<MapData, u64>,
}

impl Bench {
    /// Keeps the thread on one processor.
    fn new() -> Self {
        let mut cpus = CpuSet::new();
        cpus.set(0);
        sched_setaffinity(None, &cpus).unwrap();
        let mut ebpf = EbpfLoader::new()
            .map_max_entries("EVENTS", 1 << 20)
            .load(programs())
            .unwrap();
        let working = ebpf.take_map("WORKING").unwrap().try_into().unwrap();
        let counts = ebpf.take_map("COUNTERS").unwrap().try_into().unwrap();
        Self {
            ebpf,
            working,
            counts,
        }
    }

    fn attach(&mut self, name: &str) {
        let btf = Btf::from_sys_fs().unwrap();
        let program: &mut BtfTracePoint = self.ebpf.program_mut(name).unwrap().try_into().unwrap();
        program.load("inet_sock_set_state", &btf).unwrap();
        program.attach().unwrap();
    }

    /// Has it look as if the first program were at work on every processor.
    fn interrupt(&mut self) {
        let all = PerCpuValues::try_from(vec![1; nr_cpus().unwrap()]).unwrap();
        self.working.set(STATE, all, 0).unwrap();
    }

    /// What was counted on the thread's processor while it opened a connection: runs that were made up for, and
    /// connections that were looked at, as no process counts as a gateway here. Others of the host may count too.
    fn opened(&self) -> (u64, u64) {
        let before = self.counted();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        drop(TcpStream::connect(listener.local_addr().unwrap()).unwrap());
        let after = self.counted();
        (after.0 - before.0, after.1 - before.1)
    }

    fn counted(&self) -> (u64, u64) {
        let count = |counter: Counter| self.counts.get(&(counter as u32), 0).unwrap()[0];
        (count(Counter::RunsRepeated), count(Counter::Filtered))
    }
}

#[test]
fn the_second_program_works_only_inside_the_first() {
    let mut bench = Bench::new();
    bench.attach("state_again");
    assert_eq!(bench.opened(), (0, 0));
    bench.interrupt();
    let (repeated, looked_at) = bench.opened();
    assert!(repeated > 1 && looked_at > 0, "{repeated}, {looked_at}");
}

#[test]
fn what_the_first_program_did_is_not_done_again() {
    let mut bench = Bench::new();
    bench.attach("state");
    bench.attach("state_again");
    bench.interrupt();
    // Its run ends with the mark taken away.
    let (repeated, looked_at) = bench.opened();
    assert_eq!(repeated, 0);
    assert!(looked_at > 0);
}
