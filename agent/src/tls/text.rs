//! Text from the wire, made fit to be shown.

/// The bytes as text of at most `max` bytes: control characters and what is not UTF-8 become U+FFFD, so
/// that no terminal obeys it and no name passes for another.
pub(super) fn printable(bytes: &[u8], max: usize) -> String {
    let bytes = bytes.get(..max).unwrap_or(bytes);
    let mut text = String::with_capacity(bytes.len());
    for letter in String::from_utf8_lossy(bytes).chars() {
        let shown = if is_shown(letter) {
            letter
        } else {
            char::REPLACEMENT_CHARACTER
        };
        if text.len() + shown.len_utf8() > max {
            break;
        }
        text.push(shown);
    }
    text.shrink_to_fit();
    text
}

/// Whether a letter shows as itself: no control character, and none of those that turn the direction of
/// what follows (Unicode TR9).
fn is_shown(letter: char) -> bool {
    !letter.is_control()
        && !matches!(letter, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_would_obey_is_replaced() {
        assert_eq!(printable(b"shop\x1b[2J", 64), "shop\u{fffd}[2J");
        assert_eq!(printable(b"a\xffb", 64), "a\u{fffd}b");
        assert_eq!(printable("a\u{202e}b".as_bytes(), 64), "a\u{fffd}b");
        assert_eq!(printable("Zürich".as_bytes(), 64), "Zürich");
    }

    #[test]
    fn no_longer_than_asked_for() {
        assert_eq!(printable(b"abcdef", 3), "abc");
        assert!(printable(&[0xff; 100], 10).len() <= 10);
    }
}
