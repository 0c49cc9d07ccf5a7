//! The configuration file.

use std::collections::HashMap;
use std::path::Path;

use toml::de::{DeTable, DeValue};

use super::keys::Key;
use crate::error::{Error, Result};
use crate::options::nearest;

/// A value in the file and the line where it stands.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) text: String,
    pub(super) line: usize,
}

/// The file's values by the names of their keys.
pub(super) type Entries = HashMap<String, Entry>;

/// Reads `text`, the content of the file at `path`.
pub(super) fn read(keys: &[Key], path: &Path, text: &str) -> Result<Entries> {
    let reader = Reader { keys, path, text };
    let document = DeTable::parse(text).map_err(|error| {
        let line = error.span().map_or(1, |span| reader.line(span.start));
        let message = error.message().trim().replace('\n', ", ");
        Error::invalid(format!("{} line {line}: {message}", path.display()))
    })?;
    let mut entries = Entries::new();
    reader.table("", document.get_ref(), &mut entries)?;
    Ok(entries)
}

struct Reader<'a> {
    keys: &'a [Key],
    path: &'a Path,
    text: &'a str,
}

impl Reader<'_> {
    fn line(&self, offset: usize) -> usize {
        let offset = offset.min(self.text.len());
        1 + self.text.as_bytes()[..offset].iter().filter(|byte| **byte == b'\n').count()
    }

    fn table(&self, section: &str, table: &DeTable<'_>, entries: &mut Entries) -> Result<()> {
        for (key, value) in table {
            let name = match section {
                "" => key.get_ref().to_string(),
                section => format!("{section}.{}", key.get_ref()),
            };
            let line = self.line(key.span().start);
            if let DeValue::Table(inner) = value.get_ref()
                && self.is_section(&name)
            {
                self.table(&name, inner, entries)?;
                continue;
            }
            if !self.is_key(&name) {
                return Err(self.unknown(&name, line));
            }
            let text = scalar(value.get_ref()).ok_or_else(|| {
                self.at(line, &format!("{name} is neither text nor a number nor true or false"))
            })?;
            entries.insert(name, Entry { text, line });
        }
        Ok(())
    }

    fn is_section(&self, name: &str) -> bool {
        self.keys
            .iter()
            .any(|key| key.name.strip_prefix(name).is_some_and(|rest| rest.starts_with('.')))
    }

    fn is_key(&self, name: &str) -> bool {
        self.keys
            .iter()
            .any(|key| key.name == name || (key.secret && name == format!("{}_file", key.name)))
    }

    fn at(&self, line: usize, message: &str) -> Error {
        Error::invalid(format!("{} line {line}: {message}", self.path.display()))
    }

    fn unknown(&self, name: &str, line: usize) -> Error {
        let sections = self.keys.iter().filter_map(|key| Some(key.name.split_once('.')?.0));
        let known = self.keys.iter().map(|key| key.name).chain(sections);
        let shown: String = name.chars().take(60).collect();
        let error = self.at(line, &format!("there is no key {shown}"));
        match nearest(name, known) {
            Some(near) => error.hint(format!("did you mean {near}?")),
            None => error.hint("holdfast config show lists the keys"),
        }
    }
}

fn scalar(value: &DeValue<'_>) -> Option<String> {
    match value {
        DeValue::String(text) => Some(text.to_string()),
        DeValue::Integer(number) if number.radix() == 10 => Some(number.as_str().to_owned()),
        DeValue::Boolean(flag) => Some(flag.to_string()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::keys::KEYS;
    use super::*;

    fn read_text(text: &str) -> Result<Entries> {
        read(KEYS, Path::new("/etc/c.toml"), text)
    }

    #[test]
    fn values_have_the_line_they_stand_on() {
        let entries =
            read_text("node = 'a'\n\n[loop]\n# where\ndir = \"/x\"\nenabled = false\n").unwrap();
        assert_eq!(entries["loop.dir"], Entry { text: "/x".into(), line: 5 });
        assert_eq!(entries["loop.enabled"], Entry { text: "false".into(), line: 6 });
        assert_eq!(entries["node"], Entry { text: "a".into(), line: 1 });
        assert!(read_text("loop.default_size = 1073741824").is_ok());
    }

    #[test]
    fn an_unknown_key_is_named_with_its_line_and_the_nearest_known_one() {
        for (text, message, hint) in [
            ("\n[loop]\ndirr = '/x'", "/etc/c.toml line 3: there is no key loop.dirr", "loop.dir?"),
            ("[loops]\ndir = '/x'", "/etc/c.toml line 1: there is no key loops", "mean loop?"),
            ("defaultbackend = 'loop'", "no key defaultbackend", "default_backend?"),
            ("[loop.dir]\nx = 1", "loop.dir is neither", ""),
            ("[loop]\ndir = ['/x']", "line 2: loop.dir is neither", ""),
            ("whatever_it_may_be = 1", "no key whatever_it_may_be", "config show"),
        ] {
            let error = read_text(text).unwrap_err();
            assert!(error.full_message().contains(message), "{error}");
            assert!(error.hint_text().unwrap_or_default().contains(hint), "{error:?}");
        }
    }

    #[test]
    fn a_broken_file_is_told_with_its_line() {
        let error = read_text("node = 'a'\nnode = 'b'\n").unwrap_err();
        assert!(error.full_message().starts_with("/etc/c.toml line 2: "), "{error}");
        assert!(!error.full_message().contains('\n'));
    }
}
