"""Layer 2, where weights live: the store protocol and its stores."""
