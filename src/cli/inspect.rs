//! `secateur inspect`: what a model is made of and what it costs.

use std::path::PathBuf;

use candle_core::Device;
use clap::Args;
use serde_json::{Value, json};

use super::model_args::ModelArgs;
use super::output::{print, short};
use super::run_args::ScopeArg;
use crate::Result;
use crate::graph::ChannelGroups;
use crate::model::Teacher;
use crate::prune::Budget;

/// Arguments of `inspect`.
#[derive(Debug, Args)]
pub(super) struct InspectArgs {
    /// The model: teacher or student
    model: PathBuf,
    /// Which groups count as prunable
    #[arg(long, value_enum, default_value = "inner")]
    scope: ScopeArg,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    args: ModelArgs,
}

impl InspectArgs {
    pub fn run(self) -> Result<()> {
        let model = self.args.load(&self.model, &Device::Cpu)?;
        let groups = ChannelGroups::new(&model.graph, self.scope.into());
        print(&if self.json { as_json(&model, &groups).to_string() } else { as_text(&model, &groups) })
    }
}

/// Channels of node `id` before pruning, where the file tells.
fn before(model: &Teacher, id: usize) -> Option<usize> {
    model.provenance.as_ref()?.widths_before.get(&model.graph.nodes()[id].name).copied()
}

fn as_json(model: &Teacher, groups: &ChannelGroups) -> Value {
    let graph = &model.graph;
    let cost = graph.cost();
    let layers: Vec<Value> = (0..graph.nodes().len())
        .map(|id| {
            let (node, cost) = (&graph.nodes()[id], graph.node_cost(id));
            let inputs: Vec<&str> = node.inputs.iter().map(|&i| graph.nodes()[i].name.as_str()).collect();
            json!({
                "name": node.name, "op": node.op.kind(), "inputs": inputs, "shape": graph.shape(id).dims(),
                "channels_before": before(model, id), "macs": cost.macs, "params": cost.params, "bytes": cost.bytes,
            })
        })
        .collect();
    let listed: Vec<Value> = (groups.groups().iter())
        .map(|group| {
            let names = |ids: &[usize]| ids.iter().map(|&id| graph.nodes()[id].name.clone()).collect::<Vec<_>>();
            json!({
                "name": group.name, "width": group.width, "prunable": group.fixed.is_none(), "fixed": group.fixed,
                "producers": names(&group.producers), "nodes": names(&group.nodes),
            })
        })
        .collect();
    json!({
        "arch": graph.name(), "params": cost.params, "macs": cost.macs, "channels": groups.total_channels(),
        "bytes": cost.bytes, "input": graph.input_shape(), "classes": model.info.class_names,
        "preprocess": model.info.preprocess, "provenance": model.provenance, "groups": listed, "layers": layers,
    })
}

fn as_text(model: &Teacher, groups: &ChannelGroups) -> String {
    let graph = &model.graph;
    let mut lines = vec![graph.to_string(), String::new()];
    lines.push(format!("{:<40} {:>14} {:>9}  layers", "channel group", "channels", "prunable"));
    for group in groups.groups() {
        let old = group.producers.first().and_then(|&id| before(model, id));
        let channels = match old {
            Some(old) if old != group.width => format!("{old} → {}", group.width),
            _ => group.width.to_string(),
        };
        let prunable = group.fixed.map_or("yes".to_string(), |why| format!("no: {why}"));
        lines.push(format!("{:<40} {channels:>14} {prunable:>9}  {}", group.name, group.nodes.len()));
    }
    let cost = graph.cost();
    lines.push(String::new());
    lines.push(format!(
        "{}: {} classes, input {:?}, {} prunable channels, {} parameters, {} MACs, {}B",
        graph.name(),
        model.info.class_names.len(),
        graph.input_shape(),
        groups.total_channels(),
        short(cost.params),
        short(cost.macs),
        short(cost.bytes)
    ));
    if let Some(provenance) = &model.provenance {
        if let Ok(Some(budget)) = serde_json::from_value::<Option<Budget>>(provenance.config["budget"].clone()) {
            lines.push(format!("pruned to {budget}"));
        }
        lines.push(format!(
            "made by secateur {} from teacher sha256 {} on data {}",
            provenance.version, provenance.teacher_sha256, provenance.data_sha256
        ));
    }
    lines.join("\n")
}
