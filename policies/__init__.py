"""Decisions without I/O: plain objects whose clock and chance are arguments, and the YAML that configures them."""
