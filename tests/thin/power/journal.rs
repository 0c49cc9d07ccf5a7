//! What the load says that it does, in files outside the host: `begin THING` before a request, `done
//! THING` when it was answered. A line is outside before the load goes on.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

/// One file for each of the load's threads.
#[derive(Debug, Clone)]
pub(super) struct Journal(PathBuf);

/// How many lines each file has.
pub(super) type Lengths = BTreeMap<PathBuf, usize>;

/// The file in which each load says that it begins.
const LOADS: &str = "loads";

impl Journal {
    /// The journal in the lab's directory, or in what that is inside.
    pub(super) fn new(lab: &Path) -> Self {
        let directory = lab.join("journal");
        fs::create_dir_all(&directory).expect("a journal");
        Self(directory)
    }

    fn files(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(&self.0).expect("the journal");
        entries.map(|entry| entry.expect("the journal").path()).collect()
    }

    /// All whole lines of one thread.
    pub(super) fn read(&self, thread: &str) -> Vec<String> {
        lines_of(&self.0.join(thread))
    }

    /// hostfs writes to the file outside when it is closed.
    pub(super) fn write(&self, thread: &str, line: &str) {
        let path = self.0.join(thread);
        let mut file = File::options().append(true).create(true).open(path).expect("the journal");
        file.write_all(format!("{line}\n").as_bytes()).expect("the journal");
    }

    pub(super) fn begin_load(&self) {
        self.write(LOADS, "begin load");
    }

    /// How many loads have begun.
    pub(super) fn loads(&self) -> u64 {
        self.read(LOADS).len() as u64
    }

    pub(super) fn lines(&self) -> u64 {
        self.lengths().values().sum::<usize>() as u64
    }

    pub(super) fn lengths(&self) -> Lengths {
        self.files().into_iter().map(|file| (file.clone(), lines_of(&file).len())).collect()
    }

    /// Of what came later, only what was begun counts.
    pub(super) fn forget_answers_after(&self, lengths: &Lengths) {
        for file in self.files() {
            let length = lengths.get(&file).copied().unwrap_or_default();
            let lines = lines_of(&file).into_iter().enumerate();
            let kept = lines.filter(|(at, line)| *at < length || line.starts_with("begin"));
            let text: String = kept.map(|(_, line)| format!("{line}\n")).collect();
            fs::write(file, text).expect("the journal");
        }
    }
}

fn lines_of(file: &Path) -> Vec<String> {
    let text = fs::read_to_string(file).unwrap_or_default();
    let whole = text.rfind('\n').map_or("", |end| &text[..=end]);
    whole.lines().map(str::to_owned).collect()
}
