//! Differentiable operations that candle lacks or does slowly, with CPU kernels and a tensor-op path for CUDA.
