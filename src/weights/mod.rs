//! Safetensors in (memory-mapped, validated against a graph) and out (atomic and durable).
