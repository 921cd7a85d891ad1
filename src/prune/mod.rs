//! Channel pruning: importance, masks, budgets, ADMM, surgery.
