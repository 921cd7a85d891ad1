//! A graph as a table for people.

use std::fmt;

use super::{Graph, Op};

impl fmt::Display for Graph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.nodes().iter().map(|n| n.name.len()).max().unwrap_or(4).max(4);
        writeln!(
            f,
            "{:width$}  {:28}  {:>14}  {:>12}  {:>10}  inputs",
            "node", "operation", "output", "MACs", "params"
        )?;
        for (id, node) in self.nodes().iter().enumerate() {
            let cost = self.node_cost(id);
            let inputs: Vec<&str> = node.inputs.iter().map(|&i| self.nodes()[i].name.as_str()).collect();
            writeln!(
                f,
                "{:width$}  {:28}  {:>14}  {:>12}  {:>10}  {}",
                node.name,
                node.op.to_string(),
                self.shape(id).to_string(),
                cost.macs,
                cost.params,
                if id > 0 && node.inputs == [id - 1] { String::new() } else { inputs.join(", ") }
            )?;
        }
        let cost = self.cost();
        write!(f, "{}: {} MACs, {} parameters, {} bytes", self.name(), cost.macs, cost.params, cost.bytes)
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Conv2d(c) => {
                write!(f, "conv {}×{}", c.kernel[0], c.kernel[1])?;
                if c.stride != [1, 1] {
                    write!(f, " /{}", c.stride[0])?;
                }
                if c.dilation != [1, 1] {
                    write!(f, " dilation {}", c.dilation[0])?;
                }
                if c.groups > 1 {
                    write!(f, " groups {}", c.groups)?;
                }
                Ok(())
            }
            Self::MaxPool(p) | Self::AvgPool(p) => {
                write!(f, "{} {}×{} /{}", self.kind(), p.kernel[0], p.kernel[1], p.stride[0])
            }
            Self::Activation { function } => {
                write!(f, "{}", serde_json::to_string(function).unwrap_or_default().trim_matches('"'))
            }
            Self::Input { .. }
            | Self::Linear { .. }
            | Self::BatchNorm { .. }
            | Self::GlobalAvgPool
            | Self::Subsample { .. }
            | Self::PadChannels { .. }
            | Self::Add
            | Self::Scale
            | Self::Concat
            | Self::Flatten
            | Self::Dropout { .. } => f.write_str(self.kind()),
        }
    }
}
