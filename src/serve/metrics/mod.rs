//! What the server counts, and how Prometheus reads it.

mod histogram;
mod recent;
mod text;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

pub use histogram::{Counts, Histogram};
pub use recent::Recent;
pub use text::Text;

use crate::board::{Board, resident_bytes};
use crate::store::ModelName;

/// Upper bounds of times, in seconds.
const SECONDS: &[f64] =
    &[0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
/// Upper bounds of times that are compared and not shown, in seconds: each a tenth above the one before.
const FINE_SECONDS: &[f64] = &fine_seconds();
/// Upper bounds of batch sizes, in images.
const IMAGES: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0];

const fn fine_seconds() -> [f64; 122] {
    let mut bounds = [1e-4; 122];
    let mut index = 1;
    while index < bounds.len() {
        bounds[index] = 1.1 * bounds[index - 1];
        index += 1;
    }
    bounds
}

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Counts one.
    pub(crate) fn increment(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// The count.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A number that goes up and down.
#[derive(Debug, Default)]
pub struct Gauge(AtomicU64);

impl Gauge {
    /// Sets it.
    pub(crate) fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// The number.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What is counted for a model, over all its versions.
#[derive(Debug)]
pub struct ModelMetrics {
    /// Seconds a request waited for the engine.
    pub queue_seconds: Histogram,
    /// Seconds the engine took for the batch that a request was in.
    pub compute_seconds: Histogram,
    /// The same in finer ranges, to compare spans of time by.
    pub compute_seconds_fine: Histogram,
    /// Images the engine was given at a time.
    pub batch_images: Histogram,
    /// Images waiting now.
    pub queued_images: Gauge,
    /// The version that answers, 0 if none.
    pub version: Gauge,
    /// Versions that began to serve.
    pub loaded: Counter,
    /// Versions that could not be loaded or failed their smoke inference.
    pub refused: Counter,
    /// Requests turned away because the queue was full.
    pub overloaded: Counter,
    /// Requests whose time was over before the engine came to them.
    pub expired: Counter,
    /// Requests of clients that were answered.
    pub answered: Counter,
    /// How long the latest of them took.
    pub recent: Recent,
}

impl ModelMetrics {
    fn new() -> Self {
        Self {
            queue_seconds: Histogram::new(SECONDS),
            compute_seconds: Histogram::new(SECONDS),
            compute_seconds_fine: Histogram::new(FINE_SECONDS),
            batch_images: Histogram::new(IMAGES),
            queued_images: Gauge::default(),
            version: Gauge::default(),
            loaded: Counter::default(),
            refused: Counter::default(),
            overloaded: Counter::default(),
            expired: Counter::default(),
            answered: Counter::default(),
            recent: Recent::default(),
        }
    }
}

/// Everything that is counted.
#[derive(Debug)]
pub struct Metrics {
    started: f64,
    begun: Instant,
    /// Open connections.
    pub connections: Gauge,
    /// Idle connections that were closed to make room for new ones.
    pub connections_evicted: Counter,
    requests: Mutex<BTreeMap<(String, u16), u64>>,
    request_seconds: Mutex<BTreeMap<String, Histogram>>,
    models: Mutex<BTreeMap<ModelName, Arc<ModelMetrics>>>,
}

impl Default for Metrics {
    fn default() -> Self {
        let started = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        Self {
            started,
            begun: Instant::now(),
            connections: Gauge::default(),
            connections_evicted: Counter::default(),
            requests: Mutex::default(),
            request_seconds: Mutex::default(),
            models: Mutex::default(),
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Metrics {
    /// The counts of a model, which begin at the first call.
    pub fn model(&self, name: &ModelName) -> Arc<ModelMetrics> {
        locked(&self.models).entry(name.clone()).or_insert_with(|| Arc::new(ModelMetrics::new())).clone()
    }

    /// How long there has been something to count.
    pub fn uptime(&self) -> Duration {
        self.begun.elapsed()
    }

    /// Counts an answered request; `route` is the pattern that matched, of which there are few.
    pub(crate) fn answered(&self, route: &str, status: u16, took: Duration) {
        *locked(&self.requests).entry((route.to_string(), status)).or_insert(0) += 1;
        let mut seconds = locked(&self.request_seconds);
        seconds.entry(route.to_string()).or_insert_with(|| Histogram::new(SECONDS)).observe(took.as_secs_f64());
    }

    /// All answered requests with this status.
    pub fn answers_with(&self, status: u16) -> u64 {
        locked(&self.requests).iter().filter(|((_, s), _)| *s == status).map(|(_, count)| count).sum()
    }

    /// All of it in Prometheus' text format.
    pub fn render(&self) -> String {
        let mut text = Text::default();
        self.render_requests(&mut text);
        self.render_models(&mut text);
        text.single(("secateur_connections", "gauge"), "Open connections.", self.connections.get());
        text.single(
            ("secateur_connections_evicted_total", "counter"),
            "Idle connections closed to make room for new ones.",
            self.connections_evicted.get(),
        );
        if let Some(celsius) = Board::read().celsius {
            text.single(("secateur_temperature_celsius", "gauge"), "Hottest thermal zone of the board.", celsius);
        }
        if let Some(bytes) = resident_bytes() {
            text.single(("process_resident_memory_bytes", "gauge"), "Resident memory of the process.", bytes);
        }
        let help = "When the process started, in seconds since 1970.";
        text.single(("process_start_time_seconds", "gauge"), help, self.started);
        text.family("secateur_build_info", "gauge", "The program's version.");
        text.sample("secateur_build_info", &[("version", env!("CARGO_PKG_VERSION"))], 1);
        text.finish()
    }

    fn render_requests(&self, text: &mut Text) {
        let requests = locked(&self.requests).clone();
        text.family("secateur_http_requests_total", "counter", "Answered requests by route and status.");
        for ((route, status), count) in &requests {
            let labels = [("route", route.as_str()), ("code", &status.to_string())];
            text.sample("secateur_http_requests_total", &labels, count);
        }
        text.family("secateur_http_request_duration_seconds", "histogram", "From a request's header to its answer.");
        for (route, histogram) in &*locked(&self.request_seconds) {
            text.histogram("secateur_http_request_duration_seconds", &[("route", route)], histogram);
        }
    }

    fn render_models(&self, text: &mut Text) {
        type Number = fn(&ModelMetrics) -> u64;
        type Times = fn(&ModelMetrics) -> &Histogram;
        let models = locked(&self.models).clone();
        let numbers: [(&str, &str, &str, Number); 5] = [
            ("secateur_queued_images", "gauge", "Images waiting for the engine.", |m| m.queued_images.get()),
            ("secateur_overloaded_total", "counter", "Requests turned away by a full queue.", |m| m.overloaded.get()),
            ("secateur_expired_total", "counter", "Requests that waited past their deadline.", |m| m.expired.get()),
            ("secateur_model_loads_total", "counter", "Versions that began to serve.", |m| m.loaded.get()),
            ("secateur_model_refusals_total", "counter", "Versions that could not serve.", |m| m.refused.get()),
        ];
        for (name, kind, help, value) in numbers {
            text.family(name, kind, help);
            models.iter().for_each(|(model, m)| text.sample(name, &[("model", model.as_str())], value(m)));
        }
        let histograms: [(&str, &str, Times); 3] = [
            ("secateur_queue_duration_seconds", "Time a request waited for the engine.", |m| &m.queue_seconds),
            ("secateur_compute_duration_seconds", "Time the engine took for a batch.", |m| &m.compute_seconds),
            ("secateur_batch_images", "Images the engine was given at a time.", |m| &m.batch_images),
        ];
        for (name, help, of) in histograms {
            text.family(name, "histogram", help);
            models.iter().for_each(|(model, m)| text.histogram(name, &[("model", model.as_str())], of(m)));
        }
        text.family("secateur_model_info", "gauge", "The version of each model that answers.");
        for (model, m) in models.iter().filter(|(_, m)| m.version.get() > 0) {
            let labels = [("model", model.as_str()), ("version", &m.version.get().to_string())];
            text.sample("secateur_model_info", &labels, 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_happened_can_be_read() {
        let metrics = Metrics::default();
        metrics.answered("/v2", 200, Duration::from_millis(2));
        metrics.answered("/v2", 404, Duration::from_millis(2));
        let model = metrics.model(&"digits".parse().unwrap());
        model.version.set(7);
        model.batch_images.observe(3.0);
        let text = metrics.render();
        for line in [
            "secateur_http_requests_total{route=\"/v2\",code=\"404\"} 1",
            "secateur_http_request_duration_seconds_count{route=\"/v2\"} 2",
            "secateur_batch_images_bucket{model=\"digits\",le=\"4\"} 1",
            "secateur_model_info{model=\"digits\",version=\"7\"} 1",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
        assert_eq!((metrics.answers_with(404), metrics.answers_with(500)), (1, 0));
    }

    #[test]
    fn fine_ranges_reach_from_a_tenth_of_a_millisecond_to_ten_seconds() {
        let bounds = fine_seconds();
        assert!(bounds[0] == 1e-4 && bounds[121] > 10.0 && bounds[121] < 11.0, "{}", bounds[121]);
    }

    #[test]
    fn every_family_is_described_once() {
        let text = Metrics::default().render();
        let names: Vec<&str> = text.lines().filter_map(|l| l.strip_prefix("# TYPE ")?.split(' ').next()).collect();
        let distinct: std::collections::BTreeSet<_> = names.iter().collect();
        assert_eq!(distinct.len(), names.len(), "{text}");
    }
}
