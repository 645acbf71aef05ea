"""Layer 1, numbers: INT4 groups, linear maps, rotary positions, shards."""
