"""Layer 7, the course: what its notebooks share."""
