//! Graphs as JSON, so that a new network needs no Rust and a student carries its own architecture.
//!
//! ```json
//! {"name": "tiny", "nodes": [
//!   {"name": "input", "op": "input", "shape": [1, 28, 28]},
//!   {"name": "conv1", "op": "conv2d", "out_channels": 8, "kernel": [3, 3], "padding": {"top": 1, "bottom": 1, "left": 1, "right": 1}},
//!   {"name": "bn1", "op": "batch_norm"},
//!   {"name": "relu1", "op": "activation", "function": "relu"},
//!   {"name": "pool", "op": "global_avg_pool"},
//!   {"name": "flatten", "op": "flatten"},
//!   {"name": "fc", "op": "linear", "out_features": 10}]}
//! ```
//! `inputs` lists earlier nodes by name; left out, it is the node before.

use serde_json::{Map, Value, json};

use super::{Graph, GraphBuilder, NodeId, Op};
use crate::{Error, Result};

impl Graph {
    /// The graph as a JSON value; the same graph gives the same bytes.
    pub fn to_json(&self) -> Value {
        let nodes: Vec<Value> = self
            .nodes()
            .iter()
            .enumerate()
            .map(|(id, node)| {
                let mut object = Map::new();
                object.insert("name".into(), json!(node.name));
                if let Ok(Value::Object(op)) = serde_json::to_value(&node.op) {
                    object.extend(op);
                }
                if id > 0 && node.inputs != [id - 1] {
                    let names: Vec<&str> = node.inputs.iter().map(|&i| self.nodes()[i].name.as_str()).collect();
                    object.insert("inputs".into(), json!(names));
                }
                Value::Object(object)
            })
            .collect();
        json!({ "name": self.name(), "nodes": nodes })
    }

    /// Reads a graph from its JSON value.
    ///
    /// # Errors
    /// [`Error::Shape`] naming the node and field: unknown or missing keys, unknown inputs, shapes that do not fit.
    pub fn from_json(value: &Value) -> Result<Self> {
        let fail = |reason: String| Error::Shape(format!("graph json: {reason}"));
        let object = value.as_object().ok_or_else(|| fail("expected an object with name and nodes".into()))?;
        if let Some(key) = object.keys().find(|k| !["name", "nodes"].contains(&k.as_str())) {
            return Err(fail(format!("unknown key {key:?}, expected name and nodes")));
        }
        let name = object.get("name").and_then(Value::as_str).ok_or_else(|| fail("name: expected a string".into()))?;
        let nodes =
            object.get("nodes").and_then(Value::as_array).ok_or_else(|| fail("nodes: expected a list".into()))?;
        let parsed = nodes
            .iter()
            .enumerate()
            .map(|(index, node)| parse_node(node).map_err(|reason| fail(format!("node {index}: {reason}"))))
            .collect::<Result<Vec<_>>>()?;
        let Some((ParsedNode { name: first, op: Op::Input { shape }, inputs: None }, rest)) = parsed.split_first()
        else {
            return Err(fail("node 0: expected op \"input\" without inputs".into()));
        };
        if first != "input" {
            return Err(fail(format!("node 0: expected the name \"input\", got {first:?}")));
        }
        let mut builder = GraphBuilder::new(name, *shape);
        let mut names: Vec<&str> = vec![first];
        for (index, node) in rest.iter().enumerate() {
            let inputs = match &node.inputs {
                None => vec![index],
                Some(wanted) => wanted
                    .iter()
                    .map(|w| {
                        let found: Option<NodeId> = names.iter().position(|n| n == w);
                        found.ok_or_else(|| fail(format!("node {}: input {w:?} is not an earlier node", node.name)))
                    })
                    .collect::<Result<Vec<_>>>()?,
            };
            builder.node(&node.name, node.op.clone(), &inputs);
            names.push(&node.name);
        }
        builder.finish()
    }
}

struct ParsedNode {
    name: String,
    op: Op,
    inputs: Option<Vec<String>>,
}

fn parse_node(value: &Value) -> Result<ParsedNode, String> {
    let mut object = value.as_object().ok_or("expected an object")?.clone();
    let name = match object.shift_remove("name") {
        Some(Value::String(name)) => name,
        other => return Err(format!("name: expected a string, got {}", other.unwrap_or(Value::Null))),
    };
    let inputs = match object.shift_remove("inputs") {
        None => None,
        Some(list) => {
            Some(serde_json::from_value(list).map_err(|_| format!("{name}: inputs: expected a list of node names"))?)
        }
    };
    let op: Op = serde_json::from_value(Value::Object(object.clone())).map_err(|e| format!("{name}: {e}"))?;
    // serde ignores unknown fields of tagged variants without content, so the keys are compared here for all.
    let known = serde_json::to_value(&op).map_err(|e| format!("{name}: {e}"))?;
    if let Some(key) = object.keys().find(|key| known.get(key.as_str()).is_none()) {
        return Err(format!("{name}: unknown field {key:?} of {}", op.kind()));
    }
    Ok(ParsedNode { name, op, inputs })
}
