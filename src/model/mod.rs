//! The stages of a network: teacher, student, compact model, and the training-time forward pass.
