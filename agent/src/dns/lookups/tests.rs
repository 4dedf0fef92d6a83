use super::super::testing::{Reply as Answer, query};
use super::super::{kind, rcode};
use super::*;

const RESOLVER: ([u8; 4], u16) = ([10, 0, 0, 53], 53);
const OTHER: ([u8; 4], u16) = ([10, 0, 0, 54], 53);

/// A process and its resolvers, with times in milliseconds.
struct Bench {
    lookups: Lookups,
    port: u16,
    resolver: ([u8; 4], u16),
    tcp: bool,
}

impl Bench {
    fn new() -> Self {
        Self {
            lookups: Lookups::new(LookupLimits { lookups: 64 }),
            port: 40_000,
            resolver: RESOLVER,
            tcp: false,
        }
    }

    fn at(ms: u64) -> Timestamp {
        Timestamp::from_nanos(ms * 1_000_000)
    }

    fn with(&self) -> Exchanged<'static> {
        Exchanged {
            asker: Asker::Process(7),
            process: None,
            on_behalf: false,
            local: SocketAddr::from(([10, 0, 0, 1], self.port)),
            resolver: self.resolver.into(),
            tcp: self.tcp,
            lost: 0,
        }
    }

    fn message(&mut self, ms: u64, bytes: &[u8]) -> Option<Learned> {
        let with = self.with();
        let message = Message::parse(bytes, bytes.len() as u32).unwrap();
        self.lookups.message(Self::at(ms), &with, &message)
    }

    fn ask(&mut self, ms: u64, id: u16, name: &str, kind: u16) {
        assert_eq!(self.message(ms, &query(id, name, kind)), None);
    }

    fn answer(&mut self, ms: u64, answer: &Answer) -> Option<Learned> {
        self.message(ms, &answer.bytes())
    }

    fn code(&mut self, ms: u64, id: u16, name: &str, kind: u16, code: u16) {
        let answer = Answer::to(id, name, kind).code(code);
        assert_eq!(self.answer(ms, &answer), None);
    }

    fn address(&mut self, ms: u64, id: u16, name: &str) {
        let answer = Answer::to(id, name, kind::A).address([10, 0, 0, 9].into(), 60);
        assert!(self.answer(ms, &answer).is_some());
    }

    /// Names that failed, up to a time far behind everything, and nothing left.
    fn failed(&mut self) -> Vec<String> {
        let mut failed = Vec::new();
        let mut last = Timestamp::default();
        while let Some(resolution) = self.lookups.poll(Timestamp::MAX) {
            assert!(resolution.decided >= last && !resolution.asked.is_empty());
            last = resolution.decided;
            failed.push(resolution.name.to_string());
        }
        assert_eq!((self.lookups.len(), self.lookups.remembered()), (0, [0; 4]));
        failed
    }
}

#[test]
fn one_family_without_an_address_is_no_failure() {
    let mut bench = Bench::new();
    bench.ask(0, 1, "app.example", kind::A);
    bench.ask(0, 2, "app.example", kind::AAAA);
    bench.code(2, 2, "app.example", kind::AAAA, rcode::NOERROR);
    bench.address(3, 1, "app.example");
    assert_eq!(bench.failed(), [""; 0]);
}

#[test]
fn the_other_family_may_be_asked_after_the_first_answer() {
    let mut bench = Bench::new();
    bench.ask(0, 1, "app.example", kind::AAAA);
    bench.code(2, 1, "app.example", kind::AAAA, rcode::NOERROR);
    bench.ask(3, 2, "app.example", kind::A);
    bench.address(5, 2, "app.example");
    assert_eq!(bench.failed(), [""; 0]);
}

#[test]
fn both_families_failing_is_one_failure() {
    let mut bench = Bench::new();
    bench.ask(0, 1, "gone.example", kind::A);
    bench.ask(0, 2, "gone.example", kind::AAAA);
    bench.code(2, 1, "gone.example", kind::A, rcode::NXDOMAIN);
    bench.code(3, 2, "gone.example", kind::AAAA, rcode::NXDOMAIN);
    assert_eq!(bench.failed(), ["gone.example"]);
}

#[test]
fn each_attempt_of_a_program_that_keeps_its_port_is_one() {
    let mut bench = Bench::new();
    for id in 1..4 {
        let ms = 10 * u64::from(id);
        bench.ask(ms, id, "gone.example", kind::A);
        bench.code(ms + 1, id, "gone.example", kind::A, rcode::SERVFAIL);
    }
    assert_eq!(bench.failed(), ["gone.example"; 3]);
}

#[test]
fn another_resolver_asked_at_once_is_the_same_attempt() {
    for id in [1, 2] {
        let mut bench = Bench::new();
        bench.ask(0, 1, "app.example", kind::A);
        bench.code(1, 1, "app.example", kind::A, rcode::SERVFAIL);
        (bench.resolver, bench.port) = (OTHER, 40_001);
        bench.ask(2, id, "app.example", kind::A);
        bench.address(3, id, "app.example");
        assert_eq!(bench.failed(), [""; 0], "id {id}");
    }
}

#[test]
fn repeats_of_a_query_are_one_attempt() {
    let mut bench = Bench::new();
    for ms in [0, 5000, 10_000] {
        bench.ask(ms, 1, "app.example", kind::A);
    }
    assert_eq!(bench.lookups.poll(Bench::at(15_999)), None);
    let failed = bench.lookups.poll(Bench::at(16_000)).unwrap();
    assert_eq!((failed.asked.len(), failed.asked[0].times), (1, 3));
    assert_eq!(bench.failed(), [""; 0]);

    bench.ask(0, 1, "app.example", kind::A);
    bench.ask(5000, 1, "app.example", kind::A);
    bench.address(5001, 1, "app.example");
    assert_eq!(bench.failed(), [""; 0]);
}

#[test]
fn a_new_id_from_a_kept_port_ends_the_attempt_before() {
    let mut bench = Bench::new();
    bench.ask(0, 1, "app.example", kind::A);
    bench.ask(2000, 2, "app.example", kind::A);
    bench.address(2001, 2, "app.example");
    assert_eq!(bench.failed(), ["app.example"]);
}

#[test]
fn search_domains_that_fail_before_one_answers_are_no_failure() {
    let mut bench = Bench::new();
    for (ms, id, name) in [(0, 1, "app.a.example"), (2, 2, "app.b.example")] {
        bench.ask(ms, id, name, kind::A);
        bench.code(ms + 1, id, name, kind::A, rcode::NXDOMAIN);
    }
    bench.ask(4, 3, "app.example", kind::A);
    bench.address(5, 3, "app.example");
    assert_eq!(bench.failed(), [""; 0]);
}

#[test]
fn a_name_and_its_search_domains_fail_as_one() {
    let names = ["app", "app.a.example", "app.b.example"];
    for order in [[0, 1, 2], [1, 2, 0]] {
        let mut bench = Bench::new();
        for (step, index) in order.into_iter().enumerate() {
            let (ms, id) = (3 * step as u64, step as u16);
            bench.ask(ms, id, names[index], kind::A);
            bench.code(ms + 1, id, names[index], kind::A, rcode::NXDOMAIN);
        }
        assert_eq!(bench.failed(), ["app"], "{order:?}");
    }
}

#[test]
fn a_slow_search_domain_is_waited_for() {
    let mut bench = Bench::new();
    bench.ask(0, 1, "app.a.example", kind::A);
    bench.code(1, 1, "app.a.example", kind::A, rcode::NXDOMAIN);
    bench.ask(2, 2, "app.b.example", kind::A);
    assert_eq!(bench.lookups.poll(Bench::at(4000)), None);
    bench.code(4001, 2, "app.b.example", kind::A, rcode::NXDOMAIN);
    bench.ask(4002, 3, "app", kind::A);
    bench.address(4003, 3, "app");
    assert_eq!(bench.failed(), [""; 0]);
}

#[test]
fn a_slow_search_domain_in_the_middle_is_waited_for() {
    let mut bench = Bench::new();
    bench.ask(0, 1, "app.a.example", kind::A);
    bench.code(1, 1, "app.a.example", kind::A, rcode::NXDOMAIN);
    bench.ask(2, 2, "app.b.example", kind::A);
    assert_eq!(bench.lookups.poll(Bench::at(4000)), None);
    bench.code(4001, 2, "app.b.example", kind::A, rcode::NXDOMAIN);
    bench.ask(4002, 3, "app.c.example", kind::A);
    bench.address(4003, 3, "app.c.example");
    assert_eq!(bench.failed(), [""; 0]);
}

#[test]
fn names_that_only_begin_alike_fail_by_themselves() {
    let mut bench = Bench::new();
    for (ms, id, name) in [(0, 1, "api.a.example"), (900, 2, "api.b.example")] {
        bench.ask(ms, id, name, kind::A);
        bench.code(ms + 1, id, name, kind::A, rcode::NXDOMAIN);
    }
    assert_eq!(bench.failed(), ["api.a.example", "api.b.example"]);
}

#[test]
fn what_does_not_fit_is_asked_over_tcp() {
    let mut bench = Bench::new();
    bench.ask(0, 1, "big.example", kind::A);
    bench.answer(1, &Answer::to(1, "big.example", kind::A).truncated());
    (bench.tcp, bench.port) = (true, 50_000);
    bench.ask(2, 1, "big.example", kind::A);
    bench.address(3, 1, "big.example");
    assert_eq!(bench.failed(), [""; 0]);
}

#[test]
fn truncated_without_tcp_is_a_failure() {
    let mut bench = Bench::new();
    bench.ask(0, 1, "big.example", kind::A);
    bench.answer(1, &Answer::to(1, "big.example", kind::A).truncated());
    assert_eq!(bench.failed(), ["big.example"]);
}

#[test]
fn what_was_missed_of_a_stream_may_have_been_the_answer() {
    // The answer was missed, or the query with it.
    for asked in [true, false] {
        let mut bench = Bench::new();
        bench.ask(0, 1, "big.example", kind::A);
        bench.answer(1, &Answer::to(1, "big.example", kind::A).truncated());
        (bench.tcp, bench.port) = (true, 50_000);
        if asked {
            bench.ask(2, 1, "big.example", kind::A);
        }
        let with = bench.with();
        bench.lookups.missed(Bench::at(3), &with);
        assert_eq!(bench.failed(), [""; 0]);
    }
    // Another resolver's stream says nothing of it.
    let mut bench = Bench::new();
    bench.ask(0, 1, "big.example", kind::A);
    bench.answer(1, &Answer::to(1, "big.example", kind::A).truncated());
    (bench.tcp, bench.port, bench.resolver) = (true, 50_000, OTHER);
    let with = bench.with();
    bench.lookups.missed(Bench::at(3), &with);
    assert_eq!(bench.failed(), ["big.example"]);
}

#[test]
fn answers_that_nobody_takes_are_remembered() {
    let mut bench = Bench::new();
    bench.ask(0, 1, "app.example", kind::A);
    bench.code(1, 9, "app.example", kind::A, rcode::NOERROR);
    bench.code(2, 1, "other.example", kind::A, rcode::NOERROR);
    let failed = bench.lookups.poll(Timestamp::MAX).unwrap();
    let ignored = failed.asked[0].ignored.as_ref().unwrap();
    assert_eq!(ignored.outcome, Outcome::Unusable(Unusable::WrongId));
    assert_eq!(failed.asked[0].reply, None);
    assert_eq!(bench.failed(), [""; 0]);

    bench.ask(0, 1, "app.example", kind::A);
    bench.code(2, 1, "other.example", kind::A, rcode::NOERROR);
    bench.address(3, 1, "app.example");
    assert_eq!(bench.failed(), [""; 0]);
    assert_eq!(bench.lookups.unmatched(), 0);
}

#[test]
fn an_alias_is_followed() {
    let mut bench = Bench::new();
    bench.ask(0, 1, "www.example", kind::A);
    bench.answer(
        1,
        &Answer::to(1, "www.example", kind::A).alias("lb.other", 60),
    );
    bench.ask(2, 2, "lb.other", kind::A);
    let answer = Answer::to(2, "lb.other", kind::A).address([10, 0, 0, 9].into(), 60);
    let learned = bench.answer(3, &answer).unwrap();
    assert_eq!(learned.name.as_str(), "www.example");
    assert_eq!(bench.failed(), [""; 0]);

    bench.ask(0, 1, "www.example", kind::A);
    bench.answer(
        1,
        &Answer::to(1, "www.example", kind::A).alias("lb.other", 60),
    );
    bench.ask(2, 2, "lb.other", kind::A);
    bench.code(3, 2, "lb.other", kind::A, rcode::NXDOMAIN);
    assert_eq!(bench.failed(), ["www.example"]);
}

#[test]
fn a_name_whose_address_is_used_did_not_fail() {
    let mut bench = Bench::new();
    bench.ask(0, 1, "app.example", kind::A);
    bench.address(1, 1, "app.example");
    bench.ask(2000, 2, "app.example", kind::A);
    bench.code(2001, 2, "app.example", kind::A, rcode::NXDOMAIN);
    let name = Name::read(b"\x03app\x07example\x00", 0).unwrap().0;
    bench.lookups.used(Asker::Process(7), &name);
    assert_eq!(bench.failed(), [""; 0]);
}

#[test]
fn a_file_that_ends_leaves_open_what_is_open() {
    let mut bench = Bench::new();
    bench.ask(0, 1, "slow.example", kind::A);
    bench.ask(0, 2, "gone.example", kind::A);
    bench.code(1, 2, "gone.example", kind::A, rcode::NXDOMAIN);
    let failed = bench.lookups.finish(Bench::at(10));
    assert_eq!(failed.len(), 1);
    assert_eq!(failed[0].name.as_str(), "gone.example");
    assert_eq!(bench.failed(), [""; 0]);
}

#[test]
fn the_table_is_bounded_and_says_what_it_forgot() {
    let mut bench = Bench::new();
    for id in 0..200 {
        bench.ask(u64::from(id), id, &format!("n{id}.example"), kind::A);
    }
    assert_eq!((bench.lookups.len(), bench.lookups.evicted()), (64, 136));
    for id in 200..300 {
        bench.ask(300, id, &format!("same.n{id}"), kind::A);
    }
    let kept = bench.lookups.remembered();
    assert_eq!((bench.lookups.len(), kept), (64, [64, 64, 0, 64]));
    assert_eq!(bench.failed().len(), 64);
}

#[test]
fn resolvers_among_themselves_and_other_records_are_left_alone() {
    let mut bench = Bench::new();
    let mut iterative = query(1, "app.example", kind::A);
    iterative[2] = 0;
    bench.message(0, &iterative);
    bench.ask(0, 2, "app.example", 15);
    bench.code(1, 2, "app.example", 15, rcode::NXDOMAIN);
    assert!(bench.lookups.is_empty());
    assert_eq!(bench.lookups.unmatched(), 0);
}

#[test]
fn what_a_resolver_of_the_host_waits_for_is_told_from_what_it_was_answered() {
    let mut bench = Bench::new();
    let name = Name::read(b"\x03app\x07example\x00", 0).unwrap().0;
    let on_behalf = Exchanged {
        asker: Asker::Process(8),
        on_behalf: true,
        ..bench.with()
    };
    let ask = |bench: &mut Bench, ms, with: &Exchanged<'_>| {
        let bytes = query(1, "app.example", kind::A);
        let message = Message::parse(&bytes, bytes.len() as u32).unwrap();
        bench.lookups.message(Bench::at(ms), with, &message)
    };
    // The gateway's own query is not one of its resolver.
    bench.ask(0, 1, "app.example", kind::A);
    assert_eq!(bench.lookups.waiting_on_behalf(&name, Bench::at(9)), None);
    assert_eq!(ask(&mut bench, 1, &on_behalf), None);
    let waiting = bench.lookups.waiting_on_behalf(&name, Bench::at(9));
    assert_eq!(waiting.unwrap().1.first, Bench::at(1));
    assert_eq!(bench.lookups.waiting_on_behalf(&name, Bench::at(0)), None);
    let bytes = Answer::to(1, "app.example", kind::A).code(rcode::SERVFAIL);
    let bytes = bytes.bytes();
    let message = Message::parse(&bytes, bytes.len() as u32).unwrap();
    bench.lookups.message(Bench::at(2), &on_behalf, &message);
    assert_eq!(bench.lookups.waiting_on_behalf(&name, Bench::at(9)), None);
}
