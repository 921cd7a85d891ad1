use candle_core::{DType, Device, Var};

use super::*;
use crate::graph::Padding;
use crate::nn::testing::{
    BACKENDS, Check, F32_TOLERANCE, F64_TOLERANCE, assert_close, check_frozen, naive, on_both, random,
};

/// Batch, input channels, input size, convolution.
type Case = (usize, usize, [usize; 2], Conv2d);

fn cases() -> Vec<Case> {
    let uneven = Padding { top: 0, bottom: 1, left: 0, right: 2 };
    let mut dilated = Conv2d::new(4, 3).padding(2);
    dilated.dilation = [2, 2];
    let mut crooked = Conv2d::new(3, 3);
    crooked.kernel = [2, 3];
    crooked.stride = [2, 1];
    crooked.dilation = [1, 2];
    crooked.padding = uneven;
    let mut same = Conv2d::new(3, 3).stride(2);
    same.padding = Padding { top: 0, bottom: 1, left: 0, right: 1 };
    let mut deep_dilated = Conv2d::new(3, 3).groups(3).stride(2).padding(2);
    deep_dilated.dilation = [2, 2];
    vec![
        (1, 1, [1, 1], Conv2d::new(1, 1)),
        (2, 3, [4, 5], Conv2d::new(5, 1)),
        (2, 3, [5, 4], Conv2d::new(5, 1).stride(2)),
        (2, 4, [3, 4], Conv2d::new(6, 1).groups(2)),
        (1, 5, [1, 1], Conv2d::new(17, 3).padding(1)),
        (2, 3, [6, 5], Conv2d::new(4, 3).padding(1)),
        (2, 3, [6, 5], Conv2d::new(4, 3).stride(2).padding(1)),
        (1, 3, [8, 9], Conv2d::new(2, 5).stride(3).padding(2)),
        (2, 2, [5, 6], same),
        (1, 2, [7, 6], dilated),
        (2, 2, [5, 7], crooked),
        (2, 6, [5, 4], Conv2d::new(4, 3).stride(2).padding(1).groups(2)),
        (2, 3, [4, 4], Conv2d::new(6, 3).padding(1).groups(3)),
        (1, 1, [5, 5], Conv2d::new(1, 3).padding(1)),
        (2, 3, [6, 5], Conv2d::new(3, 3).padding(1).groups(3)),
        (2, 5, [6, 7], Conv2d::new(5, 3).stride(2).padding(1).groups(5)),
        (1, 17, [7, 6], Conv2d::new(17, 5).padding(2).groups(17)),
        (1, 37, [6, 5], Conv2d::new(37, 5).stride(2).padding(2).groups(37)),
        (2, 3, [9, 8], deep_dilated),
        (1, 3, [2, 1], Conv2d::new(3, 3).padding(1).groups(3)),
    ]
}

fn arguments((n, channels, [h, w], conv): &Case) -> [Tensor; 3] {
    let [kh, kw] = conv.kernel;
    let x = random(&[*n, *channels, *h, *w], 1);
    let weight = random(&[conv.out_channels, channels / conv.groups, kh, kw], 2);
    [x, weight, random(&[conv.out_channels], 3)]
}

fn by_definition([x, weight, bias]: &[Tensor; 3], conv: &Conv2d) -> Tensor {
    let (n, channels, h, w) = x.dims4().unwrap();
    let (inputs, outputs) = (channels / conv.groups, conv.out_channels / conv.groups);
    let [oh, ow] = conv.output_size([h, w]).unwrap();
    let [kh, kw] = conv.kernel;
    let (x, weight, bias) = (naive::values(x), naive::values(weight), naive::values(bias));
    naive::build([n, conv.out_channels, oh, ow], |[n, o, oy, ox]| {
        let mut sum = bias[o];
        for (i, ky, kx) in (0..inputs).flat_map(|i| (0..kh * kw).map(move |k| (i, k / kw, k % kw))) {
            let y = (oy * conv.stride[0] + ky * conv.dilation[0]).checked_sub(conv.padding.top);
            let column = (ox * conv.stride[1] + kx * conv.dilation[1]).checked_sub(conv.padding.left);
            if let (Some(y), Some(column)) = (y, column)
                && y < h
                && column < w
            {
                let c = o / outputs * inputs + i;
                sum += x[((n * channels + c) * h + y) * w + column] * weight[((o * inputs + i) * kh + ky) * kw + kx];
            }
        }
        sum
    })
}

#[test]
fn values_match_the_definition() {
    for case in cases() {
        let args = arguments(&case);
        let expected = by_definition(&args, &case.3);
        let ys = on_both(&args[0], |b, x| conv2d(b, x, &args[1], Some(&args[2]), &case.3));
        for (y, backend) in ys.iter().zip(BACKENDS) {
            assert_close(&format!("{backend:?} {case:?}"), y, &expected, F64_TOLERANCE);
        }
    }
}

#[test]
fn gradients_match_central_differences() {
    for case in cases() {
        for backend in BACKENDS {
            let [x, weight, bias] = arguments(&case);
            let x = backend.from_nchw(&x).unwrap();
            let check = Check::new(&format!("{backend:?} {case:?}"));
            check.gradients(&[x, weight, bias], |t| conv2d(backend, &t[0], &t[1], Some(&t[2]), &case.3));
        }
    }
}

/// Sizes that need several blocks, bands and threads.
#[test]
fn large_single_precision_convolutions_match_tensor_ops() {
    let cases: [Case; 5] = [
        (3, 24, [41, 40], Conv2d::new(40, 1)),
        (3, 48, [41, 40], Conv2d::new(24, 3).padding(1)),
        (3, 16, [41, 40], Conv2d::new(24, 3).padding(1).stride(2)),
        (3, 40, [41, 40], Conv2d::new(40, 3).padding(1).groups(40)),
        (3, 40, [41, 40], Conv2d::new(40, 5).padding(2).stride(2).groups(40)),
    ];
    for case in cases {
        let args = arguments(&case).map(|t| Var::from_tensor(&t.to_dtype(DType::F32).unwrap()).unwrap());
        let results = BACKENDS.map(|backend| {
            let x = backend.from_nchw(&args[0]).unwrap();
            let y = backend.to_nchw(&conv2d(backend, &x, &args[1], Some(&args[2]), &case.3).unwrap()).unwrap();
            let direction = random(y.dims(), 9).to_dtype(DType::F32).unwrap();
            let grads = (&y * direction).unwrap().sum_all().unwrap().backward().unwrap();
            let mut all = vec![y.detach()];
            all.extend(args.iter().map(|a| grads.get(a).unwrap().clone()));
            all
        });
        for (what, (a, b)) in ["y", "dx", "dw", "db"].iter().zip(results[0].iter().zip(&results[1])) {
            assert_close(&format!("{what} of {case:?}"), a, b, F32_TOLERANCE);
        }
    }
}

#[test]
fn frozen_arguments_get_no_gradient() {
    for groups in [1, 4] {
        let conv = Conv2d::new(4, 3).padding(1).groups(groups);
        let args = [random(&[1, 3, 3, 4], 1), random(&[4, 4 / groups, 3, 3], 2), random(&[4], 3)];
        check_frozen(&args, |t| conv2d(Backend::Kernels, &t[0], &t[1], Some(&t[2]), &conv));
        check_frozen(&args[..2], |t| conv2d(Backend::Kernels, &t[0], &t[1], None, &conv));
    }
}

#[test]
fn two_threads_give_the_same_bytes_twice() {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
    let cases = [
        (2, 16, [30, 31], Conv2d::new(24, 3).padding(1)),
        (2, 16, [30, 31], Conv2d::new(24, 1)),
        (2, 24, [30, 31], Conv2d::new(24, 3).padding(1).groups(24)),
    ];
    for case in cases {
        let run = || {
            let [x, weight, _] = arguments(&case).map(|t| Var::from_tensor(&t.to_dtype(DType::F32).unwrap()).unwrap());
            let y = conv2d(Backend::Kernels, &Backend::Kernels.from_nchw(&x).unwrap(), &weight, None, &case.3).unwrap();
            let grads = y.sqr().unwrap().sum_all().unwrap().backward().unwrap();
            let bits = |t: &Tensor| {
                let values = t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
                values.into_iter().map(f32::to_bits).collect::<Vec<_>>()
            };
            [bits(&y), bits(grads.get(&x).unwrap()), bits(grads.get(&weight).unwrap())]
        };
        assert_eq!(pool.install(run), pool.install(run), "{case:?}");
    }
}

#[test]
fn linear_matches_a_matrix_product_with_its_gradients() {
    let (x, weight, bias) = (random(&[3, 7], 1), random(&[5, 7], 2), random(&[5], 3));
    let expected = x.matmul(&weight.t().unwrap()).unwrap().broadcast_add(&bias).unwrap();
    for backend in BACKENDS {
        assert_close("linear", &linear(backend, &x, &weight, Some(&bias)).unwrap(), &expected, F64_TOLERANCE);
        let args = [x.clone(), weight.clone(), bias.clone()];
        Check::new("linear").gradients(&args, |t| linear(backend, &t[0], &t[1], Some(&t[2])));
        assert!(matches!(linear(backend, &x, &bias, None), Err(Error::Shape(_))));
    }
}

#[test]
fn misfits_are_refused_by_name() {
    let x = Tensor::zeros((1, 4, 4, 3), DType::F32, &Device::Cpu).unwrap();
    let weight = Tensor::zeros((2, 3, 3, 3), DType::F32, &Device::Cpu).unwrap();
    let refuse = |conv: Conv2d| match conv2d(Backend::Kernels, &x, &weight, None, &conv) {
        Err(Error::Shape(message)) => assert!(message.starts_with("conv2d"), "{message}"),
        other => panic!("expected a shape error, got {other:?}"),
    };
    refuse(Conv2d::new(4, 3));
    refuse(Conv2d::new(2, 5));
    refuse(Conv2d::new(2, 3).groups(2));
    refuse(Conv2d::new(2, 3).groups(0));
}
