//! Numbers for Prometheus, in its text format (`docs/metrics.md`).

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use crate::backend::PoolState;
use crate::engine::{Engine, Figures, Work};
use crate::error::{Error, Result};

/// The content type of what [`Metrics::render`] gives.
pub(super) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Docker gives up after a minute or two.
const SECONDS: [f64; 10] = [0.001, 0.005, 0.02, 0.1, 0.5, 1.0, 5.0, 20.0, 60.0, 120.0];

type Labels = [(&'static str, String); 2];
type OneLabel = [(&'static str, String); 1];

/// What is counted where it happens; all else is asked of the engine. Clones count together.
#[derive(Debug, Clone)]
pub struct Metrics {
    requests: Family<RequestLabels, Counter>,
    durations: Family<EndpointLabels, Histogram, fn() -> Histogram>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    endpoint: &'static str,
    result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EndpointLabels {
    endpoint: &'static str,
}

impl Default for Metrics {
    fn default() -> Self {
        let histogram: fn() -> Histogram = || Histogram::new(SECONDS);
        Self { requests: Family::default(), durations: Family::new_with_constructor(histogram) }
    }
}

impl Metrics {
    /// Docker has asked for something, and `result` came of it.
    pub(super) fn asked(&self, endpoint: &'static str, result: &'static str, took: Duration) {
        self.requests.get_or_create(&RequestLabels { endpoint, result }).inc();
        self.durations.get_or_create(&EndpointLabels { endpoint }).observe(took.as_secs_f64());
    }

    /// All numbers as text.
    ///
    /// # Errors
    /// A defect.
    pub(super) async fn render(&self, engine: &Engine) -> Result<String> {
        self.text(&engine.figures().await)
    }

    fn text(&self, figures: &Figures) -> Result<String> {
        let mut registry = Registry::with_prefix("holdfast");
        registry.register(
            "plugin_requests",
            "Requests of Docker by endpoint and result",
            self.requests.clone(),
        );
        registry.register_with_unit(
            "plugin_request_duration",
            "How long requests of Docker took",
            Unit::Seconds,
            self.durations.clone(),
        );
        register(&mut registry, figures);
        let mut text = String::new();
        encode(&mut text, &registry)
            .map_err(|error| Error::internal("the metrics cannot be written").caused_by(error))?;
        Ok(text)
    }
}

fn gauge(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn work(work: Work) -> Labels {
    [("kind", work.kind.to_owned()), ("subject", work.subject.to_owned())]
}

fn register(registry: &mut Registry, figures: &Figures) {
    let build = Family::<OneLabel, Gauge>::default();
    build.get_or_create(&[("version", env!("CARGO_PKG_VERSION").to_owned())]).set(1);
    registry.register("build_info", "The version of the daemon", build);

    let volumes = Family::<Labels, Gauge>::default();
    for ((backend, state), count) in &figures.volumes {
        let labels = [("backend", backend.to_string()), ("state", (*state).to_owned())];
        volumes.get_or_create(&labels).set(gauge(*count));
    }
    registry.register("volumes", "Volumes by backend and state", volumes);

    let mounted = Gauge::<i64>::default();
    mounted.set(gauge(figures.mounted));
    registry.register("mounted_volumes", "Volumes that are mounted on this node", mounted);

    let running = Family::<Labels, Gauge>::default();
    for (kind, count) in &figures.running {
        running.get_or_create(&work(*kind)).set(gauge(*count));
    }
    registry.register("operations_running", "Changes that are at work", running);

    let over = Family::<[(&'static str, String); 3], Counter>::default();
    for ((kind, failed), count) in &figures.over {
        let [kind, subject] = work(*kind);
        let result = if *failed { "failed" } else { "done" };
        over.get_or_create(&[kind, subject, ("result", result.to_owned())]).inc_by(*count);
    }
    registry.register("operations", "Changes that are over, by kind and result", over);

    let scheduled = Family::<Labels, Counter>::default();
    for ((kind, failed), count) in &figures.scheduled {
        let result = if *failed { "failed" } else { "done" };
        let labels = [("kind", kind.to_string()), ("result", result.to_owned())];
        scheduled.get_or_create(&labels).inc_by(*count);
    }
    registry.register("scheduled_runs", "Runs of schedules, by kind and result", scheduled);

    let ages = Family::<OneLabel, Gauge>::default();
    for (volume, age) in &figures.backup_ages {
        ages.get_or_create(&[("volume", volume.to_string())]).set(gauge(age.as_secs()));
    }
    registry.register_with_unit(
        "last_backup_age",
        "How old the newest backup of a volume is",
        Unit::Seconds,
        ages,
    );

    let room = |pick: fn(&crate::backend::PoolLevel) -> u64| {
        let family = Family::<Labels, Gauge>::default();
        for pool in &figures.pools {
            for (part, level) in [("data", pool.data), ("metadata", pool.metadata)] {
                if let Some(level) = level {
                    let labels = [("pool", pool.name.to_string()), ("part", part.to_owned())];
                    family.get_or_create(&labels).set(gauge(pick(&level)));
                }
            }
        }
        family
    };
    let (used, total) = (room(|level| level.used), room(|level| level.total));
    registry.register_with_unit("pool_used", "Room taken in a pool", Unit::Bytes, used);
    registry.register_with_unit("pool_total", "Room in a pool in all", Unit::Bytes, total);

    let states = Family::<Labels, Gauge>::default();
    let known = PoolState::ALL.map(PoolState::as_str);
    for pool in &figures.pools {
        for state in known.into_iter().chain(["unknown"]) {
            let labels = [("pool", pool.name.to_string()), ("state", state.to_owned())];
            states.get_or_create(&labels).set(i64::from(pool.state == state));
        }
    }
    registry.register("pool_state", "1 for the state that a pool is in, 0 for the others", states);
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;
    use crate::backend::PoolLevel;
    use crate::engine::view::PoolView;
    use crate::model::RunKind;

    fn everything() -> Figures {
        let grow = Work { kind: "grow", subject: "volume" };
        let level = Some(PoolLevel { used: 3, total: 10 });
        Figures {
            volumes: BTreeMap::from([(("thin".parse().unwrap(), "ready"), 2)]),
            mounted: 1,
            running: BTreeMap::from([(grow, 1)]),
            over: BTreeMap::from([((grow, true), 4)]),
            scheduled: BTreeMap::from([((RunKind::Snapshot, false), 5)]),
            backup_ages: BTreeMap::from([("db".parse().unwrap(), Duration::from_secs(60))]),
            pools: vec![PoolView {
                name: "thin".parse().unwrap(),
                uuid: None,
                state: "full".to_owned(),
                location: None,
                chunk_size: None,
                data: level,
                metadata: level,
                grows: false,
                volumes: 2,
                devices: Some(2),
                warnings: Vec::new(),
            }],
        }
    }

    #[test]
    fn the_numbers_are_told_with_their_labels() {
        let metrics = Metrics::default();
        metrics.asked("Mount", "ok", Duration::from_millis(3));
        let text = metrics.text(&everything()).unwrap();
        for line in [
            "holdfast_volumes{backend=\"thin\",state=\"ready\"} 2",
            "holdfast_mounted_volumes 1",
            "holdfast_operations_running{kind=\"grow\",subject=\"volume\"} 1",
            "holdfast_operations_total{kind=\"grow\",subject=\"volume\",result=\"failed\"} 4",
            "holdfast_scheduled_runs_total{kind=\"snapshot\",result=\"done\"} 5",
            "holdfast_last_backup_age_seconds{volume=\"db\"} 60",
            "holdfast_pool_used_bytes{pool=\"thin\",part=\"data\"} 3",
            "holdfast_pool_total_bytes{pool=\"thin\",part=\"metadata\"} 10",
            "holdfast_pool_state{pool=\"thin\",state=\"full\"} 1",
            "holdfast_pool_state{pool=\"thin\",state=\"active\"} 0",
            "holdfast_plugin_requests_total{endpoint=\"Mount\",result=\"ok\"} 1",
            "holdfast_plugin_request_duration_seconds_count{endpoint=\"Mount\"} 1",
        ] {
            assert!(text.lines().any(|told| told == line), "{line}\n{text}");
        }
    }

    #[test]
    fn the_manual_lists_every_metric_and_no_other() {
        let metrics = Metrics::default();
        metrics.asked("Mount", "ok", Duration::ZERO);
        let text = metrics.text(&everything()).unwrap();
        let told: BTreeSet<String> = text
            .lines()
            .filter_map(|line| line.strip_prefix("# TYPE "))
            .filter_map(|line| line.split_once(' '))
            .map(|(name, kind)| match kind {
                "counter" => format!("{name}_total"),
                _ => name.to_owned(),
            })
            .collect();
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/metrics.md");
        let manual = std::fs::read_to_string(path).unwrap();
        let listed: BTreeSet<String> = manual
            .lines()
            .filter_map(|line| line.strip_prefix("| `holdfast_"))
            .filter_map(|line| line.split_once('`'))
            .map(|(name, _)| format!("holdfast_{name}"))
            .collect();
        assert_eq!(listed, told);
    }
}
