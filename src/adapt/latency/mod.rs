//! The latency of a network and of its narrower versions, measured with the inference engine on this device.
//!
//! Layers are timed in place, within whole networks of random widths: what a layer finds in the caches is what it will
//! find. [`LatencyModel`] turns their times into predictions. Measuring is not repeatable, so everything that was
//! measured is kept in one table, in a file and in checkpoints: with the same table a run gives the same bytes.

mod cache;
mod measure;
mod search;

use std::path::Path;

use serde::{Deserialize, Serialize};

pub use cache::default_path;
pub(super) use search::{CANDIDATES, Search};

use crate::Result;
use crate::board::processor_name;
use crate::engine::{EngineConfig, Isa, Precision};
use crate::graph::{Graph, Scope};
use crate::model::Params;
use crate::prune::LatencyModel;
use crate::prune::latency::TimedNetwork;
use crate::timing::{Timed, in_turns};
use crate::weights::sha256;

/// How often at most a network is measured that seems to take far too long.
const TRIES: usize = 4;

/// Whether a time is so far above its prediction that others' work is a likelier reason than a wrong prediction.
pub(super) fn is_disturbed(measured_ns: u64, predicted_ns: u64) -> bool {
    measured_ns as f64 > 1.3 * predicted_ns as f64
}

/// What times belong to: those of another device, program or network are none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableIdentity {
    /// The board's or processor's name.
    pub device: String,
    /// Instruction set of the kernels.
    pub isa: String,
    /// Threads of a request.
    pub threads: usize,
    /// The numbers computed with.
    pub precision: Precision,
    /// Version of this program.
    pub version: String,
    /// The network's architecture, for people.
    pub arch: String,
    /// SHA-256 of its graph.
    pub graph_sha256: String,
    /// Which groups were narrowed.
    pub scope: Scope,
}

impl TableIdentity {
    /// `graph` on this device, with as many threads as this process computes with.
    pub fn here(graph: &Graph, precision: Precision, scope: Scope) -> Self {
        Self {
            device: processor_name(Path::new("/")).unwrap_or_else(|| "unknown".to_string()),
            isa: Isa::detect().to_string(),
            threads: rayon::current_num_threads(),
            precision,
            version: env!("CARGO_PKG_VERSION").to_string(),
            arch: graph.name().to_string(),
            graph_sha256: sha256(graph.to_json().to_string().as_bytes()),
            scope,
        }
    }

    fn engine(&self) -> EngineConfig {
        EngineConfig { threads: self.threads, ..EngineConfig::default() }
    }
}

/// Everything measured in one identity.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LatencyTable {
    /// Where and of what.
    pub identity: TableIdentity,
    /// Networks of random widths, whole and layer by layer.
    pub networks: Vec<TimedNetwork>,
    /// Networks that a budget led to.
    pub candidates: Vec<Candidate>,
}

/// The time of a network that pruning arrived at.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Candidate {
    /// Channels of every node's output, in the graph's order.
    pub widths: Vec<usize>,
    /// Nanoseconds per image.
    pub ns: u64,
}

impl LatencyTable {
    /// A prediction for every narrower version of `graph`.
    ///
    /// # Errors
    /// As [`LatencyModel::fit`].
    pub fn model(&self, graph: &Graph) -> Result<LatencyModel> {
        LatencyModel::fit(graph, &self.networks, Isa::detect().channel_blocks())
    }

    /// Nanoseconds of a narrower version of the table's network: as measured before, else measured now and remembered. What
    /// seems disturbed beside `predicted_ns` is measured again. `go_on` may end it.
    ///
    /// # Errors
    /// Those of `go_on`; as compiling and running.
    pub fn candidate(
        &mut self,
        graph: &Graph,
        params: &Params,
        predicted_ns: u64,
        go_on: &mut dyn FnMut() -> Result<()>,
    ) -> Result<u64> {
        let widths: Vec<usize> = (0..graph.nodes().len()).map(|id| graph.shape(id).channels()).collect();
        if let Some(known) = self.candidates.iter().find(|candidate| candidate.widths == widths) {
            return Ok(known.ns);
        }
        let config = self.identity.engine();
        let calibration = match self.identity.precision {
            Precision::F32 => None,
            Precision::Int8 => Some(measure::calibrate(graph, params.clone(), config)?),
        };
        let mut ns = u64::MAX;
        for _ in 0..TRIES {
            // A new engine has new threads, on other processors perhaps.
            let engine = measure::compile(graph, params.clone(), config, calibration.as_ref())?;
            ns = in_turns(&mut [Timed::new(engine, 1)?], go_on)?
                .first()
                .map_or(ns, |&ms| measure::nanoseconds(ms).min(ns));
            if !is_disturbed(ns, predicted_ns) {
                break;
            }
        }
        self.candidates.push(Candidate { widths, ns });
        Ok(ns)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::{Activation, ChannelGroups, Conv2d, GraphBuilder};
    use crate::model::testing::random_params;
    use crate::rng::Rng;
    use crate::{Error, Result};

    /// Small, so that tests without optimisation take no time.
    fn network() -> Graph {
        let mut b = GraphBuilder::new("small", [1, 8, 8]);
        let x = b.conv("a", Conv2d::new(16, 3).padding(1), 0);
        let x = b.activation("relu", Activation::Relu, x);
        let x = b.conv("b", Conv2d::new(12, 1), x);
        b.classifier("fc", 3, x);
        b.finish().unwrap()
    }

    fn table(done: &mut dyn FnMut(f64) -> Result<()>) -> Result<LatencyTable> {
        let graph = network();
        let groups = ChannelGroups::new(&graph, Scope::Inner);
        LatencyTable::measure(&graph, &groups, TableIdentity::here(&graph, Precision::F32, Scope::Inner), done)
    }

    #[test]
    fn a_table_reads_back_where_it_fits_and_nowhere_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("not/yet/there.json");
        let mut parts = Vec::new();
        let table = table(&mut |part| {
            parts.push(part);
            Ok(())
        })
        .unwrap();
        assert!(parts.is_sorted() && parts.last() == Some(&1.0), "{parts:?}");
        assert_eq!(LatencyTable::load(&path, &table.identity).unwrap(), None);
        table.save(&path).unwrap();
        assert_eq!(LatencyTable::load(&path, &table.identity).unwrap().as_ref(), Some(&table));
        let here = table.identity.clone();
        for other in [
            TableIdentity { device: "another board".into(), ..here.clone() },
            TableIdentity { isa: "another".into(), ..here.clone() },
            TableIdentity { threads: here.threads + 1, ..here.clone() },
            TableIdentity { precision: Precision::Int8, ..here.clone() },
            TableIdentity { version: "0.0.0".into(), ..here.clone() },
            TableIdentity { graph_sha256: String::new(), ..here.clone() },
            TableIdentity { scope: Scope::All, ..here.clone() },
        ] {
            assert_eq!(LatencyTable::load(&path, &other).unwrap(), None, "{other:?}");
            assert_ne!(default_path(&other), default_path(&here), "{other:?}");
        }
        std::fs::write(&path, "{}").unwrap();
        let message = LatencyTable::load(&path, &here).unwrap_err().to_string();
        assert!(message.contains("there.json: not a latency table"), "{message}");
    }

    #[test]
    fn measuring_stops_when_it_is_told_to() {
        let stopped = table(&mut |_| Err(Error::Interrupted("enough".into())));
        assert!(matches!(stopped, Err(Error::Interrupted(_))));
    }

    #[test]
    fn a_candidate_is_measured_once() {
        let graph = network();
        let identity = TableIdentity::here(&graph, Precision::F32, Scope::Inner);
        let mut table = LatencyTable { identity, networks: Vec::new(), candidates: Vec::new() };
        let params = random_params(&graph, &mut Rng::new(1));
        let ns = table.candidate(&graph, &params, 1_000_000, &mut || Ok(())).unwrap();
        assert!(ns > 100 && ns < 100_000_000, "{ns}");
        table.candidates[0].ns = 42;
        assert_eq!(table.candidate(&graph, &params, 1_000_000, &mut || Ok(())).unwrap(), 42);
        assert_eq!(table.candidates.len(), 1);
    }

    #[test]
    fn eight_bits_are_timed_too() {
        let graph = network();
        let groups = ChannelGroups::new(&graph, Scope::Inner);
        let identity = TableIdentity::here(&graph, Precision::Int8, Scope::Inner);
        let table = LatencyTable::measure(&graph, &groups, identity, &mut |_| Ok(())).unwrap();
        assert!(table.model(&graph).unwrap().nanoseconds(&graph) > 0);
    }
}
