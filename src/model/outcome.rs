/// Whether an idempotent call had anything to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Everything was already as asked.
    Unchanged,
    /// Something was changed.
    Changed,
}

impl Outcome {
    /// Drops the answer where only "it is so now" matters.
    pub fn ignore(self) {}
}
