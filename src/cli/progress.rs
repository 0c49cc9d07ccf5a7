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

const BYTES: &str = "{msg} [{wide_bar}] {bytes}/{total_bytes} {bytes_per_sec} {eta}";
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
    begun: Instant,
    told: Option<Instant>,
}

impl Show {
    fn new() -> Self {
        let bar = std::io::stderr().is_terminal().then(|| ProgressBar::new(0));
        Self { bar, begun: Instant::now(), told: None }
    }

    fn update(&mut self, view: &OperationView) {
        let what = format!("{} {}", view.kind, view.subject.short());
        match &self.bar {
            Some(bar) => {
                let template = if view.total > 0 { BYTES } else { UNKNOWN };
                if let Ok(style) = ProgressStyle::with_template(template) {
                    bar.set_style(style.progress_chars("=> "));
                }
                bar.set_message(what);
                bar.set_length(view.total);
                bar.set_position(view.done);
                bar.tick();
            }
            None if self.told.is_none_or(|told| told.elapsed() >= LINES) => {
                self.told = Some(Instant::now());
                note(&line(&what, view.done, view.total, self.begun.elapsed()));
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

fn line(what: &str, done: u64, total: u64, watched: Duration) -> String {
    if total == 0 {
        return format!("{what}: at work");
    }
    let percent = u128::from(done.min(total)) * 100 / u128::from(total);
    let (done, total) = (ByteSize::new(done), ByteSize::new(total));
    let seconds = watched.as_secs();
    match seconds {
        0 => format!("{what}: {done} of {total} ({percent}%)"),
        _ => format!("{what}: {done} of {total} ({percent}%) after {seconds} s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_how_far_it_is() {
        let second = Duration::from_secs(1);
        assert_eq!(line("clone a", 0, 0, second), "clone a: at work");
        let text = line("clone a", 512 << 20, 2 << 30, second);
        assert_eq!(text, "clone a: 512M of 2G (25%) after 1 s");
        assert_eq!(line("x", 9, 3, Duration::ZERO), "x: 9B of 3B (100%)");
    }
}
