"""The named optimizers: each a recipe of pieces that shows its paper's update at a glance."""
