//! Optimisers with savable state.
