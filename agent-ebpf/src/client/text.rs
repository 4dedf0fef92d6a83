//! Where the bytes of a client's connection are.

use aya_ebpf::helpers::generated::{bpf_probe_read_user, bpf_skb_load_bytes};

use crate::segment::{START_LEN, Segment};

/// Bytes of a connection, in a packet or in the memory of the process that reads or writes them.
pub(super) trait Text {
    /// Copies `len` bytes to `room`, from the place `at` on. Returns false where they could not be read.
    ///
    /// # Safety
    ///
    /// `room` must be valid for writes of `len` bytes.
    unsafe fn load(&self, at: u32, room: *mut u8, len: u32) -> bool;

    /// The first bytes from the place `at` on, where there are as many.
    fn start(&self, at: u32) -> Option<[u8; START_LEN]>;
}

impl Text for Segment {
    #[inline(always)]
    unsafe fn load(&self, at: u32, room: *mut u8, len: u32) -> bool {
        // SAFETY: as the caller says; it fails where the packet is shorter.
        unsafe { bpf_skb_load_bytes(self.skb.cast(), at, room.cast(), len) == 0 }
    }

    #[inline(always)]
    fn start(&self, at: u32) -> Option<[u8; START_LEN]> {
        self.bytes(at)
    }
}

/// So many bytes at an address of the current process.
#[derive(Clone, Copy)]
pub(super) struct UserText {
    pub(super) address: u64,
    pub(super) len: u32,
}

impl Text for UserText {
    #[inline(always)]
    unsafe fn load(&self, at: u32, room: *mut u8, len: u32) -> bool {
        let from = self.address.wrapping_add(u64::from(at));
        // SAFETY: as the caller says; the helper checks the address.
        unsafe { bpf_probe_read_user(room.cast(), len, from as *const _) == 0 }
    }

    #[inline(always)]
    fn start(&self, at: u32) -> Option<[u8; START_LEN]> {
        let mut bytes = [0; START_LEN];
        let there = self.len.checked_sub(at)? >= START_LEN as u32;
        // SAFETY: `bytes` has room for as many.
        (there && unsafe { self.load(at, bytes.as_mut_ptr(), START_LEN as u32) }).then_some(bytes)
    }
}
