//! The architecture as data: a graph of nodes over a closed set of operations. No tensors here.
