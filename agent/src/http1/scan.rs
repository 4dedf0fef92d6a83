//! Looks for bytes of a kind, sixteen at a time.

use wide::u8x16;

const BLOCK: usize = 16;

/// Where the first byte is that `kind` marks: it sets every bit of such bytes of a block, and none of
/// the others.
#[inline]
pub(super) fn find(bytes: &[u8], kind: impl Fn(u8x16) -> u8x16) -> Option<usize> {
    let (blocks, rest) = bytes.as_chunks::<BLOCK>();
    let first = |block: [u8; BLOCK]| {
        let marks = kind(u8x16::new(block)).to_bitmask();
        (marks != 0).then(|| marks.trailing_zeros() as usize)
    };
    for (index, block) in blocks.iter().enumerate() {
        if let Some(at) = first(*block) {
            return Some(index * BLOCK + at);
        }
    }
    let mut block = [0; BLOCK];
    block.get_mut(..rest.len())?.copy_from_slice(rest);
    let at = first(block).filter(|at| *at < rest.len())?;
    Some(bytes.len() - rest.len() + at)
}

/// One byte.
#[inline]
pub(super) fn byte(block: u8x16, byte: u8) -> u8x16 {
    block.simd_eq(u8x16::splat(byte))
}

/// The bytes from `first` to `last`.
#[inline]
fn range(block: u8x16, first: u8, last: u8) -> u8x16 {
    let above = block - u8x16::splat(first);
    above.min(u8x16::splat(last - first)).simd_eq(above)
}

/// Control characters, a tab included.
#[inline]
pub(super) fn control(block: u8x16) -> u8x16 {
    range(block, 0, 0x1f) | byte(block, 0x7f)
}

/// Control characters and spaces.
#[inline]
pub(super) fn control_or_space(block: u8x16) -> u8x16 {
    range(block, 0, b' ') | byte(block, 0x7f)
}

/// All but letters, digits and dashes.
#[inline]
pub(super) fn not_of_word(block: u8x16) -> u8x16 {
    let lower = block | u8x16::splat(0x20);
    !(range(lower, b'a', b'z') | range(block, b'0', b'9') | byte(block, b'-'))
}

/// Whether `text` is this name, which is in lower case, in letters of any case.
#[inline]
pub(super) fn is_name<const N: usize>(text: &[u8; N], name: &[u8; N]) -> bool {
    let differ = text.iter().zip(name).fold(0, |differ, (byte, wanted)| {
        let case = u8::from(wanted.is_ascii_lowercase()) << 5;
        differ | (byte | case) ^ wanted
    });
    differ == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(name: &str, kind: impl Fn(u8x16) -> u8x16 + Copy, of_kind: impl Fn(u8) -> bool) {
        let plain = (0..=u8::MAX).find(|byte| !of_kind(*byte)).unwrap();
        for value in 0..=u8::MAX {
            for at in 0..40 {
                let mut bytes = [plain; 40];
                bytes[at] = value;
                let found = of_kind(value).then_some(at);
                assert_eq!(find(&bytes, kind), found, "{name} {value:#x}");
                assert_eq!(find(&bytes[..at], kind), None, "{name} before {at}");
                assert_eq!(find(&bytes[at..], kind), found.map(|_| 0), "{name} at {at}");
            }
        }
    }

    #[test]
    fn names_differ_in_case_only() {
        for byte in 0..=u8::MAX {
            for at in 0..5 {
                let mut text = *b"a-Z:q";
                text[at] = byte;
                let same = text.eq_ignore_ascii_case(b"a-z:q");
                assert_eq!(is_name(&text, b"a-z:q"), same, "{byte:#x} at {at}");
            }
        }
    }

    #[test]
    fn each_byte_is_of_its_kinds_wherever_it_is() {
        check("byte", |block| byte(block, b'\n'), |byte| byte == b'\n');
        check("control", control, |byte| byte.is_ascii_control());
        let unfit = |byte: u8| byte.is_ascii_control() || byte == b' ';
        check("control or space", control_or_space, unfit);
        let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        check("not of a word", not_of_word, |byte| !word(byte));
    }
}
