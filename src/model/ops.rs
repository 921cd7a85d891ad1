//! What a forward pass asks of a backend.

use candle_core::Tensor;

use crate::Result;
use crate::graph::{Activation, Conv2d, Pool2d};
use crate::nn::{self, Backend, BatchStatistics, NormValues, Tape, Value};

/// A batch normalisation's arguments.
pub(super) struct Norm<V> {
    pub weight: V,
    pub bias: V,
    pub eps: f64,
    pub activation: Option<Activation>,
}

/// The operations of a network on values of one kind. Each is described where `nn` defines it.
pub(super) trait Ops {
    type Value: Clone;

    fn images(&mut self, nchw: &Tensor) -> Result<Self::Value>;
    fn parameter(&mut self, tensor: &Tensor) -> Result<Self::Value>;
    fn tensor(value: &Self::Value) -> &Tensor;
    fn conv2d(
        &mut self,
        x: &Self::Value,
        weight: &Self::Value,
        bias: Option<&Self::Value>,
        conv: &Conv2d,
        for_norm: bool,
    ) -> Result<Self::Value>;
    fn linear(&mut self, x: &Self::Value, weight: &Self::Value, bias: Option<&Self::Value>) -> Result<Self::Value>;
    fn batch_norm_train(&mut self, x: &Self::Value, norm: Norm<Self::Value>) -> Result<(Self::Value, BatchStatistics)>;
    fn batch_norm_eval(
        &mut self,
        x: &Self::Value,
        norm: Norm<Self::Value>,
        running: [&Tensor; 2],
    ) -> Result<Self::Value>;
    fn activation(&mut self, x: &Self::Value, function: Activation) -> Result<Self::Value>;
    fn max_pool2d(&mut self, x: &Self::Value, pool: &Pool2d) -> Result<Self::Value>;
    fn avg_pool2d(&mut self, x: &Self::Value, pool: &Pool2d) -> Result<Self::Value>;
    fn global_avg_pool(&mut self, x: &Self::Value) -> Result<Self::Value>;
    fn subsample(&mut self, x: &Self::Value, stride: [usize; 2]) -> Result<Self::Value>;
    fn pad_channels(&mut self, x: &Self::Value, before: usize, after: usize) -> Result<Self::Value>;
    fn add(&mut self, inputs: &[&Self::Value], activation: Option<Activation>) -> Result<Self::Value>;
    fn scale(&mut self, x: &Self::Value, gate: &Self::Value) -> Result<Self::Value>;
    fn concat(&mut self, inputs: &[&Self::Value]) -> Result<Self::Value>;
    fn flatten(&mut self, x: &Self::Value) -> Result<Self::Value>;
    /// Multiplies each channel of a map or vector by its mask value.
    fn mask(&mut self, x: &Self::Value, mask: &Self::Value) -> Result<Self::Value>;
}

impl Ops for Tape {
    type Value = Value;

    fn images(&mut self, nchw: &Tensor) -> Result<Value> {
        Ok(Value::constant(&Backend::Kernels.from_nchw(nchw)?))
    }
    fn parameter(&mut self, tensor: &Tensor) -> Result<Value> {
        Self::parameter(self, tensor)
    }
    fn tensor(value: &Value) -> &Tensor {
        value.tensor()
    }
    fn conv2d(
        &mut self,
        x: &Value,
        weight: &Value,
        bias: Option<&Value>,
        conv: &Conv2d,
        for_norm: bool,
    ) -> Result<Value> {
        Self::conv2d(self, x, weight, bias, conv, for_norm)
    }
    fn linear(&mut self, x: &Value, weight: &Value, bias: Option<&Value>) -> Result<Value> {
        Self::linear(self, x, weight, bias)
    }
    fn batch_norm_train(&mut self, x: &Value, norm: Norm<Value>) -> Result<(Value, BatchStatistics)> {
        Self::batch_norm_train(self, x, norm.values())
    }
    fn batch_norm_eval(&mut self, x: &Value, norm: Norm<Value>, running: [&Tensor; 2]) -> Result<Value> {
        Self::batch_norm_eval(self, x, norm.values(), running)
    }
    fn activation(&mut self, x: &Value, function: Activation) -> Result<Value> {
        Self::activation(self, x, function)
    }
    fn max_pool2d(&mut self, x: &Value, pool: &Pool2d) -> Result<Value> {
        Self::max_pool2d(self, x, pool)
    }
    fn avg_pool2d(&mut self, x: &Value, pool: &Pool2d) -> Result<Value> {
        Self::avg_pool2d(self, x, pool)
    }
    fn global_avg_pool(&mut self, x: &Value) -> Result<Value> {
        Self::global_avg_pool(self, x)
    }
    fn subsample(&mut self, x: &Value, stride: [usize; 2]) -> Result<Value> {
        Self::subsample(self, x, stride)
    }
    fn pad_channels(&mut self, x: &Value, before: usize, after: usize) -> Result<Value> {
        Self::pad_channels(self, x, before, after)
    }
    fn add(&mut self, inputs: &[&Value], activation: Option<Activation>) -> Result<Value> {
        Self::add(self, inputs, activation)
    }
    fn scale(&mut self, x: &Value, gate: &Value) -> Result<Value> {
        Self::scale(self, x, gate)
    }
    fn concat(&mut self, inputs: &[&Value]) -> Result<Value> {
        Self::concat(self, inputs)
    }
    fn flatten(&mut self, x: &Value) -> Result<Value> {
        Self::flatten(self, x)
    }
    fn mask(&mut self, x: &Value, mask: &Value) -> Result<Value> {
        Self::mask_channels(self, x, mask)
    }
}

impl Norm<Value> {
    fn values(&self) -> NormValues<'_> {
        NormValues { weight: &self.weight, bias: &self.bias, eps: self.eps, activation: self.activation }
    }
}

impl Norm<Tensor> {
    fn tensors(&self) -> nn::BatchNorm<'_> {
        nn::BatchNorm { weight: &self.weight, bias: &self.bias, eps: self.eps, activation: self.activation }
    }
}

/// candle's operations, under candle's tape.
pub(super) struct TensorOps;

const OPS: Backend = Backend::TensorOps;

impl Ops for TensorOps {
    type Value = Tensor;

    fn images(&mut self, nchw: &Tensor) -> Result<Tensor> {
        OPS.from_nchw(nchw)
    }
    fn parameter(&mut self, tensor: &Tensor) -> Result<Tensor> {
        Ok(tensor.clone())
    }
    fn tensor(value: &Tensor) -> &Tensor {
        value
    }
    fn conv2d(
        &mut self,
        x: &Tensor,
        weight: &Tensor,
        bias: Option<&Tensor>,
        conv: &Conv2d,
        _for_norm: bool,
    ) -> Result<Tensor> {
        nn::conv2d(OPS, x, weight, bias, conv)
    }
    fn linear(&mut self, x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
        nn::linear(OPS, x, weight, bias)
    }
    fn batch_norm_train(&mut self, x: &Tensor, norm: Norm<Tensor>) -> Result<(Tensor, BatchStatistics)> {
        nn::batch_norm_train(OPS, x, norm.tensors())
    }
    fn batch_norm_eval(&mut self, x: &Tensor, norm: Norm<Tensor>, [mean, var]: [&Tensor; 2]) -> Result<Tensor> {
        nn::batch_norm_eval(OPS, x, norm.tensors(), mean, var)
    }
    fn activation(&mut self, x: &Tensor, function: Activation) -> Result<Tensor> {
        nn::activation(OPS, x, function)
    }
    fn max_pool2d(&mut self, x: &Tensor, pool: &Pool2d) -> Result<Tensor> {
        nn::max_pool2d(OPS, x, pool)
    }
    fn avg_pool2d(&mut self, x: &Tensor, pool: &Pool2d) -> Result<Tensor> {
        nn::avg_pool2d(OPS, x, pool)
    }
    fn global_avg_pool(&mut self, x: &Tensor) -> Result<Tensor> {
        nn::global_avg_pool(OPS, x)
    }
    fn subsample(&mut self, x: &Tensor, stride: [usize; 2]) -> Result<Tensor> {
        nn::subsample(OPS, x, stride)
    }
    fn pad_channels(&mut self, x: &Tensor, before: usize, after: usize) -> Result<Tensor> {
        nn::pad_channels(OPS, x, before, after)
    }
    fn add(&mut self, inputs: &[&Tensor], activation: Option<Activation>) -> Result<Tensor> {
        let Some((first, rest)) = inputs.split_first() else {
            return Err(crate::Error::Shape("add: expected at least one input, got none".into()));
        };
        let sum = rest.iter().try_fold((*first).clone(), |sum, input| sum + *input)?;
        activation.map_or(Ok(sum.clone()), |function| nn::activation(OPS, &sum, function))
    }
    fn scale(&mut self, x: &Tensor, gate: &Tensor) -> Result<Tensor> {
        nn::scale(OPS, x, gate)
    }
    fn concat(&mut self, inputs: &[&Tensor]) -> Result<Tensor> {
        nn::concat(OPS, inputs)
    }
    fn flatten(&mut self, x: &Tensor) -> Result<Tensor> {
        nn::flatten(OPS, x)
    }
    fn mask(&mut self, x: &Tensor, mask: &Tensor) -> Result<Tensor> {
        if x.rank() == 4 { nn::mask_channels(OPS, x, mask) } else { Ok(x.broadcast_mul(mask)?) }
    }
}
