//! What the daemon is told: flags win over the environment, the environment over the file, the file
//! over the defaults, and every value remembers where it came from.
//!
//! One table, [`KEYS`], is the source of all of it: the file's keys, the variables, the flags and
//! their help, `docs/configuration.md`. [`SECTIONS`] is the same for those of which there can be many.

mod file;
mod keys;
mod sections;
mod settings;
mod value;

pub use keys::{Config, Fallback, KEYS, Key};
pub use sections::{HOOK, REPOSITORY, RepositoryConfig, SECTIONS, Section};
pub use settings::{Inputs, Setting, Settings, Source};
pub use value::{LogFormat, LogLevel, NodeName, Value};

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::failpoint;
use crate::options::nearest;

/// Where the file is when nobody says otherwise; it need not exist.
pub const DEFAULT_FILE: &str = "/etc/holdfast/config.toml";

/// The variable that names another file.
pub const FILE_VARIABLE: &str = "HOLDFAST_CONFIG";

/// What every variable of ours begins with.
pub const PREFIX: &str = "HOLDFAST_";

/// Which file to read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FileChoice {
    /// The usual one, if it is there.
    Usual,
    /// The one that somebody named; it has to be there.
    Named(PathBuf),
    /// None at all.
    Nothing,
}

impl FileChoice {
    /// The file that a flag or the environment names, else the usual one.
    pub fn find(flag: Option<&Path>, environment: &[(String, String)]) -> Self {
        let variable = || {
            environment
                .iter()
                .find(|(name, value)| name == FILE_VARIABLE && !value.is_empty())
                .map(|(_, value)| PathBuf::from(value))
        };
        flag.map(Path::to_owned).or_else(variable).map_or(Self::Usual, Self::Named)
    }
}

/// The configuration in force, and where each value of it came from.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// Checked values.
    pub config: Config,
    /// The same as text, with the sources.
    pub settings: Settings,
}

/// Reads and checks everything.
///
/// # Errors
/// An unknown key or a value that is not one, with the place where it stands; a named file that
/// cannot be read.
pub fn load(inputs: &Inputs) -> Result<Loaded> {
    let settings = Settings::resolve(KEYS, SECTIONS, inputs)?;
    Ok(Loaded { config: Config::from_settings(&settings)?, settings })
}

/// Our variables in the environment.
///
/// # Errors
/// A value that is not UTF-8: to pass over it would be to use a default that nobody asked for.
pub fn environment() -> Result<Vec<(String, String)>> {
    let ours = std::env::vars_os().filter_map(|(name, value)| {
        let name = name.into_string().ok().filter(|name| name.starts_with(PREFIX))?;
        Some((name, value))
    });
    ours.map(|(name, value)| match value.into_string() {
        Ok(value) => Ok((name, value)),
        Err(_) => Err(Error::invalid(format!("the value of {name} is not UTF-8"))),
    })
    .collect()
}

/// Our variables that mean nothing, each with the one that was probably meant. They are no errors,
/// because another version of the program may know them.
pub fn unknown_variables(environment: &[(String, String)]) -> Vec<(String, Option<String>)> {
    let mut known: Vec<String> = KEYS
        .iter()
        .flat_map(|key| {
            let file = key.secret.then(|| format!("{}_FILE", key.variable()));
            [Some(key.variable()), file]
        })
        .flatten()
        .collect();
    known.extend([FILE_VARIABLE.to_owned(), failpoint::VARIABLE.to_owned()]);
    let of_section = |name: &str| {
        let name = name.strip_prefix(PREFIX).unwrap_or(name);
        SECTIONS.iter().any(|section| section.chosen(name).is_some())
    };
    let unknown = environment.iter().filter(|(name, _)| !known.contains(name) && !of_section(name));
    unknown
        .map(|(name, _)| {
            let near: Vec<String> =
                SECTIONS.iter().flat_map(|section| section.near(name)).collect();
            let all = known.iter().chain(&near).map(String::as_str);
            (name.clone(), nearest(name, all).map(str::to_owned))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The reference in the manual comes from the table. `HOLDFAST_WRITE_DOCS=1 cargo test` writes it.
    #[test]
    fn the_manual_lists_every_key() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/configuration.md");
        let manual = std::fs::read_to_string(&path).unwrap();
        let mut right = manual;
        for (name, reference) in [("keys", keys::reference()), ("sections", sections::reference())]
        {
            let (start, end) = (format!("<!-- {name} -->\n"), format!("<!-- /{name} -->\n"));
            let (head, rest) = right.split_once(&start).unwrap();
            let (_, tail) = rest.split_once(&end).unwrap();
            right = format!("{head}{start}{reference}{end}{tail}");
        }
        if std::env::var_os("HOLDFAST_WRITE_DOCS").is_some() {
            std::fs::write(&path, &right).unwrap();
        }
        assert_eq!(std::fs::read_to_string(&path).unwrap(), right);
    }
    #[test]
    fn a_variable_that_means_nothing_is_told_with_the_one_that_was_meant() {
        let near = |name: &str| unknown_variables(&[(name.to_owned(), "x".to_owned())]);
        for known in ["HOLDFAST_REPOSITORY_MAIN_URL", "HOLDFAST_REPOSITORY_A_B_PASSWORD_FILE"] {
            assert_eq!(near(known), [], "{known}");
        }
        for (wrong, meant) in [
            ("HOLDFAST_LOOP_DIRS", "HOLDFAST_LOOP_DIR"),
            ("HOLDFAST_REPOSITORY_MAIN_PASWORD", "HOLDFAST_REPOSITORY_MAIN_PASSWORD"),
            ("HOLDFAST_HOOK_MY_DB_BEFOR", "HOLDFAST_HOOK_MY_DB_BEFORE"),
        ] {
            assert_eq!(near(wrong), [(wrong.to_owned(), Some(meant.to_owned()))]);
        }
    }
}
