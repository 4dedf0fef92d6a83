//! What a gateway wrote or read inside TLS, in a capture file: in the form in which Wireshark exports what
//! it has decrypted (link type 252, `wsutil/exported_pdu_tlvs.h`), so that it is shown for what it is and
//! never taken for a packet.
//!
//! Tags come first, each a number, the length of its value, and the value filled up to four bytes; the
//! bytes follow the tag zero. The first tag's number is less than 4096, and no IP header begins with four
//! bits of zero, so that one is told from the other.

use core::net::{IpAddr, SocketAddr};

const END: u16 = 0;
const DISSECTOR: u16 = 12;
const IPV4: [u16; 2] = [20, 21];
const IPV6: [u16; 2] = [22, 23];
const PORT_TYPE: u16 = 24;
const PORTS: [u16; 2] = [25, 26];
const TCP_INFO: u16 = 34;

/// Of the kinds of ports, TCP.
const TCP: u32 = 2;

/// Version of the information about a stream that is written here.
const TCP_INFO_VERSION: u16 = 1;

/// Tags are read up to here; those that are written take less.
const MAX_TAGS: usize = 512;

/// Bytes of one direction inside TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pdu<'a> {
    /// Who sent them.
    pub src: SocketAddr,
    /// To whom.
    pub dst: SocketAddr,
    /// Bytes of the direction before them, modulo 2^32.
    pub offset: u32,
    /// As many as were captured.
    pub payload: &'a [u8],
    /// How many there were.
    pub len: u32,
}

/// Whether a captured packet is one of these.
pub fn is_pdu(bytes: &[u8]) -> bool {
    bytes.first().is_some_and(|first| first >> 4 == 0)
}

/// Writes one.
pub fn write(pdu: &Pdu<'_>) -> Vec<u8> {
    let mut out = Vec::with_capacity(96 + pdu.payload.len());
    tag(&mut out, DISSECTOR, b"http");
    for (end, of_v4, of_v6) in [(pdu.src, IPV4[0], IPV6[0]), (pdu.dst, IPV4[1], IPV6[1])] {
        match end.ip().to_canonical() {
            IpAddr::V4(v4) => tag(&mut out, of_v4, &v4.octets()),
            IpAddr::V6(v6) => tag(&mut out, of_v6, &v6.octets()),
        }
    }
    tag(&mut out, PORT_TYPE, &TCP.to_be_bytes());
    for (end, port) in [(pdu.src, PORTS[0]), (pdu.dst, PORTS[1])] {
        tag(&mut out, port, &u32::from(end.port()).to_be_bytes());
    }
    let mut info = Vec::with_capacity(19);
    info.extend(TCP_INFO_VERSION.to_be_bytes());
    info.extend(pdu.offset.to_be_bytes());
    info.extend(pdu.offset.wrapping_add(pdu.len).to_be_bytes());
    // No acknowledgement, not put together from several, no flags, no urgent pointer.
    info.extend([0; 9]);
    tag(&mut out, TCP_INFO, &info);
    tag(&mut out, END, b"");
    out.extend(pdu.payload);
    out
}

fn tag(out: &mut Vec<u8>, number: u16, value: &[u8]) {
    let filled = value.len().next_multiple_of(4);
    out.extend(number.to_be_bytes());
    out.extend(u16::try_from(filled).unwrap_or(u16::MAX).to_be_bytes());
    out.extend(value);
    out.resize(out.len() + filled - value.len(), 0);
}

/// Reads one whose length was `wire_len`; `None` where it is another one than those that are written here.
pub fn parse(bytes: &[u8], wire_len: u32) -> Option<Pdu<'_>> {
    let mut rest = bytes;
    let mut addresses = [None; 2];
    let mut ports = [None; 2];
    let mut offset = None;
    loop {
        let at = bytes.len() - rest.len();
        if at > MAX_TAGS {
            return None;
        }
        let (head, behind) = rest.split_first_chunk::<4>()?;
        let number = u16::from_be_bytes([head[0], head[1]]);
        let len = usize::from(u16::from_be_bytes([head[2], head[3]]));
        let value = behind.get(..len)?;
        rest = behind.get(len.next_multiple_of(4)..)?;
        let index = usize::from(number % 2 == IPV4[1] % 2);
        match number {
            END => break,
            DISSECTOR if value != b"http" => return None,
            number if IPV4.contains(&number) => {
                addresses[index] = Some(IpAddr::from(*value.first_chunk::<4>()?));
            }
            number if IPV6.contains(&number) => {
                addresses[index] = Some(IpAddr::from(*value.first_chunk::<16>()?));
            }
            number if PORTS.contains(&number) => {
                let port = u32::from_be_bytes(*value.first_chunk()?);
                ports[usize::from(number == PORTS[1])] = Some(u16::try_from(port).ok()?);
            }
            TCP_INFO => {
                let (version, info) = value.split_first_chunk::<2>()?;
                if u16::from_be_bytes(*version) == TCP_INFO_VERSION {
                    offset = Some(u32::from_be_bytes(*info.first_chunk()?));
                }
            }
            _ => {}
        }
    }
    let header = u32::try_from(bytes.len() - rest.len()).ok()?;
    Some(Pdu {
        src: SocketAddr::new(addresses[0]?, ports[0]?),
        dst: SocketAddr::new(addresses[1]?, ports[1]?),
        offset: offset?,
        payload: rest,
        len: wire_len.checked_sub(header)?,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pdu(src: &str, dst: &str, payload: &'static [u8]) -> Pdu<'static> {
        Pdu {
            src: src.parse().unwrap(),
            dst: dst.parse().unwrap(),
            offset: 7,
            payload,
            len: u32::try_from(payload.len()).unwrap() + 100,
        }
    }

    #[test]
    fn what_is_written_is_read_back() {
        for pdu in [
            pdu("10.0.0.1:40000", "10.0.0.2:8443", b"GET / HTTP/1.1\r\n"),
            pdu("[fd00::2]:8443", "[fd00::1]:40000", b""),
        ] {
            let bytes = write(&pdu);
            let wire_len = u32::try_from(bytes.len()).unwrap() + 100;
            assert!(is_pdu(&bytes));
            assert_eq!(parse(&bytes, wire_len), Some(pdu));
            assert_eq!(parse(&bytes, 20), None);
        }
        assert!(!is_pdu(&[0x45]) && !is_pdu(&[0x60]) && !is_pdu(&[]));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(at in 0_usize..120, byte: u8, end in 0_usize..120, wire_len: u32) {
            let mut bytes = write(&pdu("10.0.0.1:40000", "10.0.0.2:8443", b"hello"));
            let last = bytes.len() - 1;
            bytes[at.min(last)] = byte;
            bytes.truncate(end);
            let _ = parse(&bytes, wire_len);
        }
    }
}
