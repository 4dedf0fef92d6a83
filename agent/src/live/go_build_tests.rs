use std::io::Write as _;
use std::mem::offset_of;

use object::LittleEndian;
use object::elf::{
    ELFCLASS64, ELFDATA2LSB, ELFMAG, FileHeader64, PT_TLS, ProgramHeader64, SectionHeader64,
};
use proptest::prelude::*;

use super::*;

type FileHeader = FileHeader64<LittleEndian>;
type Segment = ProgramHeader64<LittleEndian>;
type Section = SectionHeader64<LittleEndian>;

/// As Go 1.26.8 writes it.
const BUILDINFO: &[u8] =
    b"\xff Go buildinf:\x08\x02\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x08go1.26.8\xda\x6d";

const NAMES: &[u8] = b"\0.go.buildinfo\0.shstrtab\0";

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

/// A program with that section, and perhaps with thread-local storage of so many bytes, aligned so.
fn program(buildinfo: &[u8], storage: Option<(u64, u64)>) -> Vec<u8> {
    let mut file = vec![0; size_of::<FileHeader>()];
    put(&mut file, 0, &ELFMAG);
    put(&mut file, 4, &[ELFCLASS64, ELFDATA2LSB]);
    let machine = if cfg!(target_arch = "aarch64") {
        object::elf::EM_AARCH64
    } else {
        object::elf::EM_X86_64
    };
    let segments_at = file.len();
    file.extend(vec![0; size_of::<Segment>()]);
    if let Some((len, align)) = storage {
        for (at, value) in [
            (offset_of!(Segment, p_memsz), len),
            (offset_of!(Segment, p_align), align),
        ] {
            put(&mut file, segments_at + at, &value.to_le_bytes());
        }
        put(&mut file, segments_at, &PT_TLS.to_le_bytes());
    }
    let info_at = file.len();
    file.extend(buildinfo);
    let names_at = file.len();
    file.extend(NAMES);
    let sections_at = file.len();
    for (name, at, len) in [
        (0_u32, 0, 0),
        (1, info_at, buildinfo.len()),
        (15, names_at, NAMES.len()),
    ] {
        let mut section = vec![0; size_of::<Section>()];
        put(&mut section, 0, &name.to_le_bytes());
        for (field, value) in [
            (offset_of!(Section, sh_offset), at),
            (offset_of!(Section, sh_size), len),
        ] {
            put(&mut section, field, &(value as u64).to_le_bytes());
        }
        file.extend(section);
    }
    for (at, value) in [
        (offset_of!(FileHeader, e_machine), machine),
        (offset_of!(FileHeader, e_phnum), 1),
        (offset_of!(FileHeader, e_shnum), 3),
        (offset_of!(FileHeader, e_shstrndx), 2),
    ] {
        put(&mut file, at, &value.to_le_bytes());
    }
    for (at, value) in [
        (offset_of!(FileHeader, e_phoff), segments_at),
        (offset_of!(FileHeader, e_shoff), sections_at),
    ] {
        put(&mut file, at, &(value as u64).to_le_bytes());
    }
    file
}

/// A program of that release, with nothing else in its thread-local storage.
pub(in crate::live) fn program_of(version: &str) -> File {
    let len = u8::try_from(version.len()).unwrap();
    let head = BUILDINFO.get(..HEADER_LEN).unwrap();
    let section = [head, &[len], version.as_bytes()].concat();
    file(&program(&section, None))
}

/// A program that points to what built it.
pub(in crate::live) fn program_before_1_18() -> File {
    let mut section = BUILDINFO.get(..HEADER_LEN).unwrap().to_vec();
    section[15] = 0;
    file(&program(&section, None))
}

fn file(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file
}

#[test]
fn a_program_says_which_release_built_it() {
    let program = program(BUILDINFO, None);
    let said = version(&file(&program)).unwrap();
    assert_eq!(said, Some(Said::Version("go1.26.8".to_owned())));
    // Another language.
    let mut other = program;
    let names = other.windows(4).position(|bytes| bytes == b".go.").unwrap();
    other[names] = b'x';
    assert_eq!(version(&file(&other)).unwrap(), None);
}

#[test]
fn strings_that_lie_elsewhere_or_are_cut_short_say_nothing() {
    let changed = |at: usize, value: u8| {
        let mut bytes = BUILDINFO.to_vec();
        bytes[at] = value;
        said(&bytes)
    };
    // Pointers, as before Go 1.18; another magic number; longer than the section, or than any version; no text.
    for (at, value, expected) in [
        (15, 0, Some(Said::Elsewhere)),
        (0, 0, None),
        (32, 60, Some(Said::Nothing)),
        (32, 0x88, Some(Said::Nothing)),
        (33, 0xff, Some(Said::Nothing)),
    ] {
        assert_eq!(changed(at, value), expected, "{at}");
    }
    for end in 0..41 {
        let expected = (end >= 14).then_some(Said::Nothing);
        assert_eq!(said(&BUILDINFO[..end]), expected, "{end}");
    }
}

#[test]
fn only_releases_are_known() {
    let parsed = |text| GoVersion::parse(text).map(|version| version.to_string());
    assert_eq!(parsed("go1.21").as_deref(), Some("Go 1.21.0"));
    assert_eq!(parsed("go1.26.8").as_deref(), Some("Go 1.26.8"));
    for other in [
        "",
        "go1",
        "go1.",
        "go2.1",
        "go1.26.",
        "go1.26.8.1",
        "go1.26rc1",
        "go1.+26",
        "go1.26.8 X:boringcrypto",
        "go1.99999999",
        "devel go1.27-0123456789",
    ] {
        assert_eq!(parsed(other), None, "{other}");
    }
}

#[test]
fn the_pointer_is_right_below_the_thread_pointer_where_nothing_else_is_there() {
    for (storage, expected) in [
        (None, Some(8)),
        (Some((8, 8)), Some(8)),
        (Some((8, 64)), None),
        (Some((16, 8)), None),
        (Some((0, 1)), None),
    ] {
        let program = program(BUILDINFO, storage);
        let found = below_thread_pointer(&file(&program)).unwrap();
        assert_eq!(found, expected, "{storage:?}");
    }
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(
        at in 0_usize..500, value: u64, width in 1_usize..=8, end in 0_usize..=600
    ) {
        let mut bytes = program(BUILDINFO, Some((8, 8)));
        let at = at.min(bytes.len() - width);
        put(&mut bytes, at, &value.to_le_bytes()[..width]);
        bytes.truncate(end);
        let file = file(&bytes);
        let _ = (version(&file), below_thread_pointer(&file));
    }

    #[test]
    fn no_section_makes_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..120)) {
        let _ = said(&[b"\xff Go buildinf:".as_slice(), &bytes].concat());
        let _ = GoVersion::parse(&String::from_utf8_lossy(&bytes));
    }
}
