//! What the lengths of encrypted records of TLS 1.3 give away (RFC 8446 section 5.2): a record is as long
//! as what is in it, one byte for its type, and the tag. With padding no length fits, and nothing is told.

/// What a cipher suite of TLS 1.3 adds and how long its hash is, in bytes (RFC 8446 section B.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Suite {
    hash: u16,
    tag: u16,
}

/// Length of a message header.
const HEADER: u16 = 4;

impl Suite {
    /// The suite of this number, where it is known.
    pub(super) const fn of(cipher: u16) -> Option<Self> {
        let (hash, tag) = match cipher {
            // The last two are of RFC 8998.
            0x1301 | 0x1303 | 0x1304 | 0x00c6 | 0x00c7 => (32, 16),
            0x1302 => (48, 16),
            0x1305 => (32, 8),
            _ => return None,
        };
        Some(Self { hash, tag })
    }

    const fn sealed(self, inner: u16) -> u16 {
        inner + 1 + self.tag
    }

    /// Length of a record that is an alert.
    pub(super) const fn alert(self) -> u16 {
        self.sealed(2)
    }

    /// Length of a record that is a Finished (RFC 8446 section 4.4.4).
    pub(super) const fn finished(self) -> u16 {
        self.sealed(HEADER + self.hash)
    }

    /// Length of a record that is a Certificate without a certificate (RFC 8446 section 4.4.2).
    pub(super) const fn no_certificate(self) -> u16 {
        self.sealed(HEADER + 4)
    }

    /// Length of a record that is an EndOfEarlyData (RFC 8446 section 4.5).
    const fn end_of_early_data(self) -> u16 {
        self.sealed(HEADER)
    }

    /// Whether a record is as long as a CertificateVerify (RFC 8446 section 4.4.3).
    fn is_verify(self, len: u16) -> bool {
        let signature = len.checked_sub(self.sealed(HEADER + 4));
        // Ed25519; ECDSA in DER with P-256, P-384, P-521; Ed448; RSA.
        matches!(
            signature,
            Some(64 | 68..=72 | 100..=104 | 114 | 135..=139 | 128 | 256 | 384 | 512)
        )
    }
}

/// The encrypted records that one side sent, as far as they tell its Finished from the rest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sealed {
    /// How many since the ServerHello.
    count: u8,
    first: u16,
    last: u16,
    /// Whether there was one before the ServerHello.
    early: bool,
}

impl Sealed {
    /// None were seen.
    pub(super) const NONE: Self = Self {
        count: 0,
        first: 0,
        last: 0,
        early: false,
    };

    /// Notes early data.
    pub(super) const fn early(&mut self) {
        self.early = true;
    }

    fn note(&mut self, len: u16) -> Self {
        let before = *self;
        if before.count == 0 {
            self.first = len;
        }
        self.last = len;
        self.count = before.count.saturating_add(1);
        before
    }

    /// Notes a record of the gateway's, and tells whether it is its Finished: the first; or the one
    /// behind an empty Certificate, behind Certificate and CertificateVerify, or behind the end of early
    /// data. Messages that share a record, and messages over several records, are not told apart.
    pub(super) fn gateway(&mut self, suite: Suite, len: u16, early_data: bool) -> bool {
        let before = self.note(len);
        if len != suite.finished() {
            return false;
        }
        if early_data || before.early {
            return before.count > 0 && before.last == suite.end_of_early_data();
        }
        match before.count {
            0 => true,
            1 => before.last == suite.no_certificate(),
            2 => before.first > suite.finished() && suite.is_verify(before.last),
            _ => false,
        }
    }

    /// Notes a record of the upstream's, and tells whether it is its Finished: the one behind
    /// EncryptedExtensions where a session is resumed, else the one behind a CertificateVerify.
    pub(super) fn upstream(&mut self, suite: Suite, len: u16, resumed: bool) -> bool {
        let before = self.note(len);
        if len != suite.finished() {
            return false;
        }
        if resumed {
            before.count == 1
        } else {
            (3..=4).contains(&before.count) && suite.is_verify(before.last)
        }
    }
}
