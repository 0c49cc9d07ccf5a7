use std::time::Duration;

/// A program that runs before each snapshot and one that runs after it, so that what writes to the
/// volume can make it whole: a database flushes, and goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HookConfig {
    /// The program before, and its arguments; empty for none. No snapshot is cut if it fails.
    pub before: Vec<String>,
    /// The program after, and its arguments; empty for none. It runs on every path once `before` may have
    /// begun, and after a crash perhaps twice.
    pub after: Vec<String>,
    /// How long each may take before it is killed.
    pub timeout: Duration,
}
