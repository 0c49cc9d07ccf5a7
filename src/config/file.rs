//! The configuration file.

use std::collections::HashMap;
use std::path::Path;

use toml::de::{DeTable, DeValue};

use super::keys::Key;
use super::sections::Section;
use super::value::WORDS;
use crate::error::{Error, Result};
use crate::options::nearest;

/// A value in the file and the line where it stands.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) text: String,
    pub(super) line: usize,
}

/// What is in the file.
#[derive(Debug, Default)]
pub(super) struct Entries {
    /// The values by the names of their keys.
    pub(super) values: HashMap<String, Entry>,
    /// The sections whose name the user chose, as `repository` and `main`, and their lines.
    pub(super) parts: Vec<(&'static str, String, usize)>,
}

/// Reads `text`, the content of the file at `path`.
pub(super) fn read(
    keys: &[Key],
    sections: &[&'static Section],
    path: &Path,
    text: &str,
) -> Result<Entries> {
    let reader = Reader { keys, sections, path, text };
    let document = DeTable::parse(text).map_err(|error| {
        let line = error.span().map_or(1, |span| reader.line(span.start));
        let message = error.message().trim().replace('\n', ", ");
        Error::invalid(format!("{} line {line}: {message}", path.display()))
    })?;
    let mut entries = Entries::default();
    reader.table("", document.get_ref(), &mut entries)?;
    Ok(entries)
}

struct Reader<'a> {
    keys: &'a [Key],
    sections: &'a [&'static Section],
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
            if let Some(found) = self.sections.iter().find(|found| found.name == name) {
                self.parts(found, value.get_ref(), line, entries)?;
                continue;
            }
            if let DeValue::Table(inner) = value.get_ref()
                && self.is_section(&name)
            {
                self.table(&name, inner, entries)?;
                continue;
            }
            if !self.is_key(&name) {
                return Err(self.unknown(&name, line));
            }
            let text = scalar(value.get_ref()).ok_or_else(|| self.no_scalar(line, &name))?;
            entries.values.insert(name, Entry { text, line });
        }
        Ok(())
    }

    /// The sections `[section.NAME]`.
    fn parts(
        &self,
        section: &'static Section,
        value: &DeValue<'_>,
        line: usize,
        entries: &mut Entries,
    ) -> Result<()> {
        let form = format!("write [{}.NAME] and its keys below", section.name);
        let no_part =
            |line, name: &str| self.at(line, &format!("{name} is no section")).hint(form.clone());
        let DeValue::Table(parts) = value else { return Err(no_part(line, section.name)) };
        for (part, value) in parts {
            let line = self.line(part.span().start);
            let name = format!("{}.{}", section.name, part.get_ref());
            let DeValue::Table(keys) = value.get_ref() else { return Err(no_part(line, &name)) };
            (section.check_name)(part.get_ref())
                .map_err(|error| error.context(self.place(line)))?;
            entries.parts.push((section.name, part.get_ref().to_string(), line));
            for (key, value) in keys {
                let line = self.line(key.span().start);
                let full = format!("{name}.{}", key.get_ref());
                let found = section.keys.iter().find(|found| found.takes(key.get_ref()));
                let Some(found) = found else {
                    let known = section.leaves().map(|leaf| format!("{name}.{leaf}"));
                    return Err(self.unknown_among(&full, line, &known.collect::<Vec<_>>()));
                };
                let text = match found.form {
                    WORDS => words(value.get_ref()).ok_or_else(|| {
                        self.at(line, &format!("{full} is no list of words"))
                            .hint(format!("write {WORDS}"))
                    })?,
                    _ => scalar(value.get_ref()).ok_or_else(|| self.no_scalar(line, &full))?,
                };
                entries.values.insert(full, Entry { text, line });
            }
        }
        Ok(())
    }

    fn is_section(&self, name: &str) -> bool {
        self.keys
            .iter()
            .any(|key| key.name.strip_prefix(name).is_some_and(|rest| rest.starts_with('.')))
    }

    fn is_key(&self, name: &str) -> bool {
        self.keys.iter().any(|key| key.takes(name))
    }

    fn place(&self, line: usize) -> String {
        format!("{} line {line}", self.path.display())
    }

    fn at(&self, line: usize, message: &str) -> Error {
        Error::invalid(format!("{}: {message}", self.place(line)))
    }

    fn no_scalar(&self, line: usize, name: &str) -> Error {
        self.at(line, &format!("{name} is neither text nor a number nor true or false"))
    }

    fn unknown(&self, name: &str, line: usize) -> Error {
        let sections = self.keys.iter().filter_map(|key| Some(key.name.split_once('.')?.0));
        let own = self.sections.iter().map(|section| section.name);
        let known = self.keys.iter().map(|key| key.name).chain(sections).chain(own);
        self.unknown_among(name, line, &known.map(str::to_owned).collect::<Vec<_>>())
    }

    fn unknown_among(&self, name: &str, line: usize, known: &[String]) -> Error {
        let shown: String = name.chars().take(60).collect();
        let error = self.at(line, &format!("there is no key {shown}"));
        match nearest(name, known.iter().map(String::as_str)) {
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

/// A list of words as JSON.
fn words(value: &DeValue<'_>) -> Option<String> {
    let DeValue::Array(items) = value else { return None };
    let words = items.iter().map(|item| item.get_ref().as_str()).collect::<Option<Vec<_>>>()?;
    serde_json::to_string(&words).ok()
}

#[cfg(test)]
mod tests {
    use super::super::keys::KEYS;
    use super::super::sections::SECTIONS;
    use super::*;

    fn read_text(text: &str) -> Result<Entries> {
        read(KEYS, SECTIONS, Path::new("/etc/c.toml"), text)
    }

    #[test]
    fn values_have_the_line_they_stand_on() {
        let entries = read_text("node = 'a'\n\n[loop]\n# where\ndir = \"/x\"\nenabled = false\n")
            .unwrap()
            .values;
        assert_eq!(entries["loop.dir"], Entry { text: "/x".into(), line: 5 });
        assert_eq!(entries["loop.enabled"], Entry { text: "false".into(), line: 6 });
        assert_eq!(entries["node"], Entry { text: "a".into(), line: 1 });
        assert!(read_text("loop.default_size = 1073741824").is_ok());
    }

    #[test]
    fn sections_have_the_names_that_users_choose() {
        let text = "[repository.main]\nurl = '/x'\n[repository.'off.site']\npassword_file = '/y'\n\
                    [hook.db]\nbefore = [\"sync\", 'a \"b\"']\n[hook.empty]\n";
        let entries = read_text(text).unwrap();
        let at = |name: &str| (entries.values[name].text.as_str(), entries.values[name].line);
        assert_eq!(at("repository.main.url"), ("/x", 2));
        assert_eq!(at("repository.off.site.password_file"), ("/y", 4));
        assert_eq!(at("hook.db.before"), (r#"["sync","a \"b\""]"#, 6));
        let parts: Vec<_> = entries.parts.iter().map(|(s, n, l)| (*s, n.as_str(), *l)).collect();
        for part in [("repository", "main", 1), ("hook", "empty", 7)] {
            assert!(parts.contains(&part), "{parts:?}");
        }
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
            ("[repositry.main]\nurl = '/x'", "line 1: there is no key repositry", "repository?"),
            (
                "[repository.main]\npasword = 'hunter2'",
                "line 2: there is no key repository.main.pasword",
                "repository.main.password?",
            ),
            (
                "[repository]\nurl = '/x'",
                "line 2: repository.url is no section",
                "[repository.NAME]",
            ),
            ("repository = 1", "line 1: repository is no section", "[repository.NAME]"),
            (
                "[repository.'a/b']\nurl = '/x'",
                "line 1: \"a/b\" is not a repository name",
                "letters",
            ),
            ("[hook.db]\nbefore = 'sync'", "line 2: hook.db.before is no list of words", "PROGRAM"),
            ("[hook.db]\nbefore = ['a', 1]", "line 2: hook.db.before is no list of words", ""),
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
