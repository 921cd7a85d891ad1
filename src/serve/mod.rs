//! The server: models behind HTTP, in the Open Inference Protocol v2, replaced while they answer.
//!
//! From the outside in: `net` accepts connections and bounds what they may cost, `http` turns requests into calls
//! and answers into responses, [`protocol`] reads and writes the protocol's bytes, and `models` owns the engines. One
//! thread runs all of the first two; each model has a thread of its own, and a request reaches it through a bounded
//! queue. Nothing here knows how a model came to be.
//!
//! [`Server::start`] runs it inside another program: models are deployed through its [`Registry`], counts are read
//! from its [`Metrics`], and [`Extras`] add routes and see the images that arrive.

mod config;
mod dashboard;
mod error;
mod http;
mod metrics;
mod models;
mod net;
pub mod protocol;
mod server;
mod time;

pub use config::{PathText, ServeConfig};
pub use error::{Code, Refusal};
pub use http::{Extras, ImageHook, SeenImage, check_files};
pub use metrics::{Counter, Counts, Gauge, Histogram, Metrics, ModelMetrics, Recent, Text as MetricsText};
pub use models::{ModelSettings, Registry, Reply, Repository, Served, Source, Unanswered, Versions};
pub use server::{Listening, Server, ServerHandle};
pub use time::rfc3339;
