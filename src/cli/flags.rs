//! A flag for every configuration key, from the same table as all else about the keys.

use std::collections::BTreeMap;

use clap::{Arg, ArgMatches, Args, Command, FromArgMatches};

use crate::config::{Fallback, KEYS};

/// The key that is a flag of every command.
pub(super) const GLOBAL: &str = "admin_socket";

/// The configuration keys that were given as flags.
#[derive(Debug, Clone, Default)]
pub(super) struct ConfigFlags(pub(super) BTreeMap<String, String>);

impl Args for ConfigFlags {
    fn augment_args(mut command: Command) -> Command {
        for key in KEYS.iter().filter(|key| key.name != GLOBAL) {
            let fallback = match key.fallback {
                Fallback::Text("") => "none".to_owned(),
                Fallback::Text(text) => text.to_owned(),
                Fallback::Below(parent, leaf) => format!("{leaf} in {parent}"),
                Fallback::HostName => "the host's name".to_owned(),
                Fallback::Required => "it has to be given".to_owned(),
            };
            let help = format!(
                "{} [default: {fallback}] [env: {}]",
                key.help.trim_end_matches('.'),
                key.variable()
            );
            // clap wants names that live for ever; the command is built once in a process.
            command = command.arg(
                Arg::new(key.name)
                    .long(&*key.flag().leak())
                    .value_name(key.form)
                    .help(help)
                    .help_heading("Configuration"),
            );
        }
        command
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for ConfigFlags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let given = KEYS.iter().filter(|key| key.name != GLOBAL).filter_map(|key| {
            let value = matches.get_one::<String>(key.name)?;
            Some((key.name.to_owned(), value.clone()))
        });
        Ok(Self(given.collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        self.0.extend(Self::from_arg_matches(matches)?.0);
        Ok(())
    }
}
