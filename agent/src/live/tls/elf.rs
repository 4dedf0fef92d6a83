//! Where a file keeps functions: the symbol tables of an ELF file, read piece by piece.
//!
//! The file belongs to somebody else, perhaps to a container. Nothing of it is mapped, since it may be cut
//! short meanwhile, and each piece has a cap.

use core::mem::{offset_of, size_of};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use object::LittleEndian;
use object::elf::{
    self, ELFCLASS64, ELFDATA2LSB, ELFMAG, FileHeader64, PF_X, PT_LOAD, PT_TLS, ProgramHeader64,
    R_X86_64_JUMP_SLOT, Rela64, SHF_EXECINSTR, SHN_UNDEF, SHT_DYNSYM, SHT_RELA, SHT_SYMTAB,
    STT_FUNC, SectionHeader64, Sym64,
};
use thiserror::Error;

type FileHeader = FileHeader64<LittleEndian>;
type Segment = ProgramHeader64<LittleEndian>;
type Section = SectionHeader64<LittleEndian>;
type Symbol = Sym64<LittleEndian>;
type Relocation = Rela64<LittleEndian>;

/// Bytes of the shortest stub.
const STUB_LEN: u64 = 8;

/// Program headers and sections of one file. Linkers make a few dozen.
const HEADERS_MAX: u16 = 1024;
/// Bytes of a symbol table or of its names: 700,000 symbols.
const TABLE_MAX: u64 = 16 << 20;

/// Tables of one kind, and calls of wanted functions, in one file. Linkers make two or three.
const TABLES_MAX: usize = 8;
const CALLS_MAX: usize = 16;

/// The machine that this program runs on.
#[cfg(target_arch = "x86_64")]
const MACHINE: u16 = elf::EM_X86_64;
/// The machine that this program runs on.
#[cfg(target_arch = "aarch64")]
const MACHINE: u16 = elf::EM_AARCH64;
/// The machine that this program runs on.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
const MACHINE: u16 = elf::EM_NONE;

/// Why a file says nothing.
#[derive(Debug, Error)]
pub(in crate::live) enum Unreadable {
    /// It could not be read, or ends too soon.
    #[error("it cannot be read: {0}")]
    Io(#[from] io::Error),
    /// It is no program for this machine.
    #[error("it is no 64-bit ELF file for this machine")]
    Foreign,
    /// Its tables contradict themselves.
    #[error("its tables are broken")]
    Broken,
    /// Its tables are larger than what is read of a file.
    #[error("its symbol tables are too large")]
    TooLarge,
}

/// A function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Function {
    /// Which of the wanted names it has.
    pub(super) name: &'static str,
    /// Where its code begins in the file.
    pub(super) offset: u64,
    /// Bytes of code, zero where the file does not say.
    pub(super) len: u64,
}

/// The functions of `wanted` that `file` defines, each once.
pub(super) fn functions(file: &File, wanted: &[&'static str]) -> Result<Vec<Function>, Unreadable> {
    let Headers {
        segments, sections, ..
    } = headers(file)?;
    let mut found = Vec::new();
    let mut tables = 0;
    for kind in [SHT_DYNSYM, SHT_SYMTAB] {
        for at in sections.starts(size_of::<Section>()) {
            if sections.u32(at + offset_of!(Section, sh_type))? != kind {
                continue;
            }
            one_more(&mut tables, TABLES_MAX)?;
            let symbols = section(file, &sections, at)?;
            let names = section(file, &sections, linked(&sections, at)?)?;
            search(&symbols, &names, &segments, wanted, &mut found)?;
        }
    }
    Ok(found)
}

/// The first bytes of the section of `file` called `name`, `most` of them at most; `None` where it has none.
pub(in crate::live) fn start_of_section(
    file: &File,
    name: &[u8],
    most: usize,
) -> Result<Option<Vec<u8>>, Unreadable> {
    let Headers {
        sections, names, ..
    } = headers(file)?;
    let at = usize::from(names)
        .checked_mul(size_of::<Section>())
        .ok_or(Unreadable::Broken)?;
    let names = section(file, &sections, at)?;
    for at in sections.starts(size_of::<Section>()) {
        let own = sections.u32(at + offset_of!(Section, sh_name))? as usize;
        let own = names.0.get(own..).unwrap_or_default();
        if own
            .strip_prefix(name)
            .is_none_or(|rest| rest.first() != Some(&0))
        {
            continue;
        }
        let start = sections.u64(at + offset_of!(Section, sh_offset))?;
        let len = sections.u64(at + offset_of!(Section, sh_size))?;
        let bytes = Bytes::read(file, start, len.min(most as u64))?;
        return Ok(Some(bytes.0));
    }
    Ok(None)
}

/// Bytes and alignment of the thread-local storage of the program in `file`; `None` where it has none.
pub(in crate::live) fn thread_local_block(file: &File) -> Result<Option<(u64, u64)>, Unreadable> {
    let Headers { segments, .. } = headers(file)?;
    for at in segments.starts(size_of::<Segment>()) {
        if segments.u32(at + offset_of!(Segment, p_type))? == PT_TLS {
            let len = segments.u64(at + offset_of!(Segment, p_memsz))?;
            let align = segments.u64(at + offset_of!(Segment, p_align))?;
            return Ok(Some((len, align)));
        }
    }
    Ok(None)
}

/// Where `file` calls functions of `wanted` that other files define: the stubs of its procedure linkage
/// table, through which every such call goes. None on other processors than `x86_64`.
pub(super) fn stubs(file: &File, wanted: &[&'static str]) -> Result<Vec<Function>, Unreadable> {
    let mut found = Vec::new();
    if !cfg!(target_arch = "x86_64") {
        return Ok(found);
    }
    let Headers {
        segments, sections, ..
    } = headers(file)?;
    let slots = slots(file, &sections, wanted)?;
    let mut tables = 0;
    for at in sections.starts(size_of::<Section>()) {
        let flags = sections.u64(at + offset_of!(Section, sh_flags))?;
        let each = sections.u64(at + offset_of!(Section, sh_entsize))?;
        // Code in entries of one size is such a table.
        if flags & u64::from(SHF_EXECINSTR) == 0 || !(STUB_LEN..=4 * STUB_LEN).contains(&each) {
            continue;
        }
        one_more(&mut tables, TABLES_MAX)?;
        let start = sections.u64(at + offset_of!(Section, sh_addr))?;
        let code = section(file, &sections, at)?;
        let each = usize::try_from(each).map_err(|_| Unreadable::Broken)?;
        for (entry, stub) in (0_u64..).step_by(each).zip(code.0.chunks_exact(each)) {
            let address = start.wrapping_add(entry);
            let Some(slot) = jumps_through(stub, address) else {
                continue;
            };
            if let Some((name, _)) = slots.iter().find(|(_, own)| *own == slot)
                && let Some(offset) = file_offset(&segments, address)?
            {
                if found.len() >= CALLS_MAX {
                    return Err(Unreadable::TooLarge);
                }
                found.push(Function {
                    name,
                    offset,
                    len: 0,
                });
            }
        }
    }
    Ok(found)
}

/// Counts one more, of which there may be `most`.
const fn one_more(count: &mut usize, most: usize) -> Result<(), Unreadable> {
    *count += 1;
    if *count > most {
        return Err(Unreadable::TooLarge);
    }
    Ok(())
}

/// Where the addresses of `wanted` functions of other files are put when `file` is loaded.
fn slots(
    file: &File,
    sections: &Bytes,
    wanted: &[&'static str],
) -> Result<Vec<(&'static str, u64)>, Unreadable> {
    let mut slots = Vec::new();
    let mut tables = 0;
    for at in sections.starts(size_of::<Section>()) {
        if sections.u32(at + offset_of!(Section, sh_type))? != SHT_RELA {
            continue;
        }
        one_more(&mut tables, TABLES_MAX)?;
        let symbols_at = linked(sections, at)?;
        let symbols = section(file, sections, symbols_at)?;
        let names = section(file, sections, linked(sections, symbols_at)?)?;
        let relocations = section(file, sections, at)?;
        for at in relocations.starts(size_of::<Relocation>()) {
            let info = relocations.u64(at + offset_of!(Relocation, r_info))?;
            // The upper half is the symbol's number, which zero stands for none of.
            let symbol = usize::try_from(info >> 32).map_err(|_| Unreadable::Broken)?;
            if symbol == 0 || info & 0xffff_ffff != u64::from(R_X86_64_JUMP_SLOT) {
                continue;
            }
            let symbol = symbol
                .checked_mul(size_of::<Symbol>())
                .ok_or(Unreadable::Broken)?;
            let name = symbols.u32(symbol + offset_of!(Symbol, st_name))? as usize;
            if let Some(name) = names.name(name, wanted) {
                if slots.len() >= CALLS_MAX {
                    return Err(Unreadable::TooLarge);
                }
                slots.push((
                    name,
                    relocations.u64(at + offset_of!(Relocation, r_offset))?,
                ));
            }
        }
    }
    Ok(slots)
}

/// The address through which the stub at `address` jumps: `jmp *offset(%rip)`, perhaps behind a landing pad
/// and with a prefix.
fn jumps_through(stub: &[u8], address: u64) -> Option<u64> {
    const ENDBR64: [u8; 4] = [0xf3, 0x0f, 0x1e, 0xfa];
    let code = stub.strip_prefix(&ENDBR64).unwrap_or(stub);
    let code = code.strip_prefix(&[0xf2]).unwrap_or(code);
    let [0xff, 0x25, a, b, c, d, rest @ ..] = code else {
        return None;
    };
    let offset = i64::from(i32::from_le_bytes([*a, *b, *c, *d]));
    let next = address.wrapping_add((stub.len() - rest.len()) as u64);
    Some(next.wrapping_add_signed(offset))
}

/// The header of the section that the one with its header at `at` names.
fn linked(sections: &Bytes, at: usize) -> Result<usize, Unreadable> {
    let number = sections.u32(at + offset_of!(Section, sh_link))? as usize;
    number
        .checked_mul(size_of::<Section>())
        .ok_or(Unreadable::Broken)
}

/// The two tables that everything else hangs on.
struct Headers {
    segments: Bytes,
    sections: Bytes,
    /// The number of the section with the names of all.
    names: u16,
}

fn headers(file: &File) -> Result<Headers, Unreadable> {
    let header = Bytes::read(file, 0, size_of::<FileHeader>() as u64)?;
    if header.bytes(0, 4)? != ELFMAG
        || header.bytes(offset_of!(FileHeader, e_ident) + 4, 2)? != [ELFCLASS64, ELFDATA2LSB]
        || header.u16(offset_of!(FileHeader, e_machine))? != MACHINE
    {
        return Err(Unreadable::Foreign);
    }
    Ok(Headers {
        segments: table(
            file,
            header.u64(offset_of!(FileHeader, e_phoff))?,
            header.u16(offset_of!(FileHeader, e_phnum))?,
            size_of::<Segment>(),
        )?,
        sections: table(
            file,
            header.u64(offset_of!(FileHeader, e_shoff))?,
            header.u16(offset_of!(FileHeader, e_shnum))?,
            size_of::<Section>(),
        )?,
        names: header.u16(offset_of!(FileHeader, e_shstrndx))?,
    })
}

/// The first bytes of a function; fewer than asked for at the end of the file.
pub(super) fn code(file: &File, function: Function, len: u64) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(len).map_err(io::Error::other)?];
    let read = file.read_at(&mut bytes, function.offset)?;
    bytes.truncate(read);
    Ok(bytes)
}

fn search(
    symbols: &Bytes,
    names: &Bytes,
    segments: &Bytes,
    wanted: &[&'static str],
    found: &mut Vec<Function>,
) -> Result<(), Unreadable> {
    for at in symbols.starts(size_of::<Symbol>()) {
        let info = symbols.byte(at + offset_of!(Symbol, st_info))?;
        let index = symbols.u16(at + offset_of!(Symbol, st_shndx))?;
        if info & 0xf != STT_FUNC || index == SHN_UNDEF {
            continue;
        }
        let name = symbols.u32(at + offset_of!(Symbol, st_name))? as usize;
        let Some(name) = names.name(name, wanted) else {
            continue;
        };
        let address = symbols.u64(at + offset_of!(Symbol, st_value))?;
        if found.iter().all(|function| function.name != name)
            && let Some(offset) = file_offset(segments, address)?
        {
            let len = symbols.u64(at + offset_of!(Symbol, st_size))?;
            found.push(Function { name, offset, len });
        }
    }
    Ok(())
}

/// Where the code at `address` is in the file.
fn file_offset(segments: &Bytes, address: u64) -> Result<Option<u64>, Unreadable> {
    for at in segments.starts(size_of::<Segment>()) {
        let kind = segments.u32(at + offset_of!(Segment, p_type))?;
        let flags = segments.u32(at + offset_of!(Segment, p_flags))?;
        if kind != PT_LOAD || flags & PF_X == 0 {
            continue;
        }
        let start = segments.u64(at + offset_of!(Segment, p_vaddr))?;
        let len = segments.u64(at + offset_of!(Segment, p_filesz))?;
        if let Some(within) = address.checked_sub(start).filter(|within| *within < len) {
            let offset = segments.u64(at + offset_of!(Segment, p_offset))?;
            return Ok(offset.checked_add(within));
        }
    }
    Ok(None)
}

fn table(file: &File, at: u64, count: u16, each: usize) -> Result<Bytes, Unreadable> {
    if count > HEADERS_MAX {
        return Err(Unreadable::TooLarge);
    }
    Bytes::read(file, at, u64::from(count) * each as u64)
}

/// What the section whose header is at `header` holds.
fn section(file: &File, sections: &Bytes, header: usize) -> Result<Bytes, Unreadable> {
    Bytes::read(
        file,
        sections.u64(header + offset_of!(Section, sh_offset))?,
        sections.u64(header + offset_of!(Section, sh_size))?,
    )
}

/// A piece of a file.
struct Bytes(Vec<u8>);

impl Bytes {
    fn read(file: &File, at: u64, len: u64) -> Result<Self, Unreadable> {
        if len > TABLE_MAX {
            return Err(Unreadable::TooLarge);
        }
        // Room is made for what is there only: a header may promise more than the file has.
        let end = at.checked_add(len).ok_or(Unreadable::Broken)?;
        if end > file.metadata()?.len() {
            return Err(Unreadable::Broken);
        }
        let mut bytes = vec![0; usize::try_from(len).map_err(|_| Unreadable::TooLarge)?];
        file.read_exact_at(&mut bytes, at)?;
        Ok(Self(bytes))
    }

    /// Where whole entries of `each` bytes begin.
    fn starts(&self, each: usize) -> impl Iterator<Item = usize> + use<> {
        (0..self.0.len() / each).map(move |n| n * each)
    }

    fn bytes(&self, at: usize, len: usize) -> Result<&[u8], Unreadable> {
        self.0
            .get(at..)
            .and_then(|rest| rest.get(..len))
            .ok_or(Unreadable::Broken)
    }

    fn array<const N: usize>(&self, at: usize) -> Result<[u8; N], Unreadable> {
        self.0
            .get(at..)
            .and_then(|rest| rest.first_chunk())
            .copied()
            .ok_or(Unreadable::Broken)
    }

    fn byte(&self, at: usize) -> Result<u8, Unreadable> {
        self.array(at).map(|[byte]| byte)
    }

    fn u16(&self, at: usize) -> Result<u16, Unreadable> {
        self.array(at).map(u16::from_le_bytes)
    }

    fn u32(&self, at: usize) -> Result<u32, Unreadable> {
        self.array(at).map(u32::from_le_bytes)
    }

    fn u64(&self, at: usize) -> Result<u64, Unreadable> {
        self.array(at).map(u64::from_le_bytes)
    }

    /// Which of `wanted` the string at `at` is.
    fn name(&self, at: usize, wanted: &[&'static str]) -> Option<&'static str> {
        let text = self.0.get(at..)?;
        wanted.iter().copied().find(|name| {
            text.strip_prefix(name.as_bytes())
                .is_some_and(|rest| rest.first() == Some(&0))
        })
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use proptest::prelude::*;

    use super::*;

    const CODE_AT: u64 = 0x40;
    const ADDRESS: u64 = 0x1000;
    const WANTED: [&str; 2] = ["SSL_free", "SSL_new"];

    /// A file that defines `SSL_free` eight bytes into its code, and uses `SSL_new` of another one.
    fn library() -> Vec<u8> {
        let names = b"\0SSL_free\0SSL_new\0";
        let mut symbols = vec![0; size_of::<Symbol>()];
        for (name, index, address) in [(1_u32, 1_u16, ADDRESS + 8), (10, SHN_UNDEF, 0)] {
            let mut symbol = vec![0; size_of::<Symbol>()];
            put(
                &mut symbol,
                offset_of!(Symbol, st_name),
                &name.to_le_bytes(),
            );
            put(&mut symbol, offset_of!(Symbol, st_info), &[STT_FUNC]);
            put(
                &mut symbol,
                offset_of!(Symbol, st_shndx),
                &index.to_le_bytes(),
            );
            put(
                &mut symbol,
                offset_of!(Symbol, st_value),
                &address.to_le_bytes(),
            );
            symbols.extend(symbol);
        }
        let segments_at = CODE_AT + 16;
        let names_at = segments_at + size_of::<Segment>() as u64;
        let symbols_at = names_at + names.len() as u64;
        let sections_at = symbols_at + symbols.len() as u64;

        let mut file = vec![0; CODE_AT as usize];
        put(&mut file, 0, &ELFMAG);
        put(&mut file, 4, &[ELFCLASS64, ELFDATA2LSB]);
        put(
            &mut file,
            offset_of!(FileHeader, e_machine),
            &MACHINE.to_le_bytes(),
        );
        put(
            &mut file,
            offset_of!(FileHeader, e_phoff),
            &segments_at.to_le_bytes(),
        );
        put(
            &mut file,
            offset_of!(FileHeader, e_phnum),
            &1_u16.to_le_bytes(),
        );
        put(
            &mut file,
            offset_of!(FileHeader, e_shoff),
            &sections_at.to_le_bytes(),
        );
        put(
            &mut file,
            offset_of!(FileHeader, e_shnum),
            &2_u16.to_le_bytes(),
        );
        file.extend([0xc3; 16]);
        let mut segment = vec![0; size_of::<Segment>()];
        put(
            &mut segment,
            offset_of!(Segment, p_type),
            &PT_LOAD.to_le_bytes(),
        );
        put(
            &mut segment,
            offset_of!(Segment, p_flags),
            &PF_X.to_le_bytes(),
        );
        put(
            &mut segment,
            offset_of!(Segment, p_offset),
            &CODE_AT.to_le_bytes(),
        );
        put(
            &mut segment,
            offset_of!(Segment, p_vaddr),
            &ADDRESS.to_le_bytes(),
        );
        put(
            &mut segment,
            offset_of!(Segment, p_filesz),
            &16_u64.to_le_bytes(),
        );
        file.extend(segment);
        file.extend(names);
        file.extend(&symbols);
        for (kind, at, len) in [
            (SHT_DYNSYM, symbols_at, symbols.len()),
            (elf::SHT_STRTAB, names_at, names.len()),
        ] {
            let mut section = vec![0; size_of::<Section>()];
            put(
                &mut section,
                offset_of!(Section, sh_type),
                &kind.to_le_bytes(),
            );
            put(
                &mut section,
                offset_of!(Section, sh_offset),
                &at.to_le_bytes(),
            );
            put(
                &mut section,
                offset_of!(Section, sh_size),
                &(len as u64).to_le_bytes(),
            );
            put(
                &mut section,
                offset_of!(Section, sh_link),
                &1_u32.to_le_bytes(),
            );
            file.extend(section);
        }
        file
    }

    fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
        bytes[at..at + value.len()].copy_from_slice(value);
    }

    fn read(bytes: &[u8]) -> Result<Vec<Function>, Unreadable> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        let _ = stubs(&file, &WANTED);
        functions(&file, &WANTED)
    }

    #[test]
    fn stubs_are_told_by_where_they_jump() {
        // Plain, and with a landing pad and a prefix, as GNU's linker makes them.
        let plain = [0xff, 0x25, 0x10, 0, 0, 0, 0x66, 0x90];
        assert_eq!(jumps_through(&plain, 0x1000), Some(0x1016));
        let marked = [
            0xf3, 0x0f, 0x1e, 0xfa, 0xf2, 0xff, 0x25, 0xf0, 0xff, 0xff, 0xff, 0,
        ];
        assert_eq!(jumps_through(&marked, 0x1000), Some(0x0ffb));
        assert_eq!(jumps_through(&[0xe9, 0, 0, 0, 0], 0x1000), None);
    }

    #[test]
    fn functions_are_found_where_they_are_defined() {
        let found = read(&library()).unwrap();
        let expected = Function {
            name: "SSL_free",
            offset: CODE_AT + 8,
            len: 0,
        };
        assert_eq!(found, [expected]);
    }

    #[test]
    fn promises_that_a_file_does_not_keep_are_refused() {
        let mut long = library();
        let sections = long.len() - 2 * size_of::<Section>();
        for (size, wanted) in [(1 << 20, "broken"), (u64::MAX, "large")] {
            put(
                &mut long,
                sections + offset_of!(Section, sh_size),
                &u64::to_le_bytes(size),
            );
            let error = read(&long).unwrap_err().to_string();
            assert!(error.contains(wanted), "{error}");
        }
        assert!(matches!(read(b"\x7fELF"), Err(Unreadable::Broken)));
        assert!(matches!(read(&[0; 4096]), Err(Unreadable::Foreign)));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(
            at in 0_usize..400, value: u64, width in 1_usize..=8, end in 0_usize..=500
        ) {
            let mut bytes = library();
            let at = at.min(bytes.len() - width);
            put(&mut bytes, at, &value.to_le_bytes()[..width]);
            bytes.truncate(end);
            let _ = read(&bytes);
        }
    }
}
