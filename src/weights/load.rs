//! The parameters of a graph, read from a weights file.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};

use super::TensorFile;
use super::validate::{Match, match_params};
use crate::Result;
use crate::graph::{Graph, ParamKind};

/// Parameter tensors by the graph's names, in a fixed order.
pub type ParamTensors = BTreeMap<String, Tensor>;

/// Loads exactly the parameters of `graph` onto `device`, as `f32`.
///
/// A prefix `module.` or `model.` that every tensor of the file carries is left out, and `*.num_batches_tracked` is
/// ignored. Drop `file` afterwards: the tensors are copies.
///
/// # Errors
/// [`crate::Error::Weights`] if the file does not hold exactly these tensors (missing, unexpected and misshapen ones
/// are reported together), or if a value is not finite or a running variance negative;
/// [`crate::Error::Tensor`] if the device refuses a tensor.
pub fn load_params(file: &TensorFile, graph: &Graph, device: &Device) -> Result<ParamTensors> {
    let mut params = ParamTensors::new();
    for found in match_params(file, graph)? {
        let values = read(file, &found)?;
        params.insert(found.spec.name, Tensor::from_vec(values, found.spec.shape, device)?);
    }
    Ok(params)
}

/// Checks what [`load_params`] checks, with one tensor in memory at a time.
///
/// # Errors
/// As [`load_params`].
pub fn check_params(file: &TensorFile, graph: &Graph) -> Result<()> {
    match_params(file, graph)?.iter().try_for_each(|found| read(file, found).map(drop))
}

/// The values of one parameter, which must be possible ones.
fn read(file: &TensorFile, Match { spec, source }: &Match) -> Result<Vec<f32>> {
    let values = file.read_f32(source)?;
    match values.iter().position(|&v| v < 0.0) {
        Some(index) if spec.kind == ParamKind::RunningVar => {
            let reason = format!("expected variances of at least 0, got {} at index {index}", values[index]);
            Err(file.fault(source, reason))
        }
        _ => Ok(values),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::test_support::tiny_graph;
    use crate::weights::write_atomic;

    fn params(graph: &Graph) -> ParamTensors {
        let ones = |shape: Vec<usize>| Tensor::ones(shape, candle_core::DType::F32, &Device::Cpu).unwrap();
        graph.params().map(|spec| (spec.name, ones(spec.shape))).collect()
    }

    fn written(tensors: &ParamTensors) -> TensorFile {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t.safetensors");
        write_atomic(&path, tensors, &BTreeMap::new()).unwrap();
        TensorFile::open(&path).unwrap()
    }

    fn load(tensors: &ParamTensors, graph: &Graph) -> Result<ParamTensors> {
        load_params(&written(tensors), graph, &Device::Cpu)
    }

    fn check(tensors: &ParamTensors, graph: &Graph) -> Result<()> {
        check_params(&written(tensors), graph)
    }

    fn reason(tensors: &ParamTensors, graph: &Graph) -> String {
        load(tensors, graph).unwrap_err().to_string()
    }

    #[test]
    fn exactly_the_parameters_of_the_graph_are_loaded() {
        let graph = tiny_graph(3);
        let mut tensors = params(&graph);
        tensors.insert("bn1.num_batches_tracked".into(), Tensor::new(5_i64, &Device::Cpu).unwrap());
        let loaded = load(&tensors, &graph).unwrap();
        assert_eq!(loaded.keys().cloned().collect::<Vec<_>>(), params(&graph).into_keys().collect::<Vec<_>>());
        assert!(graph.params().all(|spec| loaded[&spec.name].dims() == spec.shape));
    }

    #[test]
    fn a_prefix_that_every_tensor_carries_is_left_out() {
        let graph = tiny_graph(3);
        for prefix in ["module.", "model.", "module.model."] {
            let wrapped = params(&graph).into_iter().map(|(name, t)| (format!("{prefix}{name}"), t)).collect();
            assert_eq!(load(&wrapped, &graph).unwrap().len(), 7, "{prefix}");
        }
        let mut mixed = params(&graph);
        let moved = mixed.remove("fc.bias").unwrap();
        mixed.insert("module.fc.bias".into(), moved);
        let got = reason(&mixed, &graph);
        assert!(got.contains("missing tensors (1 of 7): fc.bias"), "{got}");
        assert!(got.contains("unexpected tensors (1): module.fc.bias"), "{got}");
    }

    #[test]
    fn everything_wrong_is_said_at_once() {
        let graph = tiny_graph(3);
        let mut tensors = params(&graph);
        tensors.remove("bn1.weight").unwrap();
        tensors.insert("head.extra".into(), Tensor::new(&[1_f32], &Device::Cpu).unwrap());
        tensors.insert("bn1.bias".into(), Tensor::new(&[1_f32], &Device::Cpu).unwrap());
        let got = reason(&tensors, &graph);
        for expected in [
            "t.safetensors: ",
            "missing tensors (1 of 7): bn1.weight",
            "misshapen tensors (1 of 7): bn1.bias: expected [4], got [1]",
            "unexpected tensors (1): head.extra",
        ] {
            assert!(got.contains(expected), "expected {expected:?} in {got:?}");
        }
    }

    #[test]
    fn many_missing_tensors_are_counted_and_the_architecture_is_doubted() {
        let got = reason(&BTreeMap::new(), &tiny_graph(3));
        assert!(got.contains("missing tensors (7 of 7): conv1.weight, bn1.weight"), "{got}");
        assert!(got.contains("and 2 more") && got.contains("is this a tiny?"), "{got}");
    }

    #[test]
    fn another_class_count_is_recognised() {
        let got = reason(&params(&tiny_graph(31)), &tiny_graph(10));
        assert!(got.contains("fc.weight: expected [10, 4], got [31, 4]"), "{got}");
        assert!(got.contains("has 31 classes, expected 10: is --num-classes right?"), "{got}");
    }

    #[test]
    fn another_number_of_image_channels_is_recognised() {
        let graph = tiny_graph(3);
        let mut tensors = params(&graph);
        let colour = Tensor::ones((4, 3, 3, 3), candle_core::DType::F32, &Device::Cpu).unwrap();
        tensors.insert("conv1.weight".into(), colour);
        let got = reason(&tensors, &graph);
        assert!(got.contains("reads 3 image channels, expected 1"), "{got}");
    }

    #[test]
    fn impossible_values_are_refused() {
        let graph = tiny_graph(3);
        for (name, value, expected) in [
            (
                "bn1.running_var",
                -1.0,
                "tensor \"bn1.running_var\": expected variances of at least 0, got -1 at index 2",
            ),
            ("bn1.weight", f32::NAN, "tensor \"bn1.weight\": expected finite values, got NaN at index 2"),
        ] {
            let mut tensors = params(&graph);
            tensors.insert(name.into(), Tensor::new(&[1.0, 1.0, value, 1.0], &Device::Cpu).unwrap());
            let got = reason(&tensors, &graph);
            assert!(got.contains(expected), "{got}");
            assert!(check(&tensors, &graph).unwrap_err().to_string().contains(expected));
        }
        let mut tensors = params(&graph);
        tensors.insert("bn1.running_mean".into(), Tensor::new(&[-1_f32, 0.0, 0.0, 0.0], &Device::Cpu).unwrap());
        load(&tensors, &graph).unwrap();
        check(&tensors, &graph).unwrap();
    }
}
