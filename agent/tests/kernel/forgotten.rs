//! Tables of the kernel programs that are full or forget: what is not known must show.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{ChildStdin, ChildStdout, Command, Stdio};
use std::thread;

use aya::maps::{HashMap, Map, MapData, loaded_maps};
use aya::{Pod, maps::MapError};
use hopscope::live::LiveConfig;
use hopscope::model::{Direction, HopId, Plaintext};

use crate::library::{Bed, Running, hop_to};
use crate::support::{DEADLINE, Gateway, Seen, Watch, now};

/// Entries of the table of `SSL` objects.
const SESSIONS: u64 = 65_536;
/// Bytes of an entry of that table, and of the table of calls.
const ENTRY: usize = 40;
/// The same of the table of `connect()` calls.
const CONNECTS: u64 = 16_384;
const CONNECT: usize = 48;
const REQUEST: &str = "GET /spoken HTTP/1.1\r\nHost: a\r\n\r\n";

/// Every table with this name: each source has its own, and other tests have sources too.
pub(super) fn tables<K: Pod, V: Pod>(name: &str) -> Vec<HashMap<MapData, K, V>> {
    let open = |id| -> Result<HashMap<MapData, K, V>, MapError> {
        let data = MapData::from_id(id)?;
        let map = if name == "CALLS" {
            Map::LruHashMap(data)
        } else {
            Map::HashMap(data)
        };
        map.try_into()
    };
    loaded_maps()
        .filter_map(Result::ok)
        .filter(|info| info.name_as_str() == Some(name))
        // Those of a test that ended meanwhile are gone.
        .filter_map(|info| open(info.id()).ok())
        .collect()
}

/// Has the kernel forget the call that the process is in, once it is in one.
fn forget_call(pid: u32) {
    let start = now();
    let of_process = |call: &[u8; ENTRY]| call.starts_with(&u64::from(pid).to_ne_bytes());
    loop {
        for mut table in tables::<u64, [u8; ENTRY]>("CALLS") {
            let calls: Vec<_> = table.iter().filter_map(Result::ok).collect();
            if let Some((task, _)) = calls.iter().find(|(_, call)| of_process(call)) {
                table.remove(task).unwrap();
                return;
            }
        }
        assert!(start.elapsed() < DEADLINE, "no call is under way");
        thread::yield_now();
    }
}

/// How many sessions of a process the kernel knows.
fn sessions(pid: u32) -> usize {
    let tables = tables::<[u64; 2], [u8; ENTRY]>("SESSIONS");
    let keys = tables.iter().flat_map(|table| table.keys());
    keys.filter(|key| matches!(key, Ok([process, _]) if *process == u64::from(pid)))
        .count()
}

/// A server that sends what it is given.
pub(super) struct Server {
    pub(super) port: u16,
    text: ChildStdin,
    _process: Running,
}

impl Server {
    pub(super) fn start(bed: &Bed) -> Self {
        let pem = bed.path("good.pem");
        let mut process = Running(
            Command::new("openssl")
                .args(["s_server", "-accept", "127.0.0.1:0", "-cert"])
                .arg(&pem)
                .arg("-key")
                .arg(&pem)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::null())
                .spawn()
                .unwrap(),
        );
        let text = process.0.stdin.take().unwrap();
        let mut lines = BufReader::new(process.0.stdout.take().unwrap()).lines();
        let line = lines
            .find_map(|line| line.unwrap().strip_prefix("ACCEPT ").map(ToOwned::to_owned))
            .unwrap();
        let port = line.rsplit(':').next().unwrap().trim().parse().unwrap();
        thread::spawn(move || lines.for_each(drop));
        Self {
            port,
            text,
            _process: process,
        }
    }

    fn send(&mut self, text: &str) {
        self.text.write_all(text.as_bytes()).unwrap();
    }
}

/// The program of `speaker.c`.
pub(super) struct Speaker {
    commands: ChildStdin,
    answers: BufReader<ChildStdout>,
    process: Running,
}

impl Speaker {
    /// Starts it, and a watch that has found its library.
    pub(super) fn start(bed: &Bed, name: &str) -> (Self, Watch) {
        bed.compile("speaker.c", name);
        let mut process = Running(
            Command::new(bed.path(name))
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap(),
        );
        let speaker = Self {
            commands: process.0.stdin.take().unwrap(),
            answers: BufReader::new(process.0.stdout.take().unwrap()),
            process,
        };
        let mut watch = Watch::start(&LiveConfig {
            gateways: vec![name.to_owned()],
            tls_plaintext: true,
            ..LiveConfig::default()
        });
        watch.until("the program's OpenSSL", |watch| {
            let rows = watch.source.probes();
            rows.iter()
                .any(|row| row.name == "tls_library" && row.attached && row.reason.contains(name))
        });
        (speaker, watch)
    }

    fn begin(&mut self, command: &str) {
        writeln!(self.commands, "{command}").unwrap();
    }

    fn end(&mut self) -> i32 {
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        line.trim_end().parse().unwrap()
    }

    fn run(&mut self, command: &str) -> i32 {
        self.begin(command);
        self.end()
    }

    pub(super) fn connect(&mut self, server: &Server) {
        assert_eq!(self.run(&format!("c {}", server.port)), 1);
    }

    /// Sends a request.
    pub(super) fn write(&mut self) {
        assert_eq!(usize::try_from(self.run("w")), Ok(REQUEST.len()));
    }

    /// Reads what the server sends.
    pub(super) fn read(&mut self, server: &mut Server, text: &str) {
        server.send(text);
        assert_eq!(usize::try_from(self.run("r")), Ok(text.len()));
    }
}

/// A client of the speaker.
struct Client {
    text: ChildStdin,
    _process: Running,
}

impl Client {
    /// Connects, which the speaker accepts.
    fn connect(speaker: &mut Speaker, port: i32) -> Self {
        let mut process = Running(
            Command::new("openssl")
                .args(["s_client", "-quiet", "-connect"])
                .arg(format!("127.0.0.1:{port}"))
                .stdin(Stdio::piped())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap(),
        );
        assert_eq!(speaker.run("a"), 1);
        let text = process.0.stdin.take().unwrap();
        Self {
            text,
            _process: process,
        }
    }

    fn ask(&mut self) {
        self.text.write_all(REQUEST.as_bytes()).unwrap();
    }
}

/// How many answers to clients were told.
fn answers(watch: &Watch) -> usize {
    let answers = watch.seen.iter();
    answers
        .filter(|(_, seen)| matches!(seen, Seen::Answer { .. }))
        .count()
}

/// Starts a speaker that listens; its port.
fn listen(bed: &Bed, name: &str) -> (Speaker, Watch, i32) {
    let (mut speaker, watch) = Speaker::start(bed, name);
    let port = speaker.run(&format!("l {}", bed.path("good.pem").display()));
    assert!(port > 0);
    (speaker, watch, port)
}

fn has_unreadable(watch: &Watch, port: i32) -> bool {
    watch.has(|seen| matches!(seen, Seen::Unreadable(at) if i32::from(at.port()) == port))
}

#[test]
fn a_request_whose_reading_is_forgotten_shows() {
    let bed = Bed::new();
    let name = format!("fr{}", std::process::id());
    let (mut speaker, mut watch, port) = listen(&bed, &name);
    let mut client = Client::connect(&mut speaker, port);
    client.ask();
    assert_eq!(usize::try_from(speaker.run("r")), Ok(REQUEST.len()));
    assert!(speaker.run("e") > 0);
    watch.until("answer", |watch| answers(watch) == 1);
    assert_eq!(watch.counter("kernel_text_missed"), 0);
    speaker.begin("r");
    forget_call(speaker.process.0.id());
    client.ask();
    assert_eq!(usize::try_from(speaker.end()), Ok(REQUEST.len()));
    assert!(!has_unreadable(&watch, port), "{}", watch.trace());
    assert!(speaker.run("e") > 0);
    watch.settle();
    assert_eq!(answers(&watch), 1, "{}", watch.trace());
    assert_eq!(watch.counter("kernel_text_missed"), 1);
    assert!(has_unreadable(&watch, port), "{}", watch.trace());
}

#[test]
fn a_full_table_forgets_no_client() {
    let bed = Bed::new();
    let name = format!("fc{}", std::process::id());
    let (mut speaker, mut watch, port) = listen(&bed, &name);
    let mut client = Client::connect(&mut speaker, port);
    let own = u64::from(speaker.process.0.id());
    let of_speaker = |key: &Result<[u64; 2], MapError>| matches!(key, Ok([pid, _]) if *pid == own);
    for mut table in tables::<[u64; 2], u64>("SERVERS") {
        if table.keys().any(|key| of_speaker(&key)) {
            let other = u64::from(std::process::id());
            let full = (1..=SESSIONS).any(|address| table.insert([other, address], 0, 0).is_err());
            assert!(full);
        }
    }
    client.ask();
    assert_eq!(usize::try_from(speaker.run("r")), Ok(REQUEST.len()));
    assert!(speaker.run("e") > 0);
    watch.until("answer", |watch| answers(watch) == 1);
    assert_eq!(watch.counter("kernel_library_map_full"), 0);
    assert!(!has_unreadable(&watch, port), "{}", watch.trace());
    let _second = Client::connect(&mut speaker, port);
    assert!(watch.counter("kernel_library_map_full") > 0);
    watch.until("what cannot be read", |watch| has_unreadable(watch, port));
}

/// What was told of a direction inside a hop: offsets and texts.
fn texts(watch: &Watch, wanted: HopId, towards: Direction) -> Vec<(u64, String)> {
    let texts = watch.seen.iter().filter_map(|(hop, seen)| match seen {
        Seen::Text {
            direction,
            offset,
            payload,
            ..
        } if *direction == towards && *hop == Some(wanted) => {
            Some((*offset, String::from_utf8_lossy(payload).into_owned()))
        }
        _ => None,
    });
    texts.collect()
}

fn owned(texts: &[(u64, &str)]) -> Vec<(u64, String)> {
    let owned = |(offset, text): &(u64, &str)| (*offset, (*text).to_owned());
    texts.iter().map(owned).collect()
}

#[test]
fn a_call_that_is_forgotten_shows() {
    let bed = Bed::new();
    let mut server = Server::start(&bed);
    let (mut speaker, mut watch) = Speaker::start(&bed, &format!("fg{}", server.port));
    let pid = speaker.process.0.id();
    speaker.connect(&server);
    speaker.write();
    speaker.read(&mut server, "HTTP/1.1 200 OK\n");
    speaker.begin("r");
    forget_call(pid);
    server.send("forgotten\n");
    assert_eq!(speaker.end(), 10);
    // Whatever is called next tells, before its own text.
    speaker.write();
    speaker.read(&mut server, "known again\n");
    watch.settle();

    let hop = hop_to(&watch, 0, server.port);
    let gap = 16 + Plaintext::UNKNOWN;
    assert_eq!(
        texts(&watch, hop, Direction::FromUpstream),
        owned(&[(0, "HTTP/1.1 200 OK\n"), (gap, ""), (gap, "known again\n")]),
        "{}",
        watch.trace()
    );
    let asked = REQUEST.len() as u64;
    assert_eq!(
        texts(&watch, hop, Direction::ToUpstream),
        owned(&[(0, REQUEST), (asked, REQUEST)])
    );
    let told = watch.position(
        "word of the gap",
        |seen| matches!(seen, Seen::Text { len: 0, offset, .. } if *offset == gap),
    );
    let next = watch.position(
        "the next request",
        |seen| matches!(seen, Seen::Text { offset, direction: Direction::ToUpstream, .. } if *offset == asked),
    );
    assert!(told < next, "{}", watch.trace());
    assert_eq!(watch.counter("kernel_text_missed"), 1);
    watch.assert_no_loss();
}

#[test]
fn a_full_table_forgets_nobody() {
    let bed = Bed::new();
    let [mut first, mut second] = [Server::start(&bed), Server::start(&bed)];
    let (mut speaker, mut watch) = Speaker::start(&bed, &format!("fl{}", first.port));
    let pid = speaker.process.0.id();
    speaker.connect(&first);
    speaker.read(&mut first, "before\n");
    // Objects of a process that runs, as many as there is room for.
    for mut table in tables::<[u64; 2], [u8; ENTRY]>("SESSIONS") {
        let own = table
            .keys()
            .any(|key| matches!(key, Ok([process, _]) if process == u64::from(pid)));
        if own {
            let other = u64::from(std::process::id());
            let full = (1..=SESSIONS)
                .any(|address| table.insert([other, address], [0; ENTRY], 0).is_err());
            assert!(full);
        }
    }
    speaker.read(&mut first, "behind\n");
    assert_eq!(watch.counter("kernel_library_map_full"), 0);
    speaker.connect(&second);
    speaker.read(&mut second, "not heard\n");
    assert!(watch.counter("kernel_library_map_full") > 0);
    watch.settle();
    let hop = hop_to(&watch, 0, first.port);
    assert_eq!(
        texts(&watch, hop, Direction::FromUpstream),
        owned(&[(0, "before\n"), (7, "behind\n")])
    );
    let hop = hop_to(&watch, 0, second.port);
    assert_eq!(texts(&watch, hop, Direction::FromUpstream), []);
    assert_eq!(watch.counter("kernel_text_missed"), 0);
}

#[test]
fn what_a_process_leaves_behind_goes_with_it() {
    let bed = Bed::new();
    let mut server = Server::start(&bed);
    let (mut speaker, mut watch) = Speaker::start(&bed, &format!("lv{}", server.port));
    let pid = speaker.process.0.id();
    speaker.connect(&server);
    speaker.read(&mut server, "once\n");
    assert_eq!(sessions(pid), 1);
    drop(speaker);
    watch.until("end of the process", |_| sessions(pid) == 0);
}

/// Calls of `connect()` that a process is in, and the table that has them.
fn connects(pid: u32) -> Option<HashMap<MapData, u64, [u8; CONNECT]>> {
    let of_process =
        |key: &Result<u64, MapError>| matches!(key, Ok(key) if key >> 32 == u64::from(pid));
    let mut tables = tables::<u64, [u8; CONNECT]>("CONNECTS").into_iter();
    tables.find(|table| table.keys().any(|key| of_process(&key)))
}

#[test]
fn a_connect_without_room_is_counted_and_one_that_is_killed_leaves_its_place() {
    let mut gateway = Gateway::start_isolated();
    let mut router = Gateway::start_isolated();
    let mut other = Gateway::start_isolated();
    gateway.link(&mut router);
    assert_eq!(gateway.run("ip route add default via 10.77.0.2"), "0");
    assert_eq!(router.run("ip route add blackhole 192.0.2.0/24"), "0");
    let mut watch = Watch::start(&LiveConfig {
        gateways: vec![gateway.name.clone(), other.name.clone()],
        ..LiveConfig::default()
    });
    let pid = gateway.pid();
    gateway.launch_command("exec 3<>/dev/tcp/192.0.2.1/80");
    watch.until("connect", |_| connects(pid).is_some());
    let mut table = connects(pid).unwrap();
    // Of the first process, whose threads make no such calls.
    let full =
        (1..=CONNECTS).any(|thread| table.insert(1 << 32 | thread, [0; CONNECT], 0).is_err());
    assert!(full);
    let nowhere = "192.0.2.1:80".parse().unwrap();
    assert_ne!(other.connect(nowhere), "0");
    watch.settle();
    let failed = |seen: &Seen| matches!(seen, Seen::ConnectFailed { .. });
    assert!(!watch.has(failed), "{}", watch.trace());
    assert_eq!(watch.counter("kernel_connect_map_full"), 1);
    drop(gateway);
    watch.until("end of the call", |_| connects(pid).is_none());
    assert_ne!(other.connect(nowhere), "0");
    watch.until("the failure", |watch| watch.has(failed));
    assert_eq!(watch.counter("kernel_connect_map_full"), 1);
}
