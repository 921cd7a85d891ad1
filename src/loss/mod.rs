//! Training losses on tensors, one file each.
