use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use super::super::testing::{images, model, registry};
use super::*;
use crate::model::{Runner, RunnerConfig};
use crate::serve::error::Code;
use crate::serve::models::Unanswered;

fn name() -> ModelName {
    "digits".parse().unwrap()
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(future)
}

fn code(outcome: Result<super::super::Reply, Unanswered>) -> Code {
    match outcome.unwrap_err() {
        Unanswered::Refused(refusal) => refusal.code,
        Unanswered::Retired => panic!("expected a refusal, the version is retired"),
    }
}

/// What an engine of its own answers.
fn expected(seed: u64, images: &[f32]) -> Vec<f32> {
    let engine = crate::engine::EngineConfig { threads: 1, max_batch: 2, ..Default::default() };
    let config = RunnerConfig { device: candle_core::Device::Cpu, precision: Default::default(), engine };
    Runner::new(model(seed), &config).unwrap().logits(images).unwrap()
}

#[test]
fn requests_of_any_size_get_their_own_rows() {
    let registry = registry(100);
    registry.deploy(&name(), Version(1), || Ok(model(1))).unwrap();
    let served = registry.get("digits").unwrap();
    let inputs: Vec<Vec<f32>> = (1..6).map(|count| images(count, count as u64)).collect();
    block_on(async {
        // All wait at once, so that they share batches.
        let asked: Vec<_> = inputs.iter().enumerate().map(|(i, x)| served.infer(x.clone(), i + 1, soon())).collect();
        let mut tasks = Vec::new();
        for future in asked {
            tasks.push(Box::pin(future));
        }
        for (task, input) in tasks.iter_mut().zip(&inputs) {
            assert_eq!(task.await.unwrap().logits, expected(1, input));
        }
    });
    assert!(served.name == name() && registry.metrics().model(&name()).batch_images.count() > 0);
}

#[test]
fn versions_change_under_load_without_a_failed_request() {
    let registry = registry(100);
    registry.deploy(&name(), Version(1), || Ok(model(1))).unwrap();
    let (stop, answers) = (AtomicBool::new(false), AtomicU64::new(0));
    let input = images(1, 9);
    let want = [1, 2].map(|seed| expected(seed, &input));
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let served = registry.get("digits").unwrap();
                    match block_on(served.infer(input.clone(), 1, soon())) {
                        Ok(reply) => {
                            assert_eq!(reply.logits, want[(served.version.0 as usize + 1) % 2]);
                            answers.fetch_add(1, Ordering::Relaxed);
                        }
                        Err(Unanswered::Retired) => {}
                        Err(Unanswered::Refused(refusal)) => panic!("{refusal}"),
                    }
                }
            });
        }
        for version in 2..20 {
            registry.deploy(&name(), Version(version), || Ok(model((version + 1) % 2 + 1))).unwrap();
            let before = answers.load(Ordering::Relaxed);
            while answers.load(Ordering::Relaxed) < before + 3 {
                std::thread::yield_now();
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert_eq!(registry.get("digits").unwrap().version, Version(19));
    assert_eq!(registry.metrics().model(&name()).loaded.get(), 19);
}

#[test]
fn what_cannot_serve_is_refused_and_the_old_version_stays() {
    let registry = registry(100);
    registry.deploy(&name(), Version(1), || Ok(model(1))).unwrap();
    let unreadable = registry.deploy(&name(), Version(2), || Err(Error::Config("gone".into())));
    assert_eq!(unreadable.unwrap_err().to_string(), "gone");
    let panicking = registry.deploy(&name(), Version(3), || panic!("as a test"));
    assert!(panicking.unwrap_err().to_string().contains("panicked"));
    let broken = registry.deploy(&name(), Version(4), || {
        let mut model = model(1);
        for tensor in model.params.values_mut() {
            *tensor = (tensor.clone() * f64::NAN).unwrap();
        }
        Ok(model)
    });
    assert!(broken.unwrap_err().to_string().contains("smoke inference"));
    let served = registry.get("digits").unwrap();
    assert_eq!(served.version, Version(1));
    block_on(served.infer(images(1, 1), 1, soon())).unwrap();
    assert_eq!(registry.metrics().model(&name()).refused.get(), 3);
}

#[test]
fn a_withdrawn_version_answers_no_more_and_its_memory_is_released() {
    static RELEASED: AtomicU64 = AtomicU64::new(0);
    let template = registry(100);
    let settings = template.settings.read().unwrap().clone();
    fn count() {
        RELEASED.fetch_add(1, Ordering::Relaxed);
    }
    let registry = Registry::new(settings, Arc::default(), count);
    registry.deploy(&name(), Version(1), || Ok(model(1))).unwrap();
    let served = registry.get("digits").unwrap();
    assert!(registry.withdraw(&name()) && !registry.withdraw(&name()));
    assert_eq!(RELEASED.load(Ordering::Relaxed), 1, "its engine is freed before the call returns");
    assert!(registry.get("digits").is_none() && registry.all().is_empty());
    assert_eq!(block_on(served.infer(images(1, 1), 1, soon())), Err(Unanswered::Retired));
}

#[test]
fn too_much_too_late_and_too_large_are_told_apart() {
    let registry = registry(3);
    registry.deploy(&name(), Version(1), || Ok(model(1))).unwrap();
    let served = registry.get("digits").unwrap();
    block_on(async {
        assert_eq!(code(served.infer(images(4, 1), 4, soon()).await), Code::InvalidParameter);
        assert_eq!(code(served.infer(images(1, 1), 1, Instant::now()).await), Code::DeadlineExceeded);
        let huge = vec![f32::MAX; super::super::testing::PER_IMAGE];
        assert_eq!(code(served.infer(huge, 1, soon()).await), Code::NotFinite);
        served.probe(soon()).await.unwrap();
    });
    // Many at once, before the engine has answered the first.
    let refused = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..20 {
                    match block_on(served.infer(images(3, 1), 3, soon())) {
                        Ok(_) => {}
                        Err(Unanswered::Refused(refusal)) => {
                            assert_eq!(refusal.code, Code::Overloaded, "{refusal}");
                            assert!(refusal.retry_after >= Some(1));
                            refused.fetch_add(1, Ordering::Relaxed);
                        }
                        Err(Unanswered::Retired) => panic!("nothing was retired"),
                    }
                }
            });
        }
    });
    assert!(refused.load(Ordering::Relaxed) > 0);
    assert_eq!(registry.metrics().model(&name()).overloaded.get(), refused.load(Ordering::Relaxed));
}
