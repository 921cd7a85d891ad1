//! Images from folders, IDX files and tensors: decoding, transforms and a seeded, resumable loader.
