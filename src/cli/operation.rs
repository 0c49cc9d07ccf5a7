//! `holdfast operation`

use super::Session;
use super::args::Operation;
use super::exit::Failure;
use super::print::{or_dash, table};
use super::progress;
use crate::client::error_of;
use crate::engine::view::{OperationState, OperationView};
use crate::error::{Error, ErrorKind};
use crate::units::ByteSize;

pub(super) async fn run(session: &Session, asked: &Operation) -> Result<(), Failure> {
    match asked {
        Operation::Ls => session.printer.show(&session.client.operations().await?, |all| list(all)),
        Operation::Watch { id } => {
            let over = progress::follow(&session.client, *id).await?;
            session.printer.show(&over, details)?;
            // The operation's own error decides the exit code, as if one had waited for it.
            match (over.state, over.error) {
                (OperationState::Done | OperationState::Running, _) | (_, None) => Ok(()),
                (_, Some(error)) => Err(Failure::Failed(error_of(error))),
            }
        }
        Operation::Cancel { id } => {
            session.client.cancel(*id).await?;
            let over = progress::follow(&session.client, *id).await?;
            session.printer.show(&over, details)?;
            let error = over.error.map(error_of);
            match error {
                Some(error) if error.kind() == ErrorKind::Cancelled => Ok(()),
                Some(error) => Err(Failure::Failed(error)),
                None => Err(Failure::Failed(
                    Error::conflict(format!(
                        "the {} of {} was done before",
                        over.kind, over.subject
                    ))
                    .hint("remove what it made if it is not wanted"),
                )),
            }
        }
    }
}

fn details(operation: &OperationView) -> String {
    let lines = operation.report.iter().map(|line| format!("\n{line}"));
    list(std::slice::from_ref(operation)) + &lines.collect::<String>()
}

/// `running`, `done`, `failed` or `stuck`.
pub(super) fn state(state: OperationState) -> &'static str {
    match state {
        OperationState::Running => "running",
        OperationState::Done => "done",
        OperationState::Failed => "failed",
        OperationState::Stuck => "stuck",
    }
}

pub(super) fn list(operations: &[OperationView]) -> String {
    let rows = operations.iter().map(|operation| {
        let progress = (operation.total > 0).then(|| {
            format!("{} of {}", ByteSize::new(operation.done), ByteSize::new(operation.total))
        });
        [
            operation.id.to_string(),
            operation.kind.clone(),
            operation.subject.short(),
            state(operation.state).to_owned(),
            or_dash(progress),
            operation.started.to_string(),
            or_dash(operation.error.as_ref().map(|error| error.message.as_str())),
        ]
    });
    table(["ID", "KIND", "SUBJECT", "STATE", "PROGRESS", "STARTED", "ERROR"], rows)
}
