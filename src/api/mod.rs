//! The sockets: Docker's plugin protocol, and the admin API with its metrics. They translate and decide nothing.

pub mod admin;
pub mod docker;
pub mod metrics;
pub mod server;
mod stream;

use tokio::sync::watch;

use crate::engine::Engine;

/// The engine, once it has started: until then requests wait, and are not told that a volume does
/// not exist.
#[derive(Debug, Clone)]
pub struct Gate(watch::Receiver<Option<Engine>>);

/// Opens a [`Gate`]. Dropped without opening it, it tells those who wait that there is no engine.
#[derive(Debug)]
pub struct GateKeeper(watch::Sender<Option<Engine>>);

impl Gate {
    /// A closed gate.
    pub fn closed() -> (GateKeeper, Self) {
        let (sender, receiver) = watch::channel(None);
        (GateKeeper(sender), Self(receiver))
    }

    /// The engine; none if it will never start.
    pub async fn engine(&self) -> Option<Engine> {
        if let Some(engine) = &*self.0.borrow() {
            return Some(engine.clone());
        }
        self.0.clone().wait_for(Option::is_some).await.ok()?.clone()
    }
}

impl GateKeeper {
    /// Lets everybody through to `engine`.
    pub fn open(&self, engine: Engine) {
        self.0.send_replace(Some(engine));
    }
}
