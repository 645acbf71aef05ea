"""Measuring: accuracy with intervals, and speed side by side with a peer."""
