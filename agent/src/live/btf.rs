//! Reads the kernel's type information (BTF): where a field lies, how many arguments a tracepoint has,
//! what an enumerator is called.
//!
//! A pure function of bytes. It resolves by name alone and compiles no kernel layout in; what a
//! missing name means is the caller's decision.

use thiserror::Error;

/// Why a name could not be resolved.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum BtfError {
    /// Not BTF, or cut short.
    #[error("the type information is malformed: {0}")]
    Malformed(&'static str),
    /// A kind of type that this reader does not know; nothing after it can be found.
    #[error("the type information has a type of unknown kind {0}")]
    UnknownKind(u32),
    /// No such type.
    #[error("this kernel has no type {0}")]
    NoType(String),
    /// No such member.
    #[error("this kernel's {of} has no field {field}")]
    NoField {
        /// The type.
        of: String,
        /// The member.
        field: String,
    },
    /// The member is there and has another size.
    #[error("this kernel's {of}.{field} has {found} bytes, not {expected}")]
    Size {
        /// The type.
        of: String,
        /// The member.
        field: String,
        /// Its size.
        found: u32,
        /// The size that was asked for.
        expected: u32,
    },
}

/// `BTF_MAGIC` of `include/uapi/linux/btf.h`.
const MAGIC: u16 = 0xeb9f;

const INT: u32 = 1;
const PTR: u32 = 2;
const ARRAY: u32 = 3;
const STRUCT: u32 = 4;
const UNION: u32 = 5;
const ENUM: u32 = 6;
const FWD: u32 = 7;
const TYPEDEF: u32 = 8;
const VOLATILE: u32 = 9;
const CONST: u32 = 10;
const RESTRICT: u32 = 11;
const FUNC: u32 = 12;
const FUNC_PROTO: u32 = 13;
const VAR: u32 = 14;
const DATASEC: u32 = 15;
const FLOAT: u32 = 16;
const DECL_TAG: u32 = 17;
const TYPE_TAG: u32 = 18;
const ENUM64: u32 = 19;

/// Types that may lie inside each other or name each other before we stop following them: the kernel's
/// own use fewer than ten, a crafted cycle would never end.
const DEPTH: u32 = 32;

/// Size of a pointer; hopscope runs on 64-bit kernels only.
const POINTER: u32 = 8;

/// The types of a kernel.
pub(super) struct Btf<'a> {
    /// Where each type starts in `types`, by type id; id zero is `void` and not in the file.
    starts: Vec<usize>,
    types: &'a [u8],
    strings: &'a [u8],
}

/// The head of one type.
#[derive(Clone, Copy)]
struct Type<'a> {
    name: u32,
    kind: u32,
    count: u32,
    bitfields: bool,
    /// Size in bytes, or the id of the type that this one refers to.
    operand: u32,
    /// What follows the head.
    rest: &'a [u8],
}

impl<'a> Btf<'a> {
    /// The types in `bytes`, as in `/sys/kernel/btf/vmlinux`.
    pub(super) fn parse(bytes: &'a [u8]) -> Result<Self, BtfError> {
        let header = |at| word(bytes, at).ok_or(BtfError::Malformed("the header is cut short"));
        if header(0)? & 0xffff != u32::from(MAGIC) {
            return Err(BtfError::Malformed(
                "it does not begin with the BTF magic number",
            ));
        }
        let (start, types_at, types_len) = (header(4)?, header(8)?, header(12)?);
        let (strings_at, strings_len) = (header(16)?, header(20)?);
        let section = |at: u32, len: u32| {
            let from = (start as usize).checked_add(at as usize)?;
            bytes.get(from..from.checked_add(len as usize)?)
        };
        let outside = BtfError::Malformed("a section lies outside the file");
        let types = section(types_at, types_len).ok_or_else(|| outside.clone())?;
        let strings = section(strings_at, strings_len).ok_or(outside)?;
        let mut btf = Self {
            starts: vec![usize::MAX],
            types,
            strings,
        };
        let mut at = 0;
        while at < types.len() {
            let ty = btf
                .head(at)
                .ok_or(BtfError::Malformed("a type is cut short"))?;
            btf.starts.push(at);
            at += 12 + trailer(&ty)?;
        }
        if at != types.len() {
            return Err(BtfError::Malformed("the last type is cut short"));
        }
        Ok(btf)
    }

    /// Offset in bytes of a member of struct `of`, found through unnamed members; `path` names members
    /// of members with dots. Its size has to be `size`.
    pub(super) fn offset(&self, of: &str, path: &str, size: u32) -> Result<u32, BtfError> {
        let missing = || BtfError::NoField {
            of: of.to_owned(),
            field: path.to_owned(),
        };
        let mut ty = self
            .find(of, |kind| kind == STRUCT || kind == UNION)
            .ok_or_else(|| BtfError::NoType(format!("struct {of}")))?;
        let mut offset = 0_u32;
        let mut last = 0;
        for name in path.split('.') {
            let (bits, member) = self.member(&ty, name, DEPTH).ok_or_else(missing)?;
            offset = offset.checked_add(bits / 8).ok_or_else(missing)?;
            last = member;
            match self.resolve(member) {
                Some(next) => ty = next,
                None => return Err(missing()),
            }
        }
        match self.size(last, DEPTH) {
            Some(found) if found == size => Ok(offset),
            found => Err(BtfError::Size {
                of: of.to_owned(),
                field: path.to_owned(),
                found: found.unwrap_or(0),
                expected: size,
            }),
        }
    }

    /// Number of arguments of raw tracepoint `name`, the context that BPF hides not counted.
    pub(super) fn tracepoint_arity(&self, name: &str) -> Result<u32, BtfError> {
        let name = format!("btf_trace_{name}");
        let missing = || BtfError::NoType(name.clone());
        let typedef = self
            .find(&name, |kind| kind == TYPEDEF)
            .ok_or_else(missing)?;
        let pointer = self.resolve(typedef.operand).ok_or_else(missing)?;
        let proto = self.resolve(pointer.operand).ok_or_else(missing)?;
        if pointer.kind != PTR || proto.kind != FUNC_PROTO {
            return Err(missing());
        }
        Ok(proto.count.saturating_sub(1))
    }

    /// The enumerators of enum `name`, each with its number.
    pub(super) fn enumerators(&self, name: &str) -> Result<Vec<(i32, &'a str)>, BtfError> {
        let ty = self
            .find(name, |kind| kind == ENUM)
            .ok_or_else(|| BtfError::NoType(format!("enum {name}")))?;
        Ok(ty
            .rest
            .chunks_exact(8)
            .take(ty.count as usize)
            .filter_map(|entry| {
                let value = word(entry, 4)?.cast_signed();
                Some((value, self.string(word(entry, 0)?)?))
            })
            .collect())
    }

    fn head(&self, at: usize) -> Option<Type<'a>> {
        let info = word(self.types, at.checked_add(4)?)?;
        Some(Type {
            name: word(self.types, at)?,
            kind: info >> 24 & 0x1f,
            count: info & 0xffff,
            bitfields: info >> 31 != 0,
            operand: word(self.types, at.checked_add(8)?)?,
            rest: self.types.get(at.checked_add(12)?..)?,
        })
    }

    fn get(&self, id: u32) -> Option<Type<'a>> {
        self.head(
            *self
                .starts
                .get(id as usize)
                .filter(|start| **start != usize::MAX)?,
        )
    }

    /// The type behind names and qualifiers.
    fn resolve(&self, id: u32) -> Option<Type<'a>> {
        let mut ty = self.get(id)?;
        for _ in 0..DEPTH {
            match ty.kind {
                TYPEDEF | VOLATILE | CONST | RESTRICT | TYPE_TAG => {
                    ty = self.get(ty.operand)?;
                }
                _ => return Some(ty),
            }
        }
        None
    }

    fn find(&self, name: &str, kind: impl Fn(u32) -> bool) -> Option<Type<'a>> {
        self.starts
            .iter()
            .skip(1)
            .filter_map(|start| self.head(*start))
            .find(|ty| kind(ty.kind) && self.string(ty.name) == Some(name))
    }

    /// Offset in bits and type of the member called `name`. A bit field is not found.
    fn member(&self, of: &Type<'a>, name: &str, depth: u32) -> Option<(u32, u32)> {
        if depth == 0 || !matches!(of.kind, STRUCT | UNION) {
            return None;
        }
        for entry in of.rest.chunks_exact(12).take(of.count as usize) {
            let (own, id, position) = (word(entry, 0)?, word(entry, 4)?, word(entry, 8)?);
            // With the flag the upper eight bits are the size of a bit field.
            let (bits, bit_size) = if of.bitfields {
                (position & 0x00ff_ffff, position >> 24)
            } else {
                (position, 0)
            };
            if own == 0 {
                let inner = self
                    .resolve(id)
                    .and_then(|ty| self.member(&ty, name, depth - 1));
                if let Some((inner, id)) = inner {
                    return Some((bits.checked_add(inner)?, id));
                }
            } else if self.string(own) == Some(name) {
                return (bit_size == 0 && bits % 8 == 0).then_some((bits, id));
            }
        }
        None
    }

    fn size(&self, id: u32, depth: u32) -> Option<u32> {
        let ty = self.resolve(id)?;
        match ty.kind {
            PTR => Some(POINTER),
            INT | STRUCT | UNION | ENUM | ENUM64 | FLOAT => Some(ty.operand),
            ARRAY if depth > 0 => self
                .size(word(ty.rest, 0)?, depth - 1)?
                .checked_mul(word(ty.rest, 8)?),
            _ => None,
        }
    }

    fn string(&self, at: u32) -> Option<&'a str> {
        let rest = self.strings.get(at as usize..)?;
        let len = rest.iter().position(|byte| *byte == 0)?;
        std::str::from_utf8(&rest[..len]).ok()
    }
}

/// Bytes that follow the head of a type.
fn trailer(ty: &Type<'_>) -> Result<usize, BtfError> {
    let count = ty.count as usize;
    Ok(match ty.kind {
        PTR | FWD | TYPEDEF | VOLATILE | CONST | RESTRICT | FUNC | FLOAT | TYPE_TAG => 0,
        INT | VAR | DECL_TAG => 4,
        ARRAY => 12,
        ENUM | FUNC_PROTO => count * 8,
        STRUCT | UNION | DATASEC | ENUM64 => count * 12,
        other => return Err(BtfError::UnknownKind(other)),
    })
}

/// The kernel writes BTF in its own byte order, which is ours.
fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_ne_bytes(bytes.try_into().ok()?))
}

#[cfg(test)]
#[path = "btf_tests.rs"]
mod tests;
