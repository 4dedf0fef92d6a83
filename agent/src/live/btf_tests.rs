use proptest::prelude::*;

use super::*;

/// Builds BTF by hand.
#[derive(Default)]
struct Builder {
    types: Vec<u32>,
    strings: Vec<u8>,
    next: u32,
}

impl Builder {
    fn new() -> Self {
        Self {
            strings: vec![0],
            next: 1,
            ..Self::default()
        }
    }

    fn name(&mut self, name: &str) -> u32 {
        if name.is_empty() {
            return 0;
        }
        let at = u32::try_from(self.strings.len()).unwrap();
        self.strings.extend_from_slice(name.as_bytes());
        self.strings.push(0);
        at
    }

    fn add(&mut self, name: &str, kind: u32, count: u32, operand: u32, rest: &[u32]) -> u32 {
        let name = self.name(name);
        self.types.extend([name, kind << 24 | count, operand]);
        self.types.extend_from_slice(rest);
        self.next += 1;
        self.next - 1
    }

    fn members(&mut self, members: &[(&str, u32, u32)]) -> Vec<u32> {
        members
            .iter()
            .flat_map(|(name, id, bits)| [self.name(name), *id, *bits])
            .collect()
    }

    fn build(&self) -> Vec<u8> {
        let types: Vec<u8> = self
            .types
            .iter()
            .flat_map(|word| word.to_ne_bytes())
            .collect();
        let (types_len, strings_len) = (
            u32::try_from(types.len()).unwrap(),
            u32::try_from(self.strings.len()).unwrap(),
        );
        let mut out = Vec::new();
        for word in [
            u32::from(MAGIC) | 1 << 16,
            24,
            0,
            types_len,
            types_len,
            strings_len,
        ] {
            out.extend(word.to_ne_bytes());
        }
        out.extend(types);
        out.extend(&self.strings);
        out
    }
}

/// `struct outer { int first; union { struct { short a; short b; }; int c; }; const char *tail; }` and
/// what else the reader looks up.
fn sample() -> Vec<u8> {
    let mut b = Builder::new();
    let int = b.add("int", INT, 0, 4, &[32]);
    let short = b.add("short", INT, 0, 2, &[16]);
    let char = b.add("char", INT, 0, 1, &[8]);
    let inner = b.members(&[("a", short, 0), ("b", short, 16)]);
    let inner = b.add("", STRUCT, 2, 4, &inner);
    let either = b.members(&[("", inner, 0), ("c", int, 0)]);
    let either = b.add("", UNION, 2, 4, &either);
    let qualified = b.add("", CONST, 0, char, &[]);
    let pointer = b.add("", PTR, 0, qualified, &[]);
    let name = b.add("", ARRAY, 0, 0, &[char, int, 16]);
    let outer = b.members(&[
        ("first", int, 0),
        ("", either, 32),
        ("tail", pointer, 64),
        ("comm", name, 128),
    ]);
    let outer = b.add("outer", STRUCT, 4, 32, &outer);
    let alias = b.add("outer_t", TYPEDEF, 0, outer, &[]);
    let holder = b.members(&[("pad", int, 0), ("held", alias, 64)]);
    b.add("holder", STRUCT, 2, 40, &holder);
    let bits = b.members(&[("narrow", int, 3 << 24 | 32)]);
    b.add("packed", STRUCT, 1 | 1 << 31, 8, &bits);
    let proto = b.add("", FUNC_PROTO, 4, 0, &[0, 8, 0, 8, 0, 8, 0, 1]);
    let proto = b.add("", PTR, 0, proto, &[]);
    b.add("btf_trace_tcp_send_reset", TYPEDEF, 0, proto, &[]);
    let (zero, two) = (b.name("R_NONE"), b.name("R_TWO"));
    b.add("reasons", ENUM, 2, 4, &[zero, 0, two, 2]);
    b.build()
}

#[test]
fn fields_are_found_by_name() {
    let bytes = sample();
    let btf = Btf::parse(&bytes).unwrap();
    assert_eq!(btf.offset("outer", "first", 4), Ok(0));
    assert_eq!(
        btf.offset("outer", "b", 2),
        Ok(6),
        "inside two unnamed members"
    );
    assert_eq!(btf.offset("outer", "c", 4), Ok(4));
    assert_eq!(btf.offset("outer", "tail", 8), Ok(8));
    assert_eq!(btf.offset("outer", "comm", 16), Ok(16));
    assert_eq!(
        btf.offset("holder", "held.b", 2),
        Ok(14),
        "through a typedef"
    );
    assert_eq!(btf.tracepoint_arity("tcp_send_reset"), Ok(3));
    assert_eq!(
        btf.enumerators("reasons").unwrap(),
        [(0, "R_NONE"), (2, "R_TWO")]
    );
}

#[test]
fn what_is_missing_is_named() {
    let bytes = sample();
    let btf = Btf::parse(&bytes).unwrap();
    let text = |result: Result<u32, BtfError>| result.unwrap_err().to_string();
    assert_eq!(
        text(btf.offset("sock", "sk_err", 4)),
        "this kernel has no type struct sock"
    );
    assert_eq!(
        text(btf.offset("outer", "sk_err", 4)),
        "this kernel's outer has no field sk_err"
    );
    assert_eq!(
        text(btf.offset("outer", "first", 8)),
        "this kernel's outer.first has 4 bytes, not 8"
    );
    assert!(
        btf.offset("packed", "narrow", 4).is_err(),
        "a bit field has no offset in bytes"
    );
    assert!(btf.offset("outer", "first.more", 4).is_err());
    assert!(btf.tracepoint_arity("tcp_receive_reset").is_err());
    assert!(btf.enumerators("outer").is_err());
}

#[test]
fn cycles_end() {
    let mut b = Builder::new();
    b.add("loop", TYPEDEF, 0, 2, &[]);
    b.add("loop_too", TYPEDEF, 0, 1, &[]);
    let own = b.members(&[("", 3, 0)]);
    b.add("own", STRUCT, 1, 4, &own);
    let bad = b.members(&[("x", 1, 0)]);
    b.add("bad", STRUCT, 1, 4, &bad);
    let bytes = b.build();
    let btf = Btf::parse(&bytes).unwrap();
    assert!(btf.offset("own", "x", 4).is_err());
    assert!(btf.offset("bad", "x", 4).is_err());
}

#[test]
fn every_truncation_is_an_error() {
    let bytes = sample();
    for len in 0..bytes.len() {
        assert!(
            Btf::parse(&bytes[..len]).is_err(),
            "{len} of {} bytes",
            bytes.len()
        );
    }
}

#[test]
fn this_kernel_has_what_is_needed() {
    let Ok(bytes) = std::fs::read("/sys/kernel/btf/vmlinux") else {
        return;
    };
    let btf = Btf::parse(&bytes).unwrap();
    assert_eq!(btf.offset("sock_common", "skc_family", 2), Ok(16));
    assert!(btf.offset("net", "ns.inum", 4).is_ok());
    assert_eq!(btf.tracepoint_arity("inet_sock_set_state"), Ok(3));
}

proptest! {
    #[test]
    fn a_changed_byte_never_panics(at in 0_usize..1000, value: u8) {
        let mut bytes = sample();
        let at = at % bytes.len();
        bytes[at] = value;
        if let Ok(btf) = Btf::parse(&bytes) {
            for (of, field, size) in [("outer", "b", 2), ("holder", "held.b", 2), ("packed", "narrow", 4)] {
                let _ = btf.offset(of, field, size);
            }
            let _ = btf.tracepoint_arity("tcp_send_reset");
            let _ = btf.enumerators("reasons");
        }
    }

    #[test]
    fn random_bytes_never_panic(bytes: Vec<u8>) {
        let _ = Btf::parse(&bytes);
    }
}
