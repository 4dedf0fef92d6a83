//! Words with which a server answers an HTTP request on a port for TLS.

/// What nginx, Apache, servers in Go and Tomcat say, in that order. Of the first it is the title: a page of
/// another kind may quote the words.
const SAID: [&[u8]; 4] = [
    b"<title>400 The plain HTTP request was sent to HTTPS port</title>",
    b"Reason: You're speaking plain HTTP to an SSL-enabled server port.",
    b"sent an HTTP request to an HTTPS server",
    b"This combination of host and port requires TLS",
];

/// One less than the longest of them has.
const TAIL: usize = 64;

/// They stand near the beginning of a body.
const LOOKED_AT: usize = 2048;

/// Looks for those words in a body that comes in pieces.
#[derive(Clone, Copy, Debug)]
pub struct TlsPortText {
    /// The last bytes that were looked at.
    tail: [u8; TAIL],
    looked_at: usize,
    found: bool,
}

impl Default for TlsPortText {
    fn default() -> Self {
        Self {
            tail: [0; TAIL],
            looked_at: 0,
            found: false,
        }
    }
}

impl TlsPortText {
    /// Takes the next bytes of the body.
    pub fn take(&mut self, bytes: &[u8]) {
        let room = LOOKED_AT - self.looked_at;
        let bytes = bytes.get(..room).unwrap_or(bytes);
        if self.found || bytes.is_empty() {
            return;
        }
        let window = [&self.tail[..], bytes].concat();
        self.found = SAID
            .iter()
            .any(|said| memchr::memmem::find(&window, said).is_some());
        if let Some(tail) = window.last_chunk() {
            self.tail = *tail;
        }
        self.looked_at += bytes.len();
    }

    /// Whether they were there.
    pub const fn found(&self) -> bool {
        self.found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_are_found_in_any_split() {
        assert!(SAID.iter().all(|said| said.len() <= TAIL + 1));
        for said in SAID {
            let body = [b"<title>400 ", said, b"</title>"].concat();
            for step in 1..body.len() {
                let mut text = TlsPortText::default();
                body.chunks(step).for_each(|piece| text.take(piece));
                assert!(text.found(), "in pieces of {step}");
            }
        }
    }

    #[test]
    fn other_words_are_not() {
        let mut text = TlsPortText::default();
        text.take(b"<title>400 Bad Request</title>");
        text.take(b"<p>What does 'The plain HTTP request was sent to HTTPS port' mean?</p>");
        assert!(!text.found());
        let mut late = TlsPortText::default();
        late.take(&[b'x'; 3000]);
        late.take(SAID[0]);
        assert!(!late.found(), "only the beginning is looked at");
    }
}
