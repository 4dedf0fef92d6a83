//! A packet capture of one namespace, taken from a packet socket: every frame that its interfaces send
//! or receive, without loopback, as a pcap file. It ends exactly when it is told to, with nothing left
//! unwritten, which a packet recorder of its own process does not promise.

use std::fs::File;
use std::io::{self, BufWriter, PipeReader, PipeWriter, Write as _};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};

use anyhow::{Context as _, Result, anyhow};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::sockopt::set_socket_recv_buffer_size_force;
use rustix::net::{AddressFamily, RecvFlags, SocketType, eth, recv, socket};

use crate::clock::unix_time;
use crate::netns::Netns;

/// Frames that may wait, in bytes: all scenarios at once with an order of magnitude to spare.
const BUFFER: usize = 64 << 20;

/// Longest frame kept: the largest that segmentation offload makes.
const SNAP_LENGTH: u16 = u16::MAX;

/// Link type of Ethernet in a pcap file.
const ETHERNET: u32 = 1;

/// Bytes of the two addresses of an Ethernet header. On loopback, and nowhere else, both are zero.
const ADDRESSES: usize = 12;

/// A running packet capture. Dropping it ends it.
#[derive(Debug)]
pub struct Recording {
    file: PathBuf,
    // Closing the pipe ends the thread, after it has written what is waiting.
    wake: Option<PipeWriter>,
    recorder: Option<JoinHandle<Result<()>>>,
}

impl Recording {
    /// Records everything on the interfaces of `namespace` to `file`, from now on.
    pub fn start(namespace: &Netns, file: &Path) -> Result<Self> {
        let socket = namespace.enter(|| {
            let socket = socket(AddressFamily::PACKET, SocketType::RAW, Some(eth::ALL))
                .context("could not open a packet socket: is this root?")?;
            set_socket_recv_buffer_size_force(&socket, BUFFER)?;
            Ok(socket)
        })?;
        let mut output = BufWriter::new(
            File::create(file).with_context(|| format!("could not make {}", file.display()))?,
        );
        output.write_all(&file_header())?;
        let (woken, wake) = io::pipe().context("could not make a pipe")?;
        let recorder = thread::Builder::new()
            .name("lab-recording".to_owned())
            .spawn(move || record(&socket, &woken, output))?;
        Ok(Self {
            file: file.to_owned(),
            wake: Some(wake),
            recorder: Some(recorder),
        })
    }

    /// Ends the capture; the file is then complete.
    pub fn finish(mut self) -> Result<PathBuf> {
        self.end()?;
        Ok(self.file.clone())
    }

    fn end(&mut self) -> Result<()> {
        self.wake = None;
        match self.recorder.take() {
            Some(recorder) => recorder
                .join()
                .map_err(|_| anyhow!("the recorder panicked"))?,
            None => Ok(()),
        }
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        let _ = self.end();
    }
}

/// Writes frames until `woken` is closed and none is waiting.
fn record(socket: &OwnedFd, woken: &PipeReader, mut output: BufWriter<File>) -> Result<()> {
    let mut frame = vec![0; usize::from(SNAP_LENGTH)];
    loop {
        let mut ready = [
            PollFd::new(socket, PollFlags::IN),
            PollFd::new(woken, PollFlags::IN),
        ];
        match poll(&mut ready, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error).context("could not wait for packets"),
        }
        let over = !ready[1].revents().is_empty();
        loop {
            match recv(socket, &mut frame[..], RecvFlags::DONTWAIT) {
                Ok((_, length)) => write(&mut output, frame.get(..length).unwrap_or(&frame))?,
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error).context("could not receive a packet"),
            }
        }
        if over {
            return output.flush().context("could not write the capture");
        }
    }
}

fn write(output: &mut BufWriter<File>, frame: &[u8]) -> Result<()> {
    if frame.iter().take(ADDRESSES).all(|byte| *byte == 0) {
        return Ok(());
    }
    let time = unix_time();
    let seconds = u32::try_from(time.as_secs()).context("this pcap format ends in 2106")?;
    let length = u32::try_from(frame.len())?;
    for word in [seconds, time.subsec_micros(), length, length] {
        output.write_all(&word.to_le_bytes())?;
    }
    output
        .write_all(frame)
        .context("could not write the capture")
}

fn file_header() -> Vec<u8> {
    let mut header = Vec::new();
    header.extend(0xa1b2_c3d4_u32.to_le_bytes());
    header.extend(2_u16.to_le_bytes());
    header.extend(4_u16.to_le_bytes());
    // Time zone and accuracy, always zero.
    header.extend([0; 8]);
    header.extend(u32::from(SNAP_LENGTH).to_le_bytes());
    header.extend(ETHERNET.to_le_bytes());
    header
}
