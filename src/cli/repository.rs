//! `holdfast repository`

use super::Session;
use super::args::Repository;
use super::exit::Failure;
use super::print::{self, or_dash, table};
use super::volume::name_of;
use crate::api::admin::Changed;
use crate::engine::view::{RepositoryState, RepositoryView};
use crate::error::Error;
use crate::name::RepositoryName;
use crate::units::ByteSize;

pub(super) async fn run(session: &Session, asked: &Repository) -> Result<(), Failure> {
    let client = &session.client;
    match asked {
        Repository::Init { name, detach } => {
            session.change(*detach, |how| client.init_repository(how, name), name_of).await
        }
        Repository::Ls => session.printer.show(&client.repositories().await?, |all| list(all)),
        Repository::Check { name, detach } => {
            let check = |how| client.check_repository(how, name);
            let checked = session.make(*detach, check, found).await?;
            match checked.check {
                Some(check) if !check.sound => Err(Failure::Told(1)),
                _ => Ok(()),
            }
        }
    }
}

/// The repository that was named, or the default one.
pub(super) async fn named(
    session: &Session,
    name: Option<&RepositoryName>,
) -> Result<RepositoryName, Failure> {
    if let Some(name) = name {
        return Ok(name.clone());
    }
    let repositories = session.client.repositories().await?;
    if let Some(default) = repositories.iter().find(|repository| repository.default) {
        return Ok(default.name.clone());
    }
    let names: Vec<&str> = repositories.iter().map(|one| one.name.as_str()).collect();
    Err(match names[..] {
        [] => Error::not_found("the configuration has no repository")
            .hint("write a section [repository.NAME] with url and password_file"),
        _ => Error::invalid("no repository is the default one").hint(format!(
            "name one of them with --repository, or set default_repository: {}",
            names.join(", ")
        )),
    }
    .into())
}

fn list(repositories: &[RepositoryView]) -> String {
    let rows = repositories.iter().map(|repository| {
        [
            format!("{}{}", repository.name, if repository.default { " (default)" } else { "" }),
            state(repository.state).to_owned(),
            or_dash(repository.backups),
            or_dash(repository.size.map(ByteSize::new)),
            repository.url.clone(),
        ]
    });
    let mut text = table(["REPOSITORY", "STATE", "BACKUPS", "SIZE", "PLACE"], rows);
    for repository in repositories {
        if let Some(error) = &repository.error {
            let hint = error.hint.as_ref().map(|hint| format!("; {hint}")).unwrap_or_default();
            text.push_str(&format!("\n{}: {}{hint}", repository.name, error.message));
        }
    }
    text
}

fn state(state: RepositoryState) -> &'static str {
    match state {
        RepositoryState::Ready => "ready",
        RepositoryState::Missing => "missing",
        RepositoryState::Unreachable => "unreachable",
        RepositoryState::Refused => "refused",
    }
}

fn found(changed: &Changed) -> String {
    match &changed.check {
        Some(check) => print::check(&format!("repository {}", changed.name), check),
        None => changed.name.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::view::ErrorView;

    #[test]
    fn a_repository_that_cannot_be_used_is_told_with_the_reason() {
        let ready = RepositoryView {
            name: "main".parse().unwrap(),
            url: "/backups".into(),
            default: true,
            state: RepositoryState::Ready,
            backups: Some(3),
            size: Some(5 << 30),
            error: None,
        };
        let missing = RepositoryView {
            name: "offsite".parse().unwrap(),
            url: "s3:bucket".into(),
            default: false,
            state: RepositoryState::Missing,
            backups: None,
            size: None,
            error: Some(ErrorView {
                code: "not-found".into(),
                message: "there is no repository there".into(),
                hint: Some("make one".into()),
            }),
        };
        let text = list(&[ready, missing]);
        let lines: Vec<String> = text
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
            .collect();
        assert_eq!(
            lines,
            [
                "REPOSITORY STATE BACKUPS SIZE PLACE",
                "main (default) ready 3 5G /backups",
                "offsite missing - - s3:bucket",
                "offsite: there is no repository there; make one"
            ]
        );
    }
}
