//! A gateway and its upstream on one connection, whose exchanges are held back in the kernel or sent up.

use std::collections::HashSet;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use hopscope::live::LiveConfig;
use hopscope::model::{Direction, HeldExchanges, Signal};
use socket2::{SockFilter, SockRef};

use crate::support::{DEADLINE, Gateway, Seen, Watch, now};

/// The instruction of a classic filter that ends it, with the bytes to take: none.
const RETURN: u16 = 0x06;

pub(crate) const ANSWER: &str = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";

/// A gateway and its upstream on one connection.
pub(crate) struct Pair {
    pub(crate) gateway: Gateway,
    pub(crate) upstream: TcpStream,
    pub(crate) watch: Watch,
    requests: u32,
}

impl Pair {
    pub(crate) fn start(config: impl FnOnce(&mut LiveConfig)) -> Self {
        let mut gateway = Gateway::start();
        let mut wanted = gateway.config();
        config(&mut wanted);
        let watch = Watch::start(&wanted);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        assert_eq!(gateway.connect(listener.local_addr().unwrap()), "0");
        let (upstream, _) = listener.accept().unwrap();
        // Two writes are two segments.
        upstream.set_nodelay(true).unwrap();
        Self {
            gateway,
            upstream,
            watch,
            requests: 0,
        }
    }

    /// The gateway sends its next request, which the upstream takes.
    pub(crate) fn ask(&mut self) {
        self.requests += 1;
        let request = format!("GET /{} HTTP/1.1\r\nHost: u\r\n\r\n", self.requests);
        self.send(request.as_bytes());
        let mut taken = vec![0; request.len()];
        self.upstream.read_exact(&mut taken).unwrap();
        assert_eq!(taken, request.as_bytes());
    }

    /// The gateway sends `bytes` in one segment. Its own `printf` would make one of each line.
    pub(crate) fn send(&mut self, bytes: &[u8]) {
        let file = self.gateway.program().with_file_name("request");
        fs::write(&file, bytes).unwrap();
        let send = format!("cat {} >&3", file.display());
        assert_eq!(self.gateway.run(&send), "0");
    }

    /// The upstream sends `bytes`, which the gateway takes.
    pub(crate) fn answer(&mut self, bytes: impl AsRef<[u8]>) {
        let bytes = bytes.as_ref();
        self.upstream.write_all(bytes).unwrap();
        let read = format!("head -c {} <&3 >/dev/null", bytes.len());
        assert_eq!(self.gateway.run(&read), "0");
    }

    /// The same, with a last segment that the upstream sends twice: it does not see how the first is acknowledged.
    pub(crate) fn answer_twice(&mut self, bytes: impl AsRef<[u8]>) {
        let nothing = [SockFilter::new(RETURN, 0, 0, 0)];
        SockRef::from(&self.upstream)
            .attach_filter(&nothing)
            .unwrap();
        self.answer(bytes);
        let start = now();
        while !self.is_resent() {
            assert!(start.elapsed() < DEADLINE, "nothing was sent again");
            thread::sleep(Duration::from_millis(5));
        }
        SockRef::from(&self.upstream).detach_filter().unwrap();
    }

    /// Whether the upstream sends what is not acknowledged again.
    fn is_resent(&self) -> bool {
        let port = self.upstream.local_addr().unwrap().port();
        let peer = self.upstream.peer_addr().unwrap().port();
        let sockets = fs::read_to_string("/proc/net/tcp").unwrap();
        let of_ours = |line: &&str| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            fields[1].ends_with(&format!(":{port:04X}"))
                && fields[2].ends_with(&format!(":{peer:04X}"))
        };
        let line = sockets.lines().skip(1).find(of_ours).unwrap();
        line.split_whitespace().nth(6) != Some("00000000")
    }

    pub(crate) fn exchange(&mut self) {
        self.ask();
        self.answer(ANSWER);
    }

    pub(crate) fn exchanges(&mut self, count: u32) {
        for _ in 0..count {
            self.exchange();
        }
    }

    /// The payloads that came up towards one side, in order.
    pub(crate) fn payloads(&self, towards: Direction) -> Vec<String> {
        let all = self.loaded(towards);
        all.map(|(_, payload)| String::from_utf8_lossy(payload).into_owned())
            .collect()
    }

    /// Those in one piece. Nothing of it is repeated, as a kernel does with what is acknowledged late.
    pub(crate) fn text(&self, towards: Direction) -> String {
        let mut known = HashSet::new();
        let once = self.loaded(towards).filter(|(seq, _)| known.insert(*seq));
        once.map(|(_, payload)| String::from_utf8_lossy(payload))
            .collect()
    }

    /// The segments towards one side that carry something, with their sequence numbers.
    fn loaded(&self, towards: Direction) -> impl Iterator<Item = (u32, &[u8])> {
        let seen = self.watch.seen.iter();
        seen.filter_map(move |(_, seen)| match seen {
            Seen::Segment {
                direction,
                seq,
                payload,
                ..
            } if *direction == towards && !payload.is_empty() => Some((*seq, payload.as_slice())),
            _ => None,
        })
    }

    /// The numbers of the requests that came up.
    pub(crate) fn asked(&self) -> Vec<u32> {
        let number = |request: &String| {
            let path = request.strip_prefix("GET /")?;
            path.split(' ').next()?.parse().ok()
        };
        self.payloads(Direction::ToUpstream)
            .iter()
            .filter_map(number)
            .collect()
    }

    /// What was told of exchanges that stayed in the kernel, in however many words.
    pub(crate) fn held(&self) -> HeldExchanges {
        let mut all = HeldExchanges::default();
        for (_, seen) in &self.watch.seen {
            let Seen::Signal(Signal::Held(held)) = seen else {
                continue;
            };
            all.exchanges += held.exchanges;
            all.request_bytes += held.request_bytes;
            all.response_bytes += held.response_bytes;
            for (all, more) in all.classes.iter_mut().zip(held.classes) {
                *all += more;
            }
            for (all, more) in all.first_byte.iter_mut().zip(held.first_byte) {
                *all += more;
            }
        }
        all
    }

    /// Waits until the request of this number came up.
    pub(crate) fn until_asked(&mut self, number: u32) {
        let request = format!("GET /{number} ");
        self.watch.until("the request", |watch| {
            watch.has(|seen| {
                matches!(seen, Seen::Segment { payload, .. } if payload.starts_with(request.as_bytes()))
            })
        });
        self.watch.settle();
    }
}
