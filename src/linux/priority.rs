//! Work that can wait.

/// How far below other threads this is: mounts and what containers do come first, and where nothing else runs it
/// costs nothing (`man 2 setpriority`: 0 is usual, 19 the lowest).
const LATER: i32 = 10;

/// Lets the calling thread run only where others leave it time. Linux keeps this for each thread; it cannot
/// be taken back, so the thread should be one for this work.
pub(crate) fn let_others_go_first() {
    if let Err(errno) = rustix::process::setpriority_process(None, LATER) {
        tracing::debug!("a thread keeps its priority: {errno}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_thread_that_asks_for_it_runs_later() {
        let now = || rustix::process::getpriority_process(None).unwrap();
        let before = now();
        let later = std::thread::spawn(move || {
            let_others_go_first();
            now()
        });
        assert_eq!((later.join().unwrap(), now()), (LATER.max(before), before));
    }
}
