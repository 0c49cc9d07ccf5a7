//! `holdfast events`

use super::Session;
use super::args::{Events, Output};
use super::exit::Failure;
use super::print;
use crate::client::Next;
use crate::engine::view::EventView;
use crate::error::Error;

pub(super) async fn run(session: &Session, asked: &Events) -> Result<(), Failure> {
    let output = session.printer.0;
    let mut outcome = Ok(());
    let show = |event: EventView| {
        let printed = line(&event, output).and_then(|line| print::line(&line));
        match printed {
            Ok(print::Reader::There) => Next::More,
            // Whoever reads has seen enough.
            Ok(print::Reader::Gone) => Next::Enough,
            Err(failure) => {
                outcome = Err(failure);
                Next::Enough
            }
        }
    };
    session.client.events(asked.after, asked.follow, show).await?;
    outcome
}

fn line(event: &EventView, output: Output) -> Result<String, Failure> {
    match output {
        Output::Json => serde_json::to_string(event).map_err(|error| {
            Failure::Failed(Error::internal("the event cannot be written").caused_by(error))
        }),
        Output::Table => {
            Ok(format!("{}  {:19}  {}", event.time, event.kind, event.message.replace('\n', " ")))
        }
    }
}
