"""Programs that use the optimizers as real training code does, in few lines each."""
