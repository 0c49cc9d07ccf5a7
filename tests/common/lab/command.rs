//! Commands in a host.

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::control::{Answer, NoAnswer};
use super::host::Host;
use crate::common::wait;

/// After this a host that was asked for the output of a hanging command is taken to hang itself.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// What a command left, as `std::process::Output`.
#[derive(Debug, Clone)]
pub(crate) struct Output {
    /// As a shell tells it: 128 and the signal, if one ended it.
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// A command in a host, not started yet.
#[derive(Debug)]
pub(crate) struct Command<'h> {
    host: &'h Host<'h>,
    words: Vec<String>,
    env: Vec<(String, String)>,
    limit: Duration,
}

impl<'h> Command<'h> {
    pub(super) fn new(host: &'h Host<'h>, program: &str) -> Self {
        Self { host, words: vec![program.to_owned()], env: Vec::new(), limit: wait::LIMIT }
    }

    pub(crate) fn args<S: AsRef<str>>(mut self, args: &[S]) -> Self {
        self.words.extend(args.iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    pub(crate) fn env(mut self, key: &str, value: &str) -> Self {
        self.env.push((key.to_owned(), value.to_owned()));
        self
    }

    /// How long it may take once somebody waits for it.
    pub(crate) fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Starts it.
    #[track_caller]
    pub(crate) fn spawn(self) -> Job<'h> {
        let mut script = "#!/bin/bash\n".to_owned();
        for (key, value) in &self.env {
            writeln!(script, "export {key}={}", quoted(value)).expect("into memory");
        }
        let words: Vec<_> = self.words.iter().map(|word| quoted(word)).collect();
        writeln!(script, "exec {}", words.join(" ")).expect("into memory");

        let number = self.host.next_number();
        let dir = self.host.job_dir(number);
        let path = dir.join("run");
        fs::create_dir_all(&dir).and_then(|()| fs::write(&path, script)).expect("job");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("job");
        let answer = self.host.ask("run", number, "");
        let words = self.words.join(" ");
        Job { host: self.host, number, dir, words, limit: self.limit, answer }
    }

    /// Runs it to its end, whatever that is.
    #[track_caller]
    pub(crate) fn output(self) -> Output {
        self.spawn().wait()
    }

    /// Runs it to its end, expects success, and gives what it printed on its standard output.
    #[track_caller]
    pub(crate) fn checked(self) -> String {
        let job = self.spawn();
        let output = job.wait();
        let Output { code, stdout, stderr } = &output;
        let (words, host) = (&job.words, job.host.name());
        assert_eq!(*code, 0, "`{words}` on {host}\n{stdout}{stderr}");
        output.stdout
    }
}

fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// A command that was started in a host.
#[derive(Debug)]
pub(crate) struct Job<'h> {
    host: &'h Host<'h>,
    number: u32,
    dir: PathBuf,
    words: String,
    limit: Duration,
    answer: Answer,
}

impl Job<'_> {
    /// What it left, if it has ended by itself. To be asked no more after that.
    #[track_caller]
    pub(crate) fn ended(&self) -> Option<Output> {
        let code = self.answer.try_wait()?;
        let (stdout, stderr) = (printed(&self.dir, "stdout"), printed(&self.dir, "stderr"));
        Some(Output { code, stdout, stderr })
    }

    /// Waits for its end. If that does not come in time, the host is killed.
    #[track_caller]
    pub(crate) fn wait(&self) -> Output {
        let code = self.answer.wait(self.limit);
        if code == Err(NoAnswer::InTime) {
            let _ = self
                .host
                .ask("save", self.host.next_number(), &self.number.to_string())
                .wait(LAST_WORDS);
        }
        let (stdout, stderr) = (printed(&self.dir, "stdout"), printed(&self.dir, "stderr"));
        match code {
            Ok(code) => Output { code, stdout, stderr },
            Err(why) => {
                self.host.kill();
                let (words, host) = (&self.words, self.host.name());
                let why = match why {
                    NoAnswer::InTime => {
                        format!("did not end within {:?}, so {host} was killed", self.limit)
                    }
                    NoAnswer::AsTheHostEnded => format!("did not end before {host} did"),
                };
                panic!("`{words}` {why}\n{stdout}{stderr}{}", self.host.last_words());
            }
        }
    }
}

fn printed(dir: &Path, name: &str) -> String {
    let bytes = fs::read(dir.join(name)).unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}
