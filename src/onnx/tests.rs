//! The structure of the files; that other programs agree with them is tested in `tests/cli/export.rs`.

use candle_core::{DType, Device, Tensor};

use super::*;
use crate::graph::{Activation, Conv2d, GraphBuilder, Op, Padding, Pool2d};

/// A map through one operation to logits; the operation is node 1, called "op".
fn one(op: Op) -> Graph {
    let mut b = GraphBuilder::new("one", [2, 6, 6]);
    let x = b.node("op", op, &[0]);
    b.classifier("fc", 3, x);
    b.finish().unwrap()
}

/// Parameters that count up from 0, so that each value is known.
fn counting(graph: &Graph) -> ParamTensors {
    let values = |shape: &[usize]| (0..shape.iter().product()).map(|i: usize| i as f32).collect::<Vec<_>>();
    let tensor = |shape: &[usize]| Tensor::from_vec(values(shape), shape, &Device::Cpu).unwrap();
    graph.params().map(|spec| (spec.name, tensor(&spec.shape))).collect()
}

/// Writes `graph` and reads the bytes again.
fn exported(graph: &Graph) -> proto::Model {
    let bytes = export(graph, &counting(graph), &ExportInfo::default()).unwrap();
    proto::Model::decode(bytes.as_slice()).unwrap()
}

fn exported_graph(graph: &Graph) -> proto::Graph {
    exported(graph).graph.unwrap()
}

/// The nodes as `out = Op(inputs)`, the attributes behind.
fn printed(graph: &proto::Graph) -> Vec<String> {
    let attribute = |a: &proto::Attribute| match (a.f, a.i, a.kind) {
        (Some(f), None, 1) => format!(" {}={f:.4}", a.name),
        (None, Some(i), 2) => format!(" {}={i}", a.name),
        (None, None, 7) => format!(" {}={:?}", a.name, a.ints),
        _ => panic!("value and kind of an attribute disagree: {a:?}"),
    };
    let line = |n: &proto::Node| {
        let attributes: String = n.attribute.iter().map(attribute).collect();
        format!("{} = {}({}){attributes}", n.output.join(", "), n.op_type, n.input.join(", "))
    };
    graph.node.iter().map(line).collect()
}

fn constant<'a>(graph: &'a proto::Graph, name: &str) -> &'a proto::Tensor {
    graph.initializer.iter().find(|t| t.name == name).unwrap_or_else(|| panic!("no constant {name}"))
}

fn integers(graph: &proto::Graph, name: &str) -> Vec<i64> {
    let tensor = constant(graph, name);
    assert_eq!(tensor.data_type, proto::INT64);
    tensor.raw_data.as_ref().unwrap().as_chunks().0.iter().map(|bytes| i64::from_le_bytes(*bytes)).collect()
}

fn floats(graph: &proto::Graph, name: &str) -> Vec<f32> {
    let tensor = constant(graph, name);
    assert_eq!(tensor.data_type, proto::FLOAT);
    tensor.raw_data.as_ref().unwrap().as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

#[test]
fn every_operation_has_its_operator_and_attributes() {
    let padding = Padding { top: 0, bottom: 1, left: 2, right: 3 };
    let conv = Conv2d { padding, dilation: [2, 1], stride: [1, 2], groups: 2, ..Conv2d::new(4, 3) };
    let pool = Pool2d { kernel: [4, 4], stride: [2, 1], padding };
    let act = |function| Op::Activation { function };
    for (op, expected) in [
        (
            Op::Conv2d(conv.with_bias()),
            vec![
                "op/out = Conv(input, op.weight, op.bias) kernel_shape=[3, 3] strides=[1, 2] pads=[0, 2, 1, 3] \
                 dilations=[2, 1] group=2",
            ],
        ),
        (
            Op::Conv2d(Conv2d::new(4, 1)),
            vec![
                "op/out = Conv(input, op.weight) kernel_shape=[1, 1] strides=[1, 1] pads=[0, 0, 0, 0] \
                 dilations=[1, 1] group=1",
            ],
        ),
        (
            Op::BatchNorm { eps: 1e-3 },
            vec![
                "op/out = BatchNormalization(input, op.weight, op.bias, op.running_mean, op.running_var) epsilon=0.0010",
            ],
        ),
        (act(Activation::Relu), vec!["op/out = Relu(input)"]),
        (act(Activation::Relu6), vec!["op/out = Clip(input, op.min, op.max)"]),
        (act(Activation::Sigmoid), vec!["op/out = Sigmoid(input)"]),
        (act(Activation::HardSigmoid), vec!["op/out = HardSigmoid(input) alpha=0.1667 beta=0.5000"]),
        (act(Activation::Silu), vec!["op/gate = Sigmoid(input)", "op/out = Mul(input, op/gate)"]),
        (
            act(Activation::HardSwish),
            vec!["op/gate = HardSigmoid(input) alpha=0.1667 beta=0.5000", "op/out = Mul(input, op/gate)"],
        ),
        (Op::MaxPool(pool), vec!["op/out = MaxPool(input) kernel_shape=[4, 4] strides=[2, 1] pads=[0, 2, 1, 3]"]),
        (
            Op::AvgPool(pool),
            vec![
                "op/out = AveragePool(input) kernel_shape=[4, 4] strides=[2, 1] pads=[0, 2, 1, 3] count_include_pad=1",
            ],
        ),
        (Op::Subsample { stride: [2, 3] }, vec!["op/out = Slice(input, op.starts, op.ends, op.axes, op.steps)"]),
        (Op::PadChannels { before: 1, after: 2 }, vec!["op/out = Pad(input, op.pads)"]),
    ] {
        let lines = printed(&exported_graph(&one(op)));
        assert_eq!(lines[..expected.len()], expected);
        assert_eq!(
            lines[expected.len()..],
            [
                "global_pool/out = GlobalAveragePool(op/out)",
                "flatten/out = Flatten(global_pool/out) axis=1",
                "logits = Gemm(flatten/out, fc.weight, fc.bias) transB=1"
            ]
        );
    }
}

#[test]
fn operations_on_several_inputs_read_them_in_order() {
    let mut b = GraphBuilder::new("joined", [2, 4, 4]);
    let one = b.conv("one", Conv2d::new(2, 1), 0);
    let two = b.conv("two", Conv2d::new(2, 1), 0);
    let sum = b.node("sum", Op::Add, &[0, one, two]);
    let gate = b.node("gate", Op::GlobalAvgPool, &[sum]);
    let scaled = b.node("scaled", Op::Scale, &[sum, gate]);
    let joined = b.node("joined", Op::Concat, &[scaled, 0]);
    b.classifier("fc", 3, joined);
    let graph = exported_graph(&b.finish().unwrap());
    assert_eq!(
        printed(&graph)[2..7],
        [
            "sum/sum0 = Add(input, one/out)",
            "sum/out = Add(sum/sum0, two/out)",
            "gate/out = GlobalAveragePool(sum/out)",
            "scaled/out = Mul(sum/out, gate/out)",
            "joined/out = Concat(scaled/out, input) axis=1"
        ]
    );
}

#[test]
fn constants_hold_the_bounds_and_parameters() {
    let graph = exported_graph(&one(Op::Subsample { stride: [2, 3] }));
    assert_eq!(integers(&graph, "op.starts"), [0, 0]);
    assert_eq!(integers(&graph, "op.ends"), [i64::MAX; 2]);
    assert_eq!(integers(&graph, "op.axes"), [2, 3]);
    assert_eq!(integers(&graph, "op.steps"), [2, 3]);
    assert_eq!(constant(&graph, "fc.weight").dims, [3, 2]);
    assert_eq!(floats(&graph, "fc.weight"), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);

    let graph = exported_graph(&one(Op::PadChannels { before: 1, after: 2 }));
    assert_eq!(integers(&graph, "op.pads"), [0, 1, 0, 0, 0, 2, 0, 0]);

    let graph = exported_graph(&one(Op::Activation { function: Activation::Relu6 }));
    assert_eq!((floats(&graph, "op.min"), floats(&graph, "op.max")), (vec![0.0], vec![6.0]));
    assert!(constant(&graph, "op.min").dims.is_empty());
}

#[test]
fn dropout_is_left_out() {
    let lines = printed(&exported_graph(&one(Op::Dropout { p: 0.5 })));
    assert_eq!(lines[0], "global_pool/out = GlobalAveragePool(input)");
    assert_eq!(lines.len(), 3);
}

#[test]
fn the_file_says_what_goes_in_and_out_and_who_made_it() {
    let graph = one(Op::GlobalAvgPool);
    let metadata = BTreeMap::from([("class_names".to_string(), "[\"a\",\"b\"]".to_string())]);
    let info = ExportInfo { producer: "secateur".into(), version: "1.2.3".into(), metadata };
    let bytes = export(&graph, &counting(&graph), &info).unwrap();
    assert_eq!(bytes, export(&graph, &counting(&graph), &info).unwrap());
    let model = proto::Model::decode(bytes.as_slice()).unwrap();
    assert_eq!((model.producer_name.as_str(), model.producer_version.as_str()), ("secateur", "1.2.3"));
    assert_eq!((model.ir_version, model.opset_import[0].version), (8, 17));
    assert_eq!(model.metadata_props.len(), 1);
    assert_eq!(model.metadata_props[0].key, "class_names");
    assert_eq!(model.metadata_props[0].value.as_deref(), Some("[\"a\",\"b\"]"));

    let network = model.graph.unwrap();
    let dims = |value: &proto::ValueInfo| -> Vec<String> {
        let tensor = value.value_type.as_ref().unwrap().tensor.as_ref().unwrap();
        assert_eq!(tensor.elem_type, proto::FLOAT);
        let dim = |d: &proto::Dim| d.param.clone().unwrap_or_else(|| d.value.unwrap().to_string());
        tensor.shape.as_ref().unwrap().dim.iter().map(dim).collect()
    };
    assert_eq!((network.input[0].name.as_str(), dims(&network.input[0])), ("input", to_strings(["N", "2", "6", "6"])));
    assert_eq!((network.output[0].name.as_str(), dims(&network.output[0])), ("logits", to_strings(["N", "3"])));
    assert_eq!(network.name, "one");
}

fn to_strings<const N: usize>(parts: [&str; N]) -> Vec<String> {
    parts.map(str::to_string).to_vec()
}

#[test]
fn node_names_cannot_clash_with_values_and_constants() {
    let mut b = GraphBuilder::new("clash", [2, 4, 4]);
    let relu = |b: &mut GraphBuilder, name: &str, x| b.activation(name, Activation::Silu, x);
    let mut x = b.conv("a", Conv2d::new(2, 1), 0);
    for name in ["logits", "a.weight", "a/out", "a/out/gate", "a/gate"] {
        x = relu(&mut b, name, x);
    }
    b.classifier("fc", 3, x);
    let graph = exported_graph(&b.finish().unwrap());
    let values = graph.node.iter().flat_map(|n| &n.output).chain(graph.initializer.iter().map(|t| &t.name));
    let mut names: Vec<&String> = values.chain(graph.input.iter().map(|v| &v.name)).collect();
    let count = names.len();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), count);
    // Every name that is read exists, and is written before.
    let mut known: Vec<&String> = graph.initializer.iter().map(|t| &t.name).collect();
    known.push(&graph.input[0].name);
    for node in &graph.node {
        assert!(node.input.iter().all(|name| known.contains(&name)), "{node:?}");
        known.extend(&node.output);
    }
}

#[test]
fn parameters_of_other_types_are_written_as_f32() {
    let graph = one(Op::GlobalAvgPool);
    let params = counting(&graph).into_iter().map(|(name, t)| (name, t.to_dtype(DType::F64).unwrap())).collect();
    let info = ExportInfo::default();
    assert_eq!(export(&graph, &params, &info).unwrap(), export(&graph, &counting(&graph), &info).unwrap());
}

#[test]
fn parameters_that_do_not_fit_are_named() {
    let graph = one(Op::GlobalAvgPool);
    let mut params = counting(&graph);
    let weight = params.insert("fc.weight".into(), params["fc.bias"].clone()).unwrap();
    let got = export(&graph, &params, &ExportInfo::default()).unwrap_err();
    assert!(got.to_string().contains("one: parameter fc.weight has shape [3], expected [3, 2]"), "{got}");
    params.insert("fc.weight".into(), weight);
    params.remove("fc.bias");
    let got = export(&graph, &params, &ExportInfo::default()).unwrap_err();
    assert!(matches!(&got, Error::Shape(reason) if reason.contains("fc.bias is missing")), "{got}");
}

#[test]
fn a_network_too_large_for_the_format_is_refused_before_anything_is_built() {
    let mut b = GraphBuilder::new("huge", [1 << 14, 1, 1]);
    b.classifier("fc", 1 << 15, 0);
    let got = export(&b.finish().unwrap(), &ParamTensors::new(), &ExportInfo::default()).unwrap_err();
    assert!(matches!(&got, Error::Config(reason) if reason.contains("2147614720 bytes")), "{got}");
}
