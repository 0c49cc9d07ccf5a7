//! What has happened lately, for those who watch. Kept in memory, up to a number: a reader who comes
//! late or is slow is told what it has missed, and delays nobody.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use tokio::sync::watch;

use super::view::EventView;

/// Events that are remembered.
const KEPT: usize = 1000;

/// The kind of the event that tells a reader of a gap.
const MISSED: &str = "events.missed";

/// The events of one run of the daemon. Their numbers begin with the time of its start, so that a number
/// from an earlier run is never taken for one of these.
#[derive(Debug)]
pub struct Events {
    start: Timestamp,
    /// The number before the first.
    base: u64,
    ring: Mutex<VecDeque<EventView>>,
    /// The number of the last event.
    last: watch::Sender<u64>,
}

impl Events {
    pub(super) fn new(start: Timestamp) -> Self {
        /// More than there are events in a second; the product is exact in every JSON reader.
        const PER_SECOND: u64 = 1_000_000;
        let seconds = u64::try_from(start.as_second()).unwrap_or_default();
        let base = seconds.saturating_mul(PER_SECOND);
        Self { start, base, ring: Mutex::default(), last: watch::Sender::new(base) }
    }

    pub(super) fn add(&self, time: Timestamp, kind: &str, subject: String, message: String) {
        let mut ring = self.lock();
        let sequence = *self.last.borrow() + 1;
        if ring.len() == KEPT {
            ring.pop_front();
        }
        ring.push_back(EventView { sequence, time, kind: kind.to_owned(), subject, message });
        // Within the lock, so that numbers and events go together.
        self.last.send_replace(sequence);
    }

    /// The events after the one with this number; all for 0. If some of those are forgotten, the first
    /// one tells so.
    pub fn after(&self, after: u64) -> Vec<EventView> {
        let ring = self.lock();
        let last = *self.last.borrow();
        let known = after == 0 || (self.base..=last).contains(&after);
        let from = if known { after.max(self.base) } else { self.base };
        let mut events: Vec<_> =
            ring.iter().filter(|event| event.sequence > from).cloned().collect();
        let first = events.first().map_or(last + 1, |event| event.sequence);
        let missed = first - from - 1;
        if missed > 0 || !known {
            let message = match known {
                true => format!("{missed} events before this are no longer remembered"),
                false => {
                    "the daemon was started again; what was before is not remembered".to_owned()
                }
            };
            let time = events.first().map_or(self.start, |event| event.time);
            let gap = EventView {
                sequence: first - 1,
                time,
                kind: MISSED.to_owned(),
                subject: String::new(),
                message,
            };
            events.insert(0, gap);
        }
        events
    }

    /// Follows the events after the one with this number; none is from now on.
    pub fn follow(self: &Arc<Self>, after: Option<u64>) -> Follower {
        let last = self.last.subscribe();
        let after = after.unwrap_or_else(|| *last.borrow());
        Follower { events: Arc::clone(self), after, last }
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<EventView>> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads events as they come, at its own pace.
#[derive(Debug)]
pub struct Follower {
    events: Arc<Events>,
    after: u64,
    last: watch::Receiver<u64>,
}

impl Follower {
    /// Waits for events. Safe to cancel.
    pub async fn next(&mut self) -> Vec<EventView> {
        loop {
            self.last.mark_unchanged();
            let events = self.events.after(self.after);
            if let Some(event) = events.last() {
                self.after = event.sequence;
                return events;
            }
            // The sender lives as long as the events.
            let _ = self.last.changed().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn add(events: &Events, count: usize) {
        for _ in 0..count {
            events.add(Timestamp::UNIX_EPOCH, "test", "a".to_owned(), "b".to_owned());
        }
    }

    fn numbers(events: &[EventView]) -> Vec<u64> {
        events.iter().map(|event| event.sequence).collect()
    }

    #[tokio::test]
    async fn a_follower_gets_each_event_once_and_is_told_of_a_gap() {
        let events = Arc::new(Events::new(Timestamp::UNIX_EPOCH));
        add(&events, 2);
        let mut all = events.follow(Some(0));
        let mut new = events.follow(None);
        assert_eq!(numbers(&all.next().await), [1, 2]);
        add(&events, 1);
        assert_eq!(numbers(&all.next().await), [3]);
        assert_eq!(numbers(&new.next().await), [3]);
        let waiting = tokio::spawn(async move { new.next().await });
        tokio::task::yield_now().await;
        add(&events, 1);
        assert_eq!(numbers(&waiting.await.unwrap()), [4]);

        add(&events, KEPT + 5);
        let late = all.next().await;
        assert_eq!(late.len(), KEPT + 1);
        assert_eq!((late[0].kind.as_str(), late[0].sequence), (MISSED, 9));
        assert!(late[0].message.starts_with("6 events"), "{}", late[0].message);
        assert_eq!(late[1].sequence, 10);
    }

    #[test]
    fn a_number_of_another_run_is_a_gap() {
        let events = Events::new(Timestamp::from_second(5).unwrap());
        assert_eq!(events.after(0), []);
        add(&events, 2);
        let (first, second) = (5_000_001, 5_000_002);
        assert_eq!(numbers(&events.after(0)), [first, second]);
        assert_eq!(numbers(&events.after(first)), [second]);
        assert_eq!(events.after(second), []);
        for other in [7, 4_000_002, second + 1] {
            let after = events.after(other);
            assert_eq!(numbers(&after), [first - 1, first, second]);
            assert_eq!(after[0].kind, MISSED);
        }
    }
}
