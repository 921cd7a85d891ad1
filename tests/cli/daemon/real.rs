//! The whole thing on real images.
