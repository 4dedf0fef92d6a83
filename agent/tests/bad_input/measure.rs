//! Processor time of work, which other processes on a busy machine hardly change.

use std::time::Duration;

/// Below this, the clock of the scheduler is too coarse to compare by.
const NOISE: Duration = Duration::from_millis(40);

/// Processor time that this thread has used.
fn used() -> Duration {
    // Makes the scheduler account for the time up to now.
    std::thread::yield_now();
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    let nanos = stat.split_whitespace().next().unwrap();
    Duration::from_nanos(nanos.parse().unwrap())
}

fn cost(work: impl FnOnce()) -> Duration {
    let before = used();
    work();
    used().saturating_sub(before)
}

/// The least that work costs, as far as a few looks tell: a neighbour can only add to it. Stops at what is `enough`.
fn least_cost(enough: Duration, work: impl Fn()) -> Duration {
    const LOOKS: usize = 3;
    let mut least = Duration::MAX;
    for _ in 0..LOOKS {
        least = least.min(cost(&work));
        if least <= enough {
            break;
        }
    }
    least
}

/// Fails where four times the input takes more than eight times the time: twice what linear work
/// takes, half of what quadratic work takes.
#[track_caller]
pub(crate) fn assert_linear(size: usize, work: impl Fn(usize)) {
    let once = least_cost(NOISE, || work(size));
    let most = 8 * once.max(NOISE);
    let four_times = least_cost(most, || work(4 * size));
    assert!(
        four_times <= most,
        "four times of {size} takes {four_times:?}, and once {once:?}"
    );
}

#[test]
#[should_panic(expected = "four times of ")]
fn quadratic_work_is_found() {
    let work = |size: usize| {
        for _ in 0..size {
            std::hint::black_box(vec![1_u8; size].into_iter().map(u64::from).sum::<u64>());
        }
    };
    // As large as it takes to be told from noise on this machine.
    let sizes = std::iter::successors(Some(1000), |size| Some(size * 3 / 2));
    let mut slow = sizes.filter(|size| cost(|| work(*size)) > NOISE);
    assert_linear(slow.next().unwrap(), work);
}
