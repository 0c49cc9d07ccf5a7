//! What a user sees of work that takes longer than a moment.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use super::print::note;
use crate::client::{Answer, Client};
use crate::engine::view::{OperationState, OperationView};
use crate::id::OperationId;
use crate::units::ByteSize;

/// Work that is done within this shows nothing.
const MOMENT: Duration = Duration::from_secs(1);
const POLL: Duration = Duration::from_millis(200);
/// How often a line is written where there is no terminal.
const LINES: Duration = Duration::from_secs(5);

const BYTES: &str = "{msg} [{wide_bar}] {bytes}/{total_bytes} {bytes_per_sec} {eta} left";
const UNKNOWN: &str = "{spinner} {msg} {elapsed}";

/// Waits for `work` and shows how the operation that it makes goes.
pub(super) async fn watch<T>(
    client: &Client,
    operation: OperationId,
    work: impl Future<Output = Answer<T>>,
) -> Answer<T> {
    let mut work = std::pin::pin!(work);
    if let Ok(answer) = tokio::time::timeout(MOMENT, &mut work).await {
        return answer;
    }
    let mut show = Show::new();
    loop {
        // What cannot be told is not shown; the work itself tells of what is wrong.
        if let Ok(view) = client.operation(operation).await {
            show.update(&view);
        }
        if let Ok(answer) = tokio::time::timeout(POLL, &mut work).await {
            return answer;
        }
    }
}

/// Shows an operation until it is over.
pub(super) async fn follow(client: &Client, id: OperationId) -> Answer<OperationView> {
    let mut show = None;
    loop {
        let view = client.operation(id).await?;
        if view.finished.is_some() || view.state != OperationState::Running {
            return Ok(view);
        }
        show.get_or_insert_with(Show::new).update(&view);
        tokio::time::sleep(POLL).await;
    }
}

/// A bar on a terminal, lines elsewhere; both on standard error. The bar goes away when dropped.
struct Show {
    bar: Option<ProgressBar>,
    /// When it was first seen at work on bytes, and how many were done then: it may have begun long before.
    first: Option<(Instant, u64)>,
    told: Option<Instant>,
}

impl Show {
    fn new() -> Self {
        let bar = std::io::stderr().is_terminal().then(|| ProgressBar::new(0));
        Self { bar, first: None, told: None }
    }

    fn update(&mut self, view: &OperationView) {
        let what = format!("{} {}", view.kind, view.subject.short());
        let is_first = view.total > 0 && self.first.is_none();
        if is_first {
            self.first = Some((Instant::now(), view.done));
        }
        match &self.bar {
            Some(bar) => {
                let template = if view.total > 0 { BYTES } else { UNKNOWN };
                if let Ok(style) = ProgressStyle::with_template(template) {
                    bar.set_style(style.progress_chars("=> "));
                }
                bar.set_message(what);
                bar.set_length(view.total);
                bar.set_position(view.done);
                if is_first {
                    // What was done before counts for no rate.
                    bar.reset_eta();
                }
                bar.tick();
            }
            None if self.told.is_none_or(|told| told.elapsed() >= LINES) => {
                self.told = Some(Instant::now());
                let seen = self.first.map(|(when, done)| (when.elapsed(), done));
                note(&line(&what, view.done, view.total, seen));
            }
            None => {}
        }
    }
}

impl Drop for Show {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// `seen` is for how long it has been watched, and what was done before.
fn line(what: &str, done: u64, total: u64, seen: Option<(Duration, u64)>) -> String {
    if total == 0 {
        return format!("{what}: at work");
    }
    let percent = u128::from(done.min(total)) * 100 / u128::from(total);
    let rate = seen.and_then(|(time, before)| {
        let rate = u128::from(done.saturating_sub(before)) * 1000 / time.as_millis().max(1);
        u64::try_from(rate).ok().filter(|rate| *rate > 0 && time >= Duration::from_secs(1))
    });
    let pace = rate.map(|rate| {
        let left = total.saturating_sub(done).div_ceil(rate);
        format!(", {}/s, {} left", ByteSize::new(rate), length(left))
    });
    let (done, total) = (ByteSize::new(done), ByteSize::new(total));
    format!("{what}: {done} of {total} ({percent}%){}", pace.unwrap_or_default())
}

/// A number of seconds for people, who do not need them all.
fn length(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds.div_ceil(60)),
        _ => format!("{} h", seconds.div_ceil(3600)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_how_far_it_is_how_fast_and_how_long_it_takes() {
        let seen = |seconds, before| Some((Duration::from_secs(seconds), before));
        assert_eq!(line("clone a", 0, 0, None), "clone a: at work");
        let text = line("clone a", 512 << 20, 2 << 30, seen(2, 0));
        assert_eq!(text, "clone a: 512M of 2G (25%), 256M/s, 6 s left");
        let text = line("clone a", 512 << 20, 2 << 30, seen(2, 508 << 20));
        assert_eq!(text, "clone a: 512M of 2G (25%), 2M/s, 13 min left", "watched from the middle");
        assert_eq!(line("x", 9, 3, seen(0, 0)), "x: 9B of 3B (100%)");
        assert_eq!(line("x", 1, 3, seen(5, 1)), "x: 1B of 3B (33%)", "it stands still");
        assert_eq!(line("x", 3, 3, seen(1, 0)), "x: 3B of 3B (100%), 3B/s, 0 s left");
        assert_eq!(length(7200), "2 h");
    }
}
