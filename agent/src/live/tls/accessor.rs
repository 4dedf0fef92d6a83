//! Where this build of OpenSSL keeps a number that one of its functions does nothing but return: told by the
//! function's own instructions.

/// `struct x509_store_ctx_st` has a few hundred bytes.
const MOST: u32 = 4096;

/// Offset of the 32-bit number, from where the function's argument points, that the function with this
/// code returns; `None` where it does anything else.
pub(super) fn offset(code: &[u8]) -> Option<u32> {
    let offset = if cfg!(target_arch = "x86_64") {
        x86_64(code)
    } else if cfg!(target_arch = "aarch64") {
        aarch64(code)
    } else {
        None
    };
    offset.filter(|offset| *offset < MOST && offset % 4 == 0)
}

/// `mov offset(%rdi), %eax`, registers set to zero, `ret`.
fn x86_64(code: &[u8]) -> Option<u32> {
    const ENDBR64: [u8; 4] = [0xf3, 0x0f, 0x1e, 0xfa];
    let code = code.strip_prefix(&ENDBR64).unwrap_or(code);
    let (offset, mut rest) = match code {
        [0x8b, 0x87, a, b, c, d, rest @ ..] => (u32::from_le_bytes([*a, *b, *c, *d]), rest),
        [0x8b, 0x47, short @ 0..0x80, rest @ ..] => (u32::from(*short), rest),
        _ => return None,
    };
    // `xor` of a register with itself, but for %eax: compilers can be asked to leave nothing behind.
    while let [0x31, pair, behind @ ..] = rest
        && pair >> 6 == 3
        && pair >> 3 & 7 == pair & 7
        && pair & 7 != 0
    {
        rest = behind;
    }
    (rest.first() == Some(&0xc3)).then_some(offset)
}

/// `ldr w0, [x0, #offset]`, `ret`.
fn aarch64(code: &[u8]) -> Option<u32> {
    const BTI_C: u32 = 0xd503_245f;
    const RET: u32 = 0xd65f_03c0;
    const LDR: u32 = 0xb940_0000;
    let mut words = code
        .as_chunks::<4>()
        .0
        .iter()
        .map(|word| u32::from_le_bytes(*word))
        .skip_while(|word| *word == BTI_C);
    let load = words.next()?;
    (load & 0xffc0_03ff == LDR && words.next()? == RET).then_some((load >> 10 & 0xfff) * 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn builds_of_openssl_for_x86_64() {
        // Debian 12, and the same with a landing pad and without the cleared register.
        let debian = [0x8b, 0x87, 0xb0, 0, 0, 0, 0x31, 0xff, 0xc3];
        assert_eq!(x86_64(&debian), Some(0xb0));
        let padded = [0xf3, 0x0f, 0x1e, 0xfa, 0x8b, 0x87, 0xb0, 0, 0, 0, 0xc3];
        assert_eq!(x86_64(&padded), Some(0xb0));
        assert_eq!(x86_64(&[0x8b, 0x47, 0x70, 0xc3]), Some(0x70));
    }

    #[test]
    fn builds_of_openssl_for_aarch64() {
        let words = [0xd503_245f_u32, 0xb940_b000, 0xd65f_03c0];
        let code: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        assert_eq!(aarch64(&code), Some(0xb0));
        assert_eq!(aarch64(&code[4..]), Some(0xb0));
        assert_eq!(aarch64(&code[..8]), None);
    }

    #[test]
    fn anything_else_is_not_guessed_at() {
        for code in [
            &[][..],
            &[0x8b, 0x87, 0xb0, 0, 0],
            &[0x8b, 0x87, 0xb0, 0, 0, 0],
            // What is returned is cleared before the end, or something is called.
            &[0x8b, 0x87, 0xb0, 0, 0, 0, 0x31, 0xc0, 0xc3],
            &[0x8b, 0x87, 0xb0, 0, 0, 0, 0xe9, 0, 0, 0, 0],
            // Backwards, and another register than that of the argument.
            &[0x8b, 0x47, 0xf0, 0xc3],
            &[0x8b, 0x86, 0xb0, 0, 0, 0, 0xc3],
        ] {
            assert_eq!(x86_64(code), None, "{code:x?}");
        }
        assert_eq!(offset(&[0x8b, 0x87, 0, 0, 1, 0, 0xc3]), None);
    }
}
