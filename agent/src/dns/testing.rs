//! DNS messages for tests.

use core::net::IpAddr;

use super::kind;

/// A name on the wire.
fn name(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for label in text.split('.').filter(|label| !label.is_empty()) {
        bytes.push(label.len() as u8);
        bytes.extend(label.as_bytes());
    }
    bytes.push(0);
    bytes
}

fn question(text: &str, kind: u16) -> Vec<u8> {
    let mut bytes = name(text);
    bytes.extend(kind.to_be_bytes());
    bytes.extend([0, 1]);
    bytes
}

/// A query that asks for recursion.
pub(crate) fn query(id: u16, text: &str, kind: u16) -> Vec<u8> {
    let mut bytes = id.to_be_bytes().to_vec();
    bytes.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    bytes.extend(question(text, kind));
    bytes
}

/// An answer in the making.
#[derive(Clone, Debug)]
pub(crate) struct Reply {
    id: u16,
    question: Vec<u8>,
    code: u16,
    truncated: bool,
    sections: [Vec<Vec<u8>>; 3],
}

impl Reply {
    pub(crate) fn to(id: u16, text: &str, kind: u16) -> Self {
        Self {
            id,
            question: question(text, kind),
            code: 0,
            truncated: false,
            sections: Default::default(),
        }
    }

    pub(crate) fn code(mut self, code: u16) -> Self {
        self.code = code;
        self
    }

    pub(crate) fn truncated(mut self) -> Self {
        self.truncated = true;
        self
    }

    fn record(mut self, section: usize, owner: &[u8], kind: u16, ttl: u32, data: &[u8]) -> Self {
        let mut record = owner.to_vec();
        record.extend(kind.to_be_bytes());
        record.extend([0, 1]);
        record.extend(ttl.to_be_bytes());
        record.extend((data.len() as u16).to_be_bytes());
        record.extend(data);
        self.sections[section].push(record);
        self
    }

    pub(crate) fn alias(self, of: &str, ttl: u32) -> Self {
        self.record(0, &[0xc0, 12], kind::CNAME, ttl, &name(of))
    }

    pub(crate) fn address(self, address: IpAddr, ttl: u32) -> Self {
        match address {
            IpAddr::V4(v4) => self.record(0, &[0xc0, 12], kind::A, ttl, &v4.octets()),
            IpAddr::V6(v6) => self.record(0, &[0xc0, 12], kind::AAAA, ttl, &v6.octets()),
        }
    }

    pub(crate) fn zone(self, ttl: u32, minimum: u32) -> Self {
        let mut data = vec![0, 0];
        for number in [1, 2, 3, 4, minimum] {
            data.extend(u32::to_be_bytes(number));
        }
        self.record(1, &[0], kind::SOA, ttl, &data)
    }

    pub(crate) fn ede(self, code: u16, text: &str) -> Self {
        let mut data = vec![0, 15];
        data.extend((text.len() as u16 + 2).to_be_bytes());
        data.extend(code.to_be_bytes());
        data.extend(text.as_bytes());
        let upper = u32::from(self.code >> 4) << 24;
        self.record(2, &[0], kind::OPT, upper, &data)
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.id.to_be_bytes().to_vec();
        let tc = if self.truncated { 0x0200 } else { 0 };
        bytes.extend((0x8180_u16 | tc | (self.code & 0x0f)).to_be_bytes());
        bytes.extend([0, 1]);
        for section in &self.sections {
            bytes.extend((section.len() as u16).to_be_bytes());
        }
        bytes.extend(&self.question);
        bytes.extend(self.sections.iter().flatten().flatten());
        bytes
    }
}
