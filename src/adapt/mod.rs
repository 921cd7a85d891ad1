//! The adaptation run: phases, loop, checkpoints, gate.
