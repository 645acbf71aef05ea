"""Facts about the architecture: configuration, names, sites, sizes; standard library only."""
