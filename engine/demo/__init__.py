"""The demo model: a little world, the text made from it, and the network trained on that text."""
