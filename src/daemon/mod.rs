//! The daemon: puts the parts together, starts them in an order in which nothing is told that is
//! not known, and stops them.

mod backends;
mod sockets;

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tracing::level_filters::LevelFilter;

use crate::api::docker::Place;
use crate::api::metrics::Metrics;
use crate::api::server::Limits;
use crate::api::{Gate, GateKeeper, admin, docker};
use crate::catalog::Catalog;
use crate::clock;
use crate::config::{self, Config, LogFormat, LogLevel};
use crate::engine::{
    self, Engine, EngineConfig, Environment, RebuildReport, Repositories, Unreadable,
};
use crate::error::{Error, Result};
use crate::failpoint;
use crate::linux::{Host, LinuxHost, LockFile};
use crate::repository::Repository;
use crate::telemetry;
use sockets::{Inherited, Socket};

/// How long operations may still run after the last request was answered, besides the time for
/// which one may hold a filesystem frozen: better to end it than to break it off.
const STOP_LIMIT: Duration = Duration::from_secs(5);

/// What to do with the catalog that is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CatalogChoice {
    /// Use it; make one from what the backends hold if there is none.
    Keep,
    /// Move it aside and make one from what the backends hold, whatever is lost or damaged.
    Rebuild,
}

/// Runs the daemon until it is told to stop by SIGTERM or SIGINT. Mounted volumes stay mounted.
///
/// # Errors
/// Whatever stops it from starting.
pub fn run(config: &Config, catalog: CatalogChoice) -> Result<()> {
    telemetry::start(
        match config.log_level {
            LogLevel::Error => LevelFilter::ERROR,
            LogLevel::Warn => LevelFilter::WARN,
            LogLevel::Info => LevelFilter::INFO,
            LogLevel::Debug => LevelFilter::DEBUG,
            LogLevel::Trace => LevelFilter::TRACE,
        },
        match config.log_format {
            LogFormat::Text => telemetry::Format::Text,
            LogFormat::Json => telemetry::Format::Json,
        },
    )?;
    if let Ok(text) = std::env::var(failpoint::VARIABLE) {
        failpoint::arm(&text)?;
    }
    for (name, near) in config::unknown_variables(&config::environment()?) {
        match near {
            Some(near) => tracing::warn!("{name} means nothing; did you mean {near}?"),
            None => tracing::warn!("{name} means nothing"),
        }
    }
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(cores.min(4))
        .enable_all()
        .build()
        .map_err(|error| Error::io("cannot start the runtime", error))?;
    let result = runtime.block_on(serve(config, catalog));
    // A call that hangs in the kernel must not hold up the end.
    runtime.shutdown_timeout(Duration::from_millis(500));
    result
}

async fn serve(config: &Config, catalog: CatalogChoice) -> Result<()> {
    let (stop, stopped) = watch::channel(false);
    let mut signals = Signals::listen()?;
    sockets::make_directory(&config.state_dir, 0o700)?;
    sockets::make_directory(&config.runtime_dir, 0o755)?;
    warn_if_open(&config.state_dir);
    sockets::make_directory(&config.mount_dir, 0o755)?;
    let _locks = (
        lock(&config.state_dir.join("lock"))?,
        lock(&config.runtime_dir.join("holdfast.pid"))?,
        // No volume's name begins with a dot.
        lock(&config.mount_dir.join(".lock"))?,
    );
    let host = LinuxHost::new()?;
    warn_of_missing(&host);
    let host: Arc<dyn Host> = Arc::new(host);
    // First of all: whatever else does not work, no container may hang for what an earlier run froze.
    backends::resume_interrupted(config).await;
    for failed in engine::thaw_all(&host, &config.mount_dir).await {
        tracing::error!("{failed}");
    }

    let mut inherited = Inherited::take()?;
    let mut admin_socket = Socket::admin(&config.admin_socket, &mut inherited)?;
    let mut plugin_socket = Socket::plugin(&config.plugin_socket, &mut inherited)?;
    let (keeper, gate) = Gate::closed();
    let place = Place {
        node: config.node.as_str().to_owned(),
        default_backend: config.default_backend.clone(),
    };
    // Docker holds a lock until Activate is answered, so this comes before all work.
    let limits = limits();
    let metrics = Metrics::default();
    let plugin = docker::serve(
        plugin_socket.listener()?,
        gate.clone(),
        place,
        metrics.clone(),
        limits,
        told(&stopped),
    );
    let admin = admin::serve(admin_socket.listener()?, gate, metrics, limits, told(&stopped));
    let faces = [tokio::spawn(plugin), tokio::spawn(admin)];

    let result = tokio::select! {
        started = start(config, catalog, host) => match started {
            Ok(engine) => {
                attend(&engine, keeper, config, &mut signals).await;
                let _ = stop.send(true);
                sockets::notify("STOPPING=1");
                tokio::select! {
                    () = finish(faces, &engine, config.loop_freeze_limit) => {}
                    () = signals.next() => tracing::warn!("told twice to stop: stopping now"),
                }
                engine.end_freezes().await;
                Ok(())
            }
            Err(error) => Err(error),
        },
        () = signals.next() => Ok(()),
    };
    drop((admin_socket, plugin_socket));
    result
}

/// From the start to the word to stop.
async fn attend(engine: &Engine, keeper: GateKeeper, config: &Config, signals: &mut Signals) {
    keeper.open(engine.clone());
    sockets::notify("READY=1");
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        node = config.node.as_str(),
        plugin_socket = %config.plugin_socket.display(),
        admin_socket = %config.admin_socket.display(),
        "ready"
    );
    signals.next().await;
    tracing::info!("stopping; mounted volumes stay mounted");
}

async fn finish(faces: [JoinHandle<()>; 2], engine: &Engine, frozen: Duration) {
    for face in faces {
        let _ = face.await;
    }
    engine.stop(frozen.saturating_add(STOP_LIMIT)).await;
}

/// Connections must leave file descriptors for the work that they ask for.
fn limits() -> Limits {
    let usual = Limits::default();
    let told = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let line = told.lines().find_map(|line| line.strip_prefix("Max open files"));
    let files = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    let files: usize = files.unwrap_or(usize::MAX);
    Limits { connections: usual.connections.min(files / 3).max(16), ..usual }
}

/// Done when the daemon stops.
fn told(stopped: &watch::Receiver<bool>) -> impl Future<Output = ()> + Send + 'static {
    let mut stopped = stopped.clone();
    async move {
        let _ = stopped.wait_for(|stop| *stop).await;
    }
}

async fn open_catalog(path: &Path) -> Result<Catalog> {
    let path = path.to_owned();
    tokio::task::spawn_blocking(move || Catalog::open_existing(&path))
        .await
        .map_err(|error| Error::internal("opening the catalog broke off").caused_by(error))?
}

async fn start(config: &Config, choice: CatalogChoice, host: Arc<dyn Host>) -> Result<Engine> {
    let path = config.state_dir.join("catalog.redb");
    // A catalog that cannot be looked at is not one that is lost. It comes before the backends,
    // because it knows what they should find.
    let known = match exists(&path)? && choice == CatalogChoice::Keep {
        true => Some(open_catalog(&path).await?),
        false => None,
    };
    let backends = backends::open(config, known.as_ref()).await?;
    let mut report = RebuildReport::default();
    let catalog = if let Some(catalog) = known {
        catalog
    } else {
        let unreadable = match choice {
            CatalogChoice::Keep => Unreadable::Refuse,
            CatalogChoice::Rebuild => {
                // Before the old catalog goes: without every backend there will be no new one.
                for backend in &backends {
                    backend.storage()?;
                }
                move_aside(&path)?;
                Unreadable::Leave
            }
        };
        report = engine::rebuild_catalog(&path, &backends, unreadable).await?;
        if !report.volumes.is_empty() {
            tracing::warn!(
                volumes = report.volumes.len(),
                "there was no catalog; it was rebuilt from what the backends hold"
            );
        }
        open_catalog(&path).await?
    };
    let environment =
        Environment { clock: Arc::new(clock::System), entropy: Arc::new(clock::System), host };
    let warnings = config.warnings();
    let config = EngineConfig {
        node: config.node.as_str().to_owned(),
        mount_dir: config.mount_dir.clone(),
        default_backend: config.default_backend.clone(),
        trash_after: config.trash_after,
        mount_grace: config.mount_grace,
        freeze_limit: config.loop_freeze_limit,
        hooks: config.hooks.clone(),
        repositories: repositories(config),
    };
    let engine = Engine::start(config, environment, catalog, backends).await?;
    report.left.into_iter().chain(warnings).for_each(|warning| engine.warn(warning));
    Ok(engine)
}

/// The repositories of the configuration; each is opened when it is first used.
fn repositories(config: &Config) -> Repositories {
    let node = config.node.as_str();
    let all = config.repositories.iter().map(|(name, repository)| {
        let settings = repository.settings(name.clone(), node.to_owned(), &config.runtime_dir);
        Repository::new(settings, tokio::runtime::Handle::current())
    });
    let concurrency = config.backup_concurrency.get();
    Repositories::new(all.collect(), config.default_repository.clone(), concurrency)
}

fn exists(path: &Path) -> Result<bool> {
    path.try_exists()
        .map_err(|error| Error::io(format!("cannot look at {}", path.display()), error))
}

/// Nothing is thrown away that might still be read by somebody who knows how.
fn move_aside(path: &Path) -> Result<()> {
    if !exists(path)? {
        return Ok(());
    }
    let now = jiff::Timestamp::now().as_second();
    let aside = PathBuf::from(format!("{}.{now}.old", path.display()));
    std::fs::rename(path, &aside).map_err(|error| {
        Error::io(format!("cannot move {} to {}", path.display(), aside.display()), error)
    })?;
    tracing::warn!("the catalog that was there is {} now", aside.display());
    Ok(())
}

/// What needs one of them will fail; told now, it can be mended before.
fn warn_of_missing(host: &LinuxHost) {
    for program in host.missing_programs() {
        tracing::warn!(
            "{} is not installed (Debian has it in {})",
            program.name(),
            program.package()
        );
    }
}

fn lock(path: &Path) -> Result<LockFile> {
    LockFile::acquire(path).map_err(|error| {
        error
            .context("cannot become this directory's daemon")
            .hint("one daemon runs for each state, runtime and mount directory")
    })
}

fn warn_if_open(directory: &Path) {
    if std::fs::metadata(directory).is_ok_and(|m| m.permissions().mode() & 0o077 != 0) {
        tracing::warn!(
            "{} can be entered by others than its owner, and volumes are mounted in it; `chmod 700` closes it",
            directory.display()
        );
    }
}

/// The word to stop.
struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl Signals {
    fn listen() -> Result<Self> {
        let listen =
            |kind| signal(kind).map_err(|error| Error::io("cannot listen for signals", error));
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
