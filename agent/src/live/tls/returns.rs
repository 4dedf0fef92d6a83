//! Where a function returns, and whether it hands over to another one, told by its instructions.

/// More code than any of the probed functions has: most of them check an argument or two and call another
/// one.
pub(super) const CODE_MAX: u64 = 4096;

/// Return instructions of one function.
const RETURNS_MAX: usize = 16;

/// Offsets of the return instructions of the function that this code is the whole of. An error says why not
/// every way out of it is one.
pub(super) fn returns(code: &[u8]) -> Result<Vec<u64>, &'static str> {
    let found = if cfg!(target_arch = "x86_64") {
        x86_64(code)
    } else if cfg!(target_arch = "aarch64") {
        aarch64(code)
    } else {
        return Err("this processor's instructions are not known");
    }?;
    match found.len() {
        0 => Err("it does not return"),
        1..=RETURNS_MAX => Ok(found),
        _ => Err("it returns in too many places"),
    }
}

/// A jump to another function, which then returns in its place.
const TAIL_CALL: &str = "it leaves by a jump";
const UNREADABLE: &str = "its code cannot be read";

/// Whether the function with this code certainly hands over to none of those that begin at `targets`, offsets from
/// where it begins itself: neither by a call nor by a jump.
pub(super) fn is_alone(code: &[u8], targets: &[i64]) -> bool {
    // Elsewhere it is not known where linkage tables lead to.
    cfg!(target_arch = "x86_64") && x86_64_is_alone(code, targets)
}

fn x86_64_is_alone(code: &[u8], targets: &[i64]) -> bool {
    use iced_x86::{Decoder, DecoderOptions, FlowControl};

    let decoder = Decoder::with_ip(64, code, 0, DecoderOptions::NONE);
    decoder
        .into_iter()
        .all(|instruction| match instruction.flow_control() {
            FlowControl::IndirectBranch | FlowControl::IndirectCall => false,
            FlowControl::UnconditionalBranch
            | FlowControl::ConditionalBranch
            | FlowControl::Call => {
                !targets.contains(&instruction.near_branch_target().cast_signed())
            }
            _ => true,
        })
}

fn x86_64(code: &[u8]) -> Result<Vec<u64>, &'static str> {
    use iced_x86::{Code, Decoder, DecoderOptions, FlowControl, Instruction};

    let end = code.len() as u64;
    let mut decoder = Decoder::with_ip(64, code, 0, DecoderOptions::NONE);
    let mut instruction = Instruction::default();
    let mut found = Vec::new();
    while decoder.can_decode() {
        decoder.decode_out(&mut instruction);
        match instruction.flow_control() {
            FlowControl::Return if instruction.code() == Code::Retnq => {
                found.push(instruction.ip());
            }
            FlowControl::UnconditionalBranch | FlowControl::ConditionalBranch
                if instruction.near_branch_target() >= end =>
            {
                return Err(TAIL_CALL);
            }
            FlowControl::IndirectBranch => return Err(TAIL_CALL),
            FlowControl::Return | FlowControl::XbeginXabortXend => return Err(UNREADABLE),
            // `ud2` behind a call that does not return.
            FlowControl::Exception if instruction.is_invalid() => return Err(UNREADABLE),
            _ => {}
        }
    }
    Ok(found)
}

fn aarch64(code: &[u8]) -> Result<Vec<u64>, &'static str> {
    /// `ret`, `retaa`, `retab` (Arm architecture reference manual, section C6.2).
    const RETURNS: [u32; 3] = [0xd65f_03c0, 0xd65f_0bff, 0xd65f_0fff];
    let (words, rest) = code.as_chunks::<4>();
    if !rest.is_empty() {
        return Err(UNREADABLE);
    }
    let mut found = Vec::new();
    for (word, at) in words.iter().zip((0_u64..).step_by(4)) {
        let word = u32::from_le_bytes(*word);
        if RETURNS.contains(&word) {
            found.push(at);
            continue;
        }
        // Of what goes through a register, only `blr` and its kin come back.
        if word & 0xfe00_0000 == 0xd600_0000 && !matches!(word >> 21 & 0xf, 1 | 9) {
            return Err(TAIL_CALL);
        }
        let jump = jump(word);
        if let Some(jump) = jump
            && at
                .checked_add_signed(jump * 4)
                .is_none_or(|to| to >= code.len() as u64)
        {
            return Err(TAIL_CALL);
        }
    }
    Ok(found)
}

/// How many words a jump goes on, if this is one: `b`, `b.cond`, `cbz`, `cbnz`, `tbz` or `tbnz`.
fn jump(word: u32) -> Option<i64> {
    let signed = |bits: u32, low: u32| {
        let shifted = word << (32 - bits - low);
        i64::from(shifted.cast_signed() >> (32 - bits))
    };
    if word & 0xfc00_0000 == 0x1400_0000 {
        Some(signed(26, 0))
    } else if word & 0xff00_0000 == 0x5400_0000 || word & 0x7e00_0000 == 0x3400_0000 {
        Some(signed(19, 5))
    } else if word & 0x7e00_0000 == 0x3600_0000 {
        Some(signed(14, 5))
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOP: u32 = 0xd503_201f;
    const RET: u32 = 0xd65f_03c0;

    #[test]
    fn functions_for_x86_64() {
        // A stack frame, a call, and a branch to the second return.
        let code = [
            0x48, 0x83, 0xec, 0x08, 0xe8, 0, 0, 0, 0, 0x85, 0xc0, 0x74, 0x05, 0x48, 0x83, 0xc4,
            0x08, 0xc3, 0x31, 0xc0, 0x48, 0x83, 0xc4, 0x08, 0xc3,
        ];
        assert_eq!(x86_64(&code), Ok(vec![17, 24]));
        // The second byte of an instruction may look like a return.
        assert_eq!(x86_64(&[0xb0, 0xc3, 0xc3]), Ok(vec![2]));
    }

    #[test]
    fn other_ways_out_of_a_function_for_x86_64() {
        for code in [
            &[0xe9, 0x10, 0, 0, 0][..],
            &[0xeb, 0xf0],
            &[0x74, 0x10, 0xc3],
            // Through a register, and through memory.
            &[0xff, 0xe0],
            &[0xff, 0x25, 0, 0, 0, 0],
            &[0x3e, 0xff, 0xe0],
        ] {
            assert_eq!(x86_64(code), Err(TAIL_CALL), "{code:x?}");
        }
        assert_eq!(x86_64(&[0xc3, 0x48]), Err(UNREADABLE));
        assert_eq!(x86_64(&[0xc2, 8, 0]), Err(UNREADABLE));
    }

    #[test]
    fn functions_for_aarch64() {
        let code = |words: &[u32]| -> Vec<u8> {
            words.iter().flat_map(|word| word.to_le_bytes()).collect()
        };
        assert_eq!(aarch64(&code(&[NOP, RET])), Ok(vec![4]));
        // `cbz` forwards and `b` backwards, inside.
        let inside = [0xb400_0040, 0x1400_0001, RET, 0x17ff_ffff];
        assert_eq!(aarch64(&code(&inside)), Ok(vec![8]));
        for out in [
            0x1400_0010_u32,
            0x17ff_fff0,
            0x5400_0101,
            0xb400_0100,
            0x3600_0100,
            0xd61f_0000,
            0xd61f_0200,
            0xd71f_0a11,
        ] {
            assert_eq!(aarch64(&code(&[NOP, out, RET])), Err(TAIL_CALL), "{out:x}");
        }
        // A call comes back.
        assert_eq!(
            aarch64(&code(&[0x9400_0010, 0xd63f_0200, RET])),
            Ok(vec![8])
        );
        assert_eq!(aarch64(&[0xc0, 0x03]), Err(UNREADABLE));
    }

    #[test]
    fn functions_that_hand_over() {
        // A jump, a call and a conditional jump to 0x20 bytes ahead of the function.
        let other = [-0x20];
        for code in [
            &[0x31, 0xc0, 0xe9, 0xd9, 0xff, 0xff, 0xff][..],
            &[0xe8, 0xdb, 0xff, 0xff, 0xff, 0xc3],
            &[0x0f, 0x84, 0xda, 0xff, 0xff, 0xff, 0xc3],
        ] {
            assert!(!x86_64_is_alone(code, &other), "{code:x?}");
            assert!(x86_64_is_alone(code, &[-0x1f, 0]), "{code:x?}");
        }
        // Through a register, and through memory: to wherever that may be.
        for code in [&[0xff, 0xd0, 0xc3][..], &[0xff, 0x25, 0, 0, 0, 0]] {
            assert!(!x86_64_is_alone(code, &other), "{code:x?}");
        }
        assert!(x86_64_is_alone(&[0x31, 0xc0, 0xc3], &[0]));
    }

    #[test]
    fn a_function_must_return() {
        assert_eq!(returns(&[]), Err("it does not return"));
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_it_panic(code: Vec<u8>) {
            let _ = (x86_64(&code), aarch64(&code));
            let _ = x86_64_is_alone(&code, &[8]);
        }
    }
}
