"""The microworld: a small shop, weather, units and a queue, with exact tasks and exact grading."""
