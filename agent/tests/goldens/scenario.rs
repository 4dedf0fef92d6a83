//! Describes traffic between a gateway and an upstream, and makes a capture file of it.
//!
//! Times, ports and sequence numbers are fixed, so that the same description gives the same bytes.

use std::collections::BTreeMap;
use std::time::Duration;

pub(crate) const GET: &[u8] = b"GET /a HTTP/1.1\r\nHost: shop\r\n\r\n";
pub(crate) const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";

const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

/// Between packets, unless something else is said.
const STEP: Duration = Duration::from_micros(100);

/// 2023-11-14T22:13:20Z.
const START_SECONDS: u64 = 1_700_000_000;

/// Who sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum From {
    Gateway,
    Upstream,
}

/// What frames look like on the link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Link {
    Ethernet,
    /// Ethernet with these VLAN tags.
    Tagged(&'static [u16]),
    /// The Linux device `any`, which sees each packet twice where it crosses two interfaces.
    Any,
}

/// Traffic, packet by packet.
#[derive(Clone, Debug)]
pub(crate) struct Scenario {
    /// Time since the beginning, and frame with its length on the wire.
    packets: Vec<(Duration, Vec<u8>, usize)>,
    now: Duration,
    pub(crate) link: Link,
    pub(crate) ipv6: bool,
    /// Bytes of a frame that are captured.
    pub(crate) snap: usize,
    pub(crate) gateway_window: u16,
    pub(crate) upstream_window: u16,
    pub(crate) upstream_ttl: u8,
    port: u16,
    /// Next sequence numbers.
    pub(crate) gateway_seq: u32,
    pub(crate) upstream_seq: u32,
    /// What each side has acknowledged of the other.
    gateway_acked: u32,
    upstream_acked: u32,
    packet_ids: u16,
    /// The connections that are not turned to: sequence numbers and what was acknowledged, by port.
    others: BTreeMap<u16, [u32; 4]>,
}

/// A scenario written as a chain of steps.
pub(crate) fn scenario(run: impl FnOnce(&mut Scenario)) -> Scenario {
    let mut scenario = Scenario {
        packets: Vec::new(),
        now: Duration::ZERO,
        link: Link::Ethernet,
        ipv6: false,
        snap: usize::MAX,
        gateway_window: 500,
        upstream_window: 500,
        upstream_ttl: 64,
        port: 40_000,
        gateway_seq: 1000,
        upstream_seq: 5000,
        gateway_acked: 0,
        upstream_acked: 0,
        packet_ids: 0,
        others: BTreeMap::new(),
    };
    run(&mut scenario);
    scenario
}

impl Scenario {
    /// Time passes.
    pub(crate) fn ms(&mut self, ms: u64) -> &mut Self {
        self.now += Duration::from_millis(ms);
        self
    }

    /// Another connection to the same upstream, from the next port.
    pub(crate) fn next_hop(&mut self) -> &mut Self {
        self.port += 1;
        self.same_port(1000, 5000)
    }

    /// Something on another connection to the same upstream; then this one goes on.
    pub(crate) fn aside(&mut self, run: impl FnOnce(&mut Self)) -> &mut Self {
        let here = self.port;
        self.turn_to(here + 1);
        run(self);
        self.turn_to(here)
    }

    /// Turns to this connection, a new one or one that was turned to before.
    pub(crate) fn on(&mut self, number: u16) -> &mut Self {
        self.turn_to(41_000 + number)
    }

    fn turn_to(&mut self, port: u16) -> &mut Self {
        let here = [
            self.gateway_seq,
            self.upstream_seq,
            self.gateway_acked,
            self.upstream_acked,
        ];
        self.others.insert(self.port, here);
        self.port = port;
        [
            self.gateway_seq,
            self.upstream_seq,
            self.gateway_acked,
            self.upstream_acked,
        ] = self.others.remove(&self.port).unwrap_or([1000, 5000, 0, 0]);
        self
    }

    /// Another connection from the same port, with these initial sequence numbers.
    pub(crate) fn same_port(&mut self, gateway: u32, upstream: u32) -> &mut Self {
        (self.gateway_seq, self.upstream_seq) = (gateway, upstream);
        (self.gateway_acked, self.upstream_acked) = (0, 0);
        self
    }

    /// Any segment at all; the sequence numbers stay where they are.
    pub(crate) fn segment(&mut self, from: From, flags: u8, seq: u32, payload: &[u8]) -> &mut Self {
        let acked = match from {
            From::Gateway => self.gateway_acked,
            From::Upstream => self.upstream_acked,
        };
        let mut tcp = Vec::new();
        let (ports, window) = match from {
            From::Gateway => ([self.port, 8080], self.gateway_window),
            From::Upstream => ([8080, self.port], self.upstream_window),
        };
        for port in ports {
            tcp.extend(port.to_be_bytes());
        }
        tcp.extend(seq.to_be_bytes());
        let ack = if flags & ACK == 0 { 0 } else { acked };
        tcp.extend(ack.to_be_bytes());
        tcp.extend([0x50, flags]);
        tcp.extend(window.to_be_bytes());
        tcp.extend([0; 4]);
        tcp.extend(payload);
        let ttl = if from == From::Gateway {
            64
        } else {
            self.upstream_ttl
        };
        let packet = self.ip(from, ttl, 6, tcp, 16);
        self.packet(&packet);
        self
    }

    /// An IP packet, with the checksum of what it carries at `checksum_at`.
    fn ip(
        &mut self,
        from: From,
        ttl: u8,
        protocol: u8,
        mut body: Vec<u8>,
        checksum_at: usize,
    ) -> Vec<u8> {
        let host = u8::from(from == From::Upstream);
        let (src, dst) = (self.address(1 + host), self.address(2 - host));
        self.ip_between(&src, &dst, ttl, protocol, &mut body, checksum_at)
    }

    fn ip_between(
        &mut self,
        src: &[u8],
        dst: &[u8],
        ttl: u8,
        protocol: u8,
        body: &mut [u8],
        checksum_at: usize,
    ) -> Vec<u8> {
        let length = u16::try_from(body.len()).unwrap();
        // ICMP for IPv4 alone has no pseudo-header.
        let mut covered = Vec::new();
        if protocol != 1 {
            covered.extend([src, dst].concat());
            covered.extend([0, protocol]);
            covered.extend(length.to_be_bytes());
        }
        covered.extend(&*body);
        body[checksum_at..checksum_at + 2].copy_from_slice(&checksum(&covered).to_be_bytes());
        let mut packet = Vec::new();
        if self.ipv6 {
            packet.extend([0x60, 0, 0, 0]);
            packet.extend(length.to_be_bytes());
            packet.extend([protocol, ttl]);
        } else {
            self.packet_ids += 1;
            packet.extend([0x45, 0]);
            packet.extend((length + 20).to_be_bytes());
            packet.extend(self.packet_ids.to_be_bytes());
            packet.extend([0x40, 0, ttl, protocol, 0, 0]);
        }
        packet.extend([src, dst].concat());
        if !self.ipv6 {
            let sum = checksum(&packet).to_be_bytes();
            packet[10..12].copy_from_slice(&sum);
        }
        packet.extend(&*body);
        packet
    }

    /// The address of a host of the network: 1 is the gateway, 2 the upstream.
    fn address(&self, host: u8) -> Vec<u8> {
        if self.ipv6 {
            return [&[0x20, 1, 0x0d, 0xb8][..], &[0; 11], &[host]].concat();
        }
        vec![10, 0, 0, host]
    }

    /// Puts an IP packet on the link.
    fn packet(&mut self, packet: &[u8]) {
        let ethertype: [u8; 2] = if self.ipv6 { [0x86, 0xdd] } else { [8, 0] };
        let mut frame = match self.link {
            Link::Any => vec![0, 4, 0, 1, 0, 6, 2, 0, 0, 0, 0, 1, 0, 0],
            Link::Ethernet | Link::Tagged(_) => [2; 12].to_vec(),
        };
        if let Link::Tagged(tags) = self.link {
            for (tag, left) in tags.iter().zip((0..tags.len()).rev()) {
                // The outer of two tags has the type of 802.1ad.
                frame.extend(if left > 0 { [0x88, 0xa8] } else { [0x81, 0] });
                frame.extend(tag.to_be_bytes());
            }
        }
        frame.extend(ethertype);
        frame.extend(packet);
        let wire_len = frame.len();
        frame.truncate(self.snap);
        self.now += STEP;
        self.packets.push((self.now, frame.clone(), wire_len));
        if self.link == Link::Any {
            let again = self.now + Duration::from_micros(3);
            self.packets.push((again, frame, wire_len));
        }
    }

    /// A datagram between a port of the gateway and its resolver, host 53.
    pub(crate) fn datagram(&mut self, from: From, port: u16, payload: &[u8]) -> &mut Self {
        let ports = match from {
            From::Gateway => [port, 53],
            From::Upstream => [53, port],
        };
        let mut udp: Vec<u8> = ports.into_iter().flat_map(u16::to_be_bytes).collect();
        udp.extend(u16::try_from(8 + payload.len()).unwrap().to_be_bytes());
        udp.extend([0; 2]);
        udp.extend(payload);
        self.with_resolver(from, 17, &mut udp, 6)
    }

    /// A segment between a port of the gateway and its resolver.
    pub(crate) fn resolver_segment(
        &mut self,
        from: From,
        port: u16,
        flags: u8,
        seq: u32,
        payload: &[u8],
    ) -> &mut Self {
        let ports = match from {
            From::Gateway => [port, 53],
            From::Upstream => [53, port],
        };
        let mut tcp: Vec<u8> = ports.into_iter().flat_map(u16::to_be_bytes).collect();
        tcp.extend(seq.to_be_bytes());
        tcp.extend([0, 0, 0, 1, 0x50, flags, 1, 0, 0, 0, 0, 0]);
        tcp.extend(payload);
        self.with_resolver(from, 6, &mut tcp, 16)
    }

    fn with_resolver(
        &mut self,
        from: From,
        protocol: u8,
        body: &mut [u8],
        checksum_at: usize,
    ) -> &mut Self {
        let (gateway, resolver) = (self.address(1), self.address(53));
        let (src, dst) = match from {
            From::Gateway => (gateway, resolver),
            From::Upstream => (resolver, gateway),
        };
        let packet = self.ip_between(&src, &dst, 64, protocol, body, checksum_at);
        self.packet(&packet);
        self
    }

    /// The gateway's SYN, or that SYN again.
    pub(crate) fn syn(&mut self) -> &mut Self {
        let seq = self.gateway_seq;
        self.segment(From::Gateway, SYN, seq, &[])
    }

    /// The whole handshake.
    pub(crate) fn open(&mut self) -> &mut Self {
        self.syn().established()
    }

    /// The rest of a handshake whose SYN was sent.
    pub(crate) fn established(&mut self) -> &mut Self {
        self.gateway_seq = self.gateway_seq.wrapping_add(1);
        self.upstream_acked = self.gateway_seq;
        let seq = self.upstream_seq;
        self.segment(From::Upstream, SYN | ACK, seq, &[]);
        self.upstream_seq = seq.wrapping_add(1);
        self.gateway_acks()
    }

    /// A connection that is there already when the capture begins.
    pub(crate) fn joined(&mut self) -> &mut Self {
        (self.gateway_acked, self.upstream_acked) = (self.upstream_seq, self.gateway_seq);
        self
    }

    /// The upstream sends its SYN-ACK once more.
    pub(crate) fn syn_ack_again(&mut self) -> &mut Self {
        let seq = self.upstream_seq.wrapping_sub(1);
        self.segment(From::Upstream, SYN | ACK, seq, &[])
    }

    /// The SYN-ACK comes when the gateway's socket is gone, or its owner only wanted to see it:
    /// `flags` are those of the reset that answers it.
    pub(crate) fn syn_ack_reset(&mut self, flags: u8) -> &mut Self {
        self.upstream_acked = self.gateway_seq.wrapping_add(1);
        let seq = self.upstream_seq;
        self.segment(From::Upstream, SYN | ACK, seq, &[]);
        self.gateway_acked = seq.wrapping_add(1);
        let seq = self.upstream_acked;
        self.segment(From::Gateway, flags, seq, &[])
    }

    /// The gateway sends the request once more.
    pub(crate) fn request_again(&mut self) -> &mut Self {
        let seq = self.gateway_seq.wrapping_sub(length(GET));
        self.segment(From::Gateway, ACK, seq, GET)
    }

    /// A connection with a complete exchange, open.
    pub(crate) fn pooled(&mut self, number: u16) -> &mut Self {
        self.on(number).open().request().reply(OK)
    }

    /// The gateway sends; nothing acknowledges it yet.
    pub(crate) fn send(&mut self, bytes: &[u8]) -> &mut Self {
        let seq = self.gateway_seq;
        self.segment(From::Gateway, ACK, seq, bytes);
        self.gateway_seq = seq.wrapping_add(length(bytes));
        self
    }

    /// The upstream's kernel acknowledges everything sent.
    pub(crate) fn upstream_acks(&mut self) -> &mut Self {
        self.upstream_acked = self.gateway_seq;
        let seq = self.upstream_seq;
        self.segment(From::Upstream, ACK, seq, &[])
    }

    /// The gateway's kernel acknowledges everything received.
    pub(crate) fn gateway_acks(&mut self) -> &mut Self {
        self.gateway_acked = self.upstream_seq;
        let seq = self.gateway_seq;
        self.segment(From::Gateway, ACK, seq, &[])
    }

    /// A request that arrives.
    pub(crate) fn request(&mut self) -> &mut Self {
        self.send(GET).upstream_acks()
    }

    /// The upstream sends; nothing acknowledges it yet.
    pub(crate) fn answer(&mut self, bytes: &[u8]) -> &mut Self {
        let seq = self.upstream_seq;
        self.segment(From::Upstream, ACK, seq, bytes);
        self.upstream_seq = seq.wrapping_add(length(bytes));
        self
    }

    /// The upstream sends, and the gateway acknowledges.
    pub(crate) fn reply(&mut self, bytes: &[u8]) -> &mut Self {
        self.answer(bytes).gateway_acks()
    }

    /// The upstream sends what the observer misses, and the gateway acknowledges.
    pub(crate) fn reply_unseen(&mut self, bytes: u32) -> &mut Self {
        self.upstream_seq = self.upstream_seq.wrapping_add(bytes);
        self.gateway_acks()
    }

    pub(crate) fn upstream_fin(&mut self) -> &mut Self {
        let seq = self.upstream_seq;
        self.segment(From::Upstream, FIN | ACK, seq, &[]);
        self.upstream_seq = seq.wrapping_add(1);
        self
    }

    pub(crate) fn upstream_rst(&mut self) -> &mut Self {
        let seq = self.upstream_seq;
        self.segment(From::Upstream, RST, seq, &[])
    }

    pub(crate) fn gateway_fin(&mut self) -> &mut Self {
        self.gateway_acked = self.upstream_seq;
        let seq = self.gateway_seq;
        self.segment(From::Gateway, FIN | ACK, seq, &[]);
        self.gateway_seq = seq.wrapping_add(1);
        self
    }

    pub(crate) fn gateway_rst(&mut self) -> &mut Self {
        let seq = self.gateway_seq;
        self.segment(From::Gateway, RST | ACK, seq, &[])
    }

    /// Both sides close, the upstream first.
    pub(crate) fn close(&mut self) -> &mut Self {
        self.upstream_fin().gateway_fin()
    }

    /// The refusal of a SYN.
    pub(crate) fn refuse(&mut self) -> &mut Self {
        self.upstream_acked = self.gateway_seq.wrapping_add(1);
        self.segment(From::Upstream, RST | ACK, 0, &[])
    }

    /// "Destination unreachable" from this host of the network, about the last SYN.
    pub(crate) fn unreachable(&mut self, host: u8, code: u8) -> &mut Self {
        let headers = if self.ipv6 { 60 } else { 40 };
        let link = 14;
        let (_, frame, _) = self.packets.last().unwrap();
        let quoted = frame[link..link + headers].to_vec();
        let (protocol, kind) = if self.ipv6 { (58, 1) } else { (1, 3) };
        let mut body = [&[kind, code, 0, 0, 0, 0, 0, 0][..], &quoted].concat();
        let (src, dst) = (self.address(host), self.address(1));
        let packet = self.ip_between(&src, &dst, 64, protocol, &mut body, 2);
        self.packet(&packet);
        self
    }

    /// A pcap file, little endian, microseconds.
    pub(crate) fn pcap(&self) -> Vec<u8> {
        let link: u32 = if self.link == Link::Any { 113 } else { 1 };
        let mut file = 0xa1b2_c3d4_u32.to_le_bytes().to_vec();
        file.extend([2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0]);
        file.extend(link.to_le_bytes());
        for (at, frame, wire_len) in &self.packets {
            let seconds = u32::try_from(START_SECONDS + at.as_secs()).unwrap();
            let frame_len = u32::try_from(frame.len()).unwrap();
            let wire_len = u32::try_from(*wire_len).unwrap();
            for field in [seconds, at.subsec_micros(), frame_len, wire_len] {
                file.extend(field.to_le_bytes());
            }
            file.extend(frame);
        }
        file
    }
}

fn length(bytes: &[u8]) -> u32 {
    u32::try_from(bytes.len()).unwrap()
}

/// RFC 1071.
fn checksum(bytes: &[u8]) -> u16 {
    let mut sum = 0_u32;
    for pair in bytes.chunks(2) {
        let low = pair.get(1).copied().unwrap_or(0);
        sum += u32::from(u16::from_be_bytes([pair[0], low]));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap()
}
