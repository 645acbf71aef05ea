"""Layer 4, running the network: events, taps, sampling, generation, sessions."""
