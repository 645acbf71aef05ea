"""The Python half of each widget: what it sends, what it is told, its static picture."""
