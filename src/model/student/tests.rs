//! What is trained, what is not, and which copies are independent.

use candle_core::Device;

use super::*;
use crate::Error;
use crate::graph::testing::random_graph;
use crate::model::testing::{random_images, random_params, values};
use crate::model::{Forward, Mode};
use crate::rng::Rng;

fn student() -> (Student, Tensor) {
    let graph = random_graph(1);
    let mut rng = Rng::new(1);
    let images = random_images(&graph, 4, &mut rng);
    (Student::new(&graph, &random_params(&graph, &mut rng)).unwrap(), images)
}

fn classifier(student: &Student) -> String {
    format!("{}.weight", student.graph().nodes()[student.graph().output()].name)
}

#[test]
fn a_frozen_classifier_is_neither_trained_nor_given_a_gradient() {
    for freeze in [false, true] {
        let (mut student, images) = student();
        if freeze {
            student = student.freeze_classifier();
        }
        let name = classifier(&student);
        let params = student.params();
        let output = Forward::new(student.graph(), &params, Mode::Train).run(&images).unwrap();
        let loss = output.logits.sqr().unwrap().mean_all().unwrap();
        let store = output.backward(&loss).unwrap();
        assert_eq!(store.get(student.vars[&name].as_tensor()).is_none(), freeze);
        assert_eq!(student.trainable().contains_key(&name), !freeze);
        assert!(store.get(student.vars["stem.weight"].as_tensor()).is_some(), "the rest is trained");
        assert!(student.trainable().keys().all(|name| !name.contains("running")));
    }
}

#[test]
fn a_scope_decides_what_is_trained_and_given_a_gradient() {
    for scope in [TrainScope::Head, TrainScope::BatchNorm, TrainScope::Last(2), TrainScope::All] {
        let (student, images) = student();
        let layers = scope.layers(student.graph());
        let student = student.train_only(scope);
        let params = student.params();
        let output = Forward::new(student.graph(), &params, Mode::Train).run(&images).unwrap();
        let loss = output.logits.sqr().unwrap().mean_all().unwrap();
        let store = output.backward(&loss).unwrap();
        assert!(!student.trainable().is_empty());
        for (name, var) in &student.vars {
            let trained = layers.contains(name.rsplit_once('.').unwrap().0);
            assert_eq!(student.trainable().contains_key(name), trained, "{scope} {name}");
            assert_eq!(store.get(var.as_tensor()).is_some(), trained, "{scope} {name}");
        }
    }
}

#[test]
fn frozen_params_leave_no_tape() {
    let (student, images) = student();
    let params = student.frozen_params();
    let output = Forward::new(student.graph(), &params, Mode::Train).run(&images).unwrap();
    assert!(!output.logits.track_op());
    assert!(output.statistics.iter().all(|(_, batch)| !batch.mean.track_op() && !batch.var.track_op()));
}

#[test]
fn a_snapshot_is_independent_and_restores() {
    let (mut student, _) = student();
    let before = student.snapshot().unwrap();
    let copied: Vec<Vec<f32>> = before.values().map(values).collect();
    for var in student.vars.values() {
        var.set(&(var.as_tensor().detach() + 1.0).unwrap()).unwrap();
    }
    let batch = |v: f32, n| Tensor::full(v, n, &Device::Cpu).unwrap();
    let width = before["stem.bn.running_mean"].dim(0).unwrap();
    let node = student.graph().nodes().iter().position(|n| n.name == "stem.bn").unwrap();
    student.set_statistics(&[(node, BatchStatistics { mean: batch(7.0, width), var: batch(8.0, width) })]);
    assert_eq!(before.values().map(values).collect::<Vec<_>>(), copied, "the snapshot moved with the student");

    let moved = student.snapshot().unwrap();
    assert_eq!(values(&moved["stem.bn.running_mean"]), vec![7.0; width]);
    assert_eq!(values(&moved["stem.bn.running_var"]), vec![8.0; width]);
    assert_ne!(values(&moved["stem.weight"]), values(&before["stem.weight"]));
    student.restore(&before).unwrap();
    let restored = student.snapshot().unwrap();
    assert!(restored.keys().eq(before.keys()));
    assert_eq!(restored.values().map(values).collect::<Vec<_>>(), copied);
}

#[test]
fn a_failed_restore_changes_nothing() {
    let (mut student, _) = student();
    let before = student.snapshot().unwrap();
    let mut other = before.iter().map(|(n, t)| (n.clone(), (t + 1.0).unwrap())).collect::<Params>();
    other.insert("stem.bn.bias".into(), Tensor::zeros(1, candle_core::DType::F32, &Device::Cpu).unwrap());
    assert!(matches!(student.restore(&other), Err(Error::Shape(m)) if m.contains("stem.bn.bias")));
    other.remove("stem.bn.bias");
    assert!(matches!(student.restore(&other), Err(Error::Shape(_))));
    assert_eq!(values(&student.snapshot().unwrap()["stem.weight"]), values(&before["stem.weight"]));
}
