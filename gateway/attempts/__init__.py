"""Sending to upstreams: attempts, what follows when they fail or are late, and how their upstreams recover."""
