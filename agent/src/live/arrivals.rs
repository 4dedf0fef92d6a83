//! Takes in gateways as they begin to run: a thread that waits for nothing else, since the segment programs
//! are to be where a gateway is before it accepts its first client.

use std::io;
use std::os::fd::AsFd as _;
use std::thread::{Builder, JoinHandle};

use aya::maps::{MapData, RingBuf};
use rustix::event::{PollFd, PollFlags, poll};

use super::decode;
use super::goroutines::Goroutines;
use super::places::Places;
use super::source::Waker;
use super::turns::Turns;

/// The thread.
#[derive(Debug)]
pub(super) struct Arrivals {
    stop: Waker,
    thread: Option<JoinHandle<()>>,
}

impl Arrivals {
    /// Starts to wait for gateways.
    pub(super) fn start(
        ring: RingBuf<MapData>,
        places: Places,
        turns: Turns,
        goroutines: Goroutines,
    ) -> io::Result<Self> {
        let stop = Waker::new()?;
        let stopped = stop.clone();
        let thread = Builder::new()
            .name("hopscope-places".into())
            .spawn(move || take_in(ring, &places, &turns, &goroutines, &stopped))?;
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }
}

/// A name without what is behind its end.
fn comm(name: &[u8]) -> &[u8] {
    name.split(|byte| *byte == 0).next().unwrap_or_default()
}

fn take_in(
    mut ring: RingBuf<MapData>,
    places: &Places,
    turns: &Turns,
    goroutines: &Goroutines,
    stopped: &Waker,
) {
    loop {
        while let Some(item) = ring.next() {
            match decode::arrival(&item) {
                Ok(process) => {
                    tracing::debug!(pid = process.pid, "a gateway begins to run");
                    places.admit(process.pid);
                    turns.meet(comm(&process.comm));
                    goroutines.arrived(process.pid, &decode::comm_text(&process.comm));
                }
                Err(error) => tracing::warn!(%error, "left word of a gateway alone"),
            }
        }
        let mut fds = [
            PollFd::from_borrowed_fd(ring.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(stopped.as_fd(), PollFlags::IN),
        ];
        match poll(&mut fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => {
                tracing::warn!(%error, "gateways that start are found by looking for them only");
                return;
            }
        }
        if fds.last().is_some_and(|fd| !fd.revents().is_empty()) {
            return;
        }
    }
}

impl Drop for Arrivals {
    fn drop(&mut self) {
        self.stop.wake();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
