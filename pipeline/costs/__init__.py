"""What runs cost: what was spent, what is still to be done, and a budget that ends a run."""
