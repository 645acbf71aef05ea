"""Looking at a run: arrays folded from events, and what can be computed from them."""
