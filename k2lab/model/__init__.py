"""Layer 3, the network: the paper in one file, its cache, loading."""
