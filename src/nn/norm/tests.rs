use candle_core::{DType, Device, Var};

use rayon::prelude::*;

use super::*;
use crate::nn::testing::{
    ALL_ACTIVATIONS, BACKENDS, Check, F32_TOLERANCE, F64_TOLERANCE, assert_close, check_frozen, naive, on_both, random,
};

const EPS: f64 = 1e-3;

fn norm<'a>(weight: &'a Tensor, bias: &'a Tensor, activation: Option<Activation>) -> BatchNorm<'a> {
    BatchNorm { weight, bias, eps: EPS, activation }
}

fn activations() -> impl Iterator<Item = Option<Activation>> {
    std::iter::once(None).chain(ALL_ACTIVATIONS.map(Some))
}

#[test]
fn training_gradients_match_central_differences() {
    for (n, channels, [h, w]) in [(2, 3, [3, 5]), (1, 1, [2, 2]), (3, 17, [1, 1]), (2, 5, [2, 3])] {
        for (backend, function) in BACKENDS.into_iter().flat_map(|b| activations().map(move |a| (b, a))) {
            let x = backend.from_nchw(&random(&[n, channels, h, w], 11)).unwrap();
            let args = [x, random(&[channels], 12), random(&[channels], 13)];
            Check::new(&format!("{backend:?} {function:?}"))
                .gradients(&args, |t| Ok(batch_norm_train(backend, &t[0], norm(&t[1], &t[2], function))?.0));
        }
    }
}

#[test]
fn evaluation_gradients_match_central_differences() {
    let (mean, var) = (random(&[5], 1), (random(&[5], 2).sqr().unwrap() + 0.1).unwrap());
    for (backend, function) in BACKENDS.into_iter().flat_map(|b| activations().map(move |a| (b, a))) {
        let x = backend.from_nchw(&random(&[2, 5, 3, 2], 21)).unwrap();
        let args = [x, random(&[5], 22), random(&[5], 23)];
        Check::new(&format!("{backend:?} {function:?}"))
            .gradients(&args, |t| batch_norm_eval(backend, &t[0], norm(&t[1], &t[2], function), &mean, &var));
    }
}

#[test]
fn values_and_statistics_match_the_definition() {
    let (n, c, h, w) = (3, 5, 4, 7);
    let (x, weight, bias) = (random(&[n, c, h, w], 1), random(&[c], 2), random(&[c], 3));
    let (values, count) = (naive::values(&x), (n * h * w) as f64);
    let of = |c0: usize| values.iter().enumerate().filter(move |(i, _)| i / (h * w) % c == c0).map(|(_, v)| *v);
    let mean: Vec<f64> = (0..c).map(|c0| of(c0).sum::<f64>() / count).collect();
    let var: Vec<f64> = (0..c).map(|c0| of(c0).map(|v| (v - mean[c0]).powi(2)).sum::<f64>() / count).collect();
    let (weights, biases) = (naive::values(&weight), naive::values(&bias));
    let expected = naive::build([n, c, h, w], |[i, j, y, z]| {
        let v = values[((i * c + j) * h + y) * w + z];
        (v - mean[j]) / (var[j] + EPS).sqrt() * weights[j] + biases[j]
    });
    for y in on_both(&x, |b, x| Ok(batch_norm_train(b, x, norm(&weight, &bias, None))?.0)) {
        assert_close("batch_norm", &y, &expected, F64_TOLERANCE);
    }
    for backend in BACKENDS {
        let x = backend.from_nchw(&x).unwrap();
        let (y, stats) = batch_norm_train(backend, &x, norm(&weight, &bias, None)).unwrap();
        let unbiased: Vec<f64> = var.iter().map(|v| v * count / (count - 1.0)).collect();
        assert_close("mean", &stats.mean, &Tensor::new(mean.as_slice(), x.device()).unwrap(), F64_TOLERANCE);
        assert_close("var", &stats.var, &Tensor::new(unbiased.as_slice(), x.device()).unwrap(), F64_TOLERANCE);
        let biased = Tensor::new(var.as_slice(), x.device()).unwrap();
        let again = batch_norm_eval(backend, &x, norm(&weight, &bias, None), &stats.mean, &biased).unwrap();
        assert_close("evaluation with the batch's moments", &again, &y, F64_TOLERANCE);
    }
}

/// Several blocks, and a mean a thousand times the deviation: single precision must survive both.
#[test]
fn large_single_precision_batches_match_double_precision() {
    for channels in [1, 16, 96, 300] {
        let x = (random(&[2, channels, 60, 61], 5) + 1000.0).unwrap().to_dtype(DType::F32).unwrap();
        let exact = x.to_dtype(DType::F64).unwrap();
        let (weight, bias) = (random(&[channels], 6), random(&[channels], 7));
        let run = |x: &Tensor| {
            let vars = [x, &weight, &bias].map(|t| Var::from_tensor(&t.to_dtype(x.dtype()).unwrap()).unwrap());
            let x = Backend::Kernels.from_nchw(&vars[0]).unwrap();
            let norm = norm(&vars[1], &vars[2], Some(Activation::Silu));
            let (y, stats) = batch_norm_train(Backend::Kernels, &x, norm).unwrap();
            let direction = random(y.dims(), 8).to_dtype(y.dtype()).unwrap();
            let grads = (&y * direction).unwrap().sum_all().unwrap().backward().unwrap();
            let mut all = vec![y.detach(), stats.mean, stats.var];
            all.extend(vars.iter().map(|v| grads.get(v).unwrap().clone()));
            all
        };
        let names = ["y", "mean", "var", "dx", "dweight", "dbias"];
        // The centred value keeps three digits fewer than the input has.
        for (name, (a, b)) in names.iter().zip(run(&x).iter().zip(&run(&exact))) {
            assert_close(&format!("{name} with {channels} channels"), a, b, 50.0 * F32_TOLERANCE);
        }
    }
}

#[test]
fn one_value_per_channel_has_finite_statistics_and_no_input_gradient() {
    for backend in BACKENDS {
        let x = Var::from_tensor(&backend.from_nchw(&random(&[1, 3, 1, 1], 1)).unwrap()).unwrap();
        let (weight, bias) = (random(&[3], 2), random(&[3], 3));
        let (y, stats) = batch_norm_train(backend, &x, norm(&weight, &bias, None)).unwrap();
        assert_close("output", &y.flatten_all().unwrap(), &bias, F64_TOLERANCE);
        assert_eq!(naive::values(&stats.var), [0.0; 3]);
        let grads = y.backward().unwrap();
        assert!(naive::values(grads.get(&x).unwrap()).iter().all(|v| v.abs() < F64_TOLERANCE));
    }
}

#[test]
fn frozen_arguments_get_no_gradient_and_statistics_no_tape() {
    let args = [random(&[2, 3, 2, 4], 1), random(&[4], 2), random(&[4], 3)];
    let (mean, var) = (random(&[4], 4), random(&[4], 5).sqr().unwrap());
    check_frozen(&args, |t| Ok(batch_norm_train(Backend::Kernels, &t[0], norm(&t[1], &t[2], None))?.0));
    check_frozen(&args, |t| batch_norm_eval(Backend::Kernels, &t[0], norm(&t[1], &t[2], None), &mean, &var));
    for backend in BACKENDS {
        let x = Var::from_tensor(&backend.from_nchw(&random(&[2, 4, 3, 3], 1)).unwrap()).unwrap();
        let (_, stats) = batch_norm_train(backend, &x, norm(&args[1], &args[2], None)).unwrap();
        assert!(!stats.mean.track_op() && !stats.var.track_op());
    }
}

#[test]
fn two_threads_give_the_same_bytes_twice() {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
    let run = || {
        let x = Var::from_tensor(&random(&[4, 33, 31, 24], 1).to_dtype(DType::F32).unwrap()).unwrap();
        let [weight, bias] =
            [2, 3].map(|seed| Var::from_tensor(&random(&[24], seed).to_dtype(DType::F32).unwrap()).unwrap());
        let norm = norm(&weight, &bias, Some(Activation::Relu));
        let (y, _) = batch_norm_train(Backend::Kernels, &x, norm).unwrap();
        let grads = y.sqr().unwrap().sum_all().unwrap().backward().unwrap();
        [x.as_tensor(), &weight, &bias].map(|v| {
            let values = grads.get(v).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
            values.into_iter().map(f32::to_bits).collect::<Vec<_>>()
        })
    };
    assert_eq!(pool.install(run), pool.install(run));
}

#[test]
fn parameters_of_another_width_are_refused() {
    let x = Tensor::zeros((1, 2, 2, 3), DType::F32, &Device::Cpu).unwrap();
    let [three, four] = [3, 4].map(|n| Tensor::zeros(n, DType::F32, &Device::Cpu).unwrap());
    let message = batch_norm_train(Backend::Kernels, &x, norm(&four, &three, None)).unwrap_err().to_string();
    assert!(message.contains("weight") && message.contains("[4]"), "{message}");
    let wrong = batch_norm_eval(Backend::Kernels, &x, norm(&three, &three, None), &three, &four);
    assert!(wrong.is_err());
}

#[test]
#[ignore = "prints timings"]
fn normalisation_beside_a_copy() {
    let (rows, channels) = (16 * 112 * 112, 96);
    let x: Vec<f32> = naive::values(&random(&[rows, channels], 1)).into_iter().map(|v| v as f32).collect();
    let (dy, weight, bias) = (x.clone(), vec![1f32; channels], vec![0.5f32; channels]);
    let gib = (4 * x.len()) as f64 / f64::from(1 << 30);
    let report = |name: &str, streams: f64, f: &dyn Fn()| {
        f();
        let seconds = (0..5).map(|_| {
            let start = std::time::Instant::now();
            f();
            start.elapsed().as_secs_f64()
        });
        let least = seconds.fold(f64::INFINITY, f64::min);
        println!("{name:<24}{:>8.1} ms{:>8.1} GiB/s", least * 1e3, streams * gib / least);
    };
    let reused = std::cell::RefCell::new(x.clone());
    report("copy, warm target", 2.0, &|| {
        reused.borrow_mut().par_chunks_mut(1 << 15).zip(x.par_chunks(1 << 15)).for_each(|(y, x)| y.copy_from_slice(x));
    });
    let copy = || host::build_rows(x.len(), 1, 1 << 15, |at, y: &mut [f32]| y.copy_from_slice(&x[at..at + y.len()]));
    report("copy, fresh target", 2.0, &|| drop(copy()));
    report("moments", 1.0, &|| drop(Moments::of(&x, channels)));
    let Moments { mean, var, .. } = Moments::of(&x, channels);
    let normaliser = Normaliser::new(&mean, &var, EPS, [&weight, &bias]);
    for function in [None, Some(Activation::Relu6), Some(Activation::Silu)] {
        println!("{function:?}");
        with_function!(function, F => {
            report("forward", 2.0, &|| drop(normaliser.forward::<F>(&x)));
            report("parameter gradients", 2.0, &|| drop(normaliser.parameter_gradients::<F>(&x, &dy)));
            let sums = normaliser.parameter_gradients::<F>(&x, &dy);
            let terms = normaliser.terms(x.len() / channels, Some(&sums));
            report("input gradient", 3.0, &|| drop(normaliser.input_gradient::<F>(&x, &dy, &terms)));
        });
    }
}
