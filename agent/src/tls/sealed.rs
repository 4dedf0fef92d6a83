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
        // Ed25519; ECDSA in DER with P-256, P-384, P-521; Ed448; RSA; ML-DSA.
        matches!(
            signature,
            Some(
                64
                | 68..=72
                | 100..=104
                | 114
                | 135..=139
                | 128
                | 256
                | 384
                | 512
                | 1024
                | 2420
                | 3309
                | 4627,
            )
        )
    }

    /// Whether a record is as long as one that messages are broken up into: 2^14 bytes, or less where the
    /// client asked for it (RFC 6066 section 4).
    fn is_fragment(self, len: u16) -> bool {
        [512, 1024, 2048, 4096, 1 << 14].contains(&len.saturating_sub(1 + self.tag))
    }
}

/// What a record tells of its sender's Finished.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Told {
    /// Nothing.
    Nothing,
    /// This is it, or it was before and this is no more than that.
    Finished,
    /// It was before, and this is something else.
    Behind,
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

    /// Notes a record of the gateway's.
    ///
    /// Its Finished is the first; or the one behind Certificate and CertificateVerify, or behind the end
    /// of early data. A first record may have all of them in it, as BoringSSL does it. With a client
    /// certificate that shows by the second: nothing but a CertificateVerify goes between a Certificate
    /// and the Finished, in a record of its own or in that of the Finished.
    pub(super) fn gateway(&mut self, suite: Suite, len: u16, early_data: bool) -> Told {
        let before = self.note(len);
        let finished = suite.finished();
        if early_data || before.early {
            let ended = before.count > 0 && before.last == suite.end_of_early_data();
            return told(ended && len == finished);
        }
        match before.count {
            // Alone, or with an empty Certificate in front of it.
            0 => told(len == finished || len == finished + HEADER + 4),
            1 if before.last == suite.no_certificate() => told(len == finished),
            _ if before.first <= suite.no_certificate() || suite.is_fragment(before.first) => {
                Told::Nothing
            }
            _ if len == suite.alert() => Told::Nothing,
            1 if suite.is_verify(len) => Told::Nothing,
            1 if suite.is_verify(len.saturating_sub(HEADER + suite.hash)) => Told::Finished,
            1 | 2 if len == finished => Told::Finished,
            _ => Told::Behind,
        }
    }

    /// Notes a record of the upstream's. Its Finished is the one behind EncryptedExtensions where a session
    /// is resumed, else the one behind a CertificateVerify.
    pub(super) fn upstream(&mut self, suite: Suite, len: u16, resumed: bool) -> Told {
        let before = self.note(len);
        let place = if resumed {
            before.count == 1
        } else {
            (3..=4).contains(&before.count) && suite.is_verify(before.last)
        };
        told(place && len == suite.finished())
    }
}

const fn told(finished: bool) -> Told {
    if finished {
        Told::Finished
    } else {
        Told::Nothing
    }
}
