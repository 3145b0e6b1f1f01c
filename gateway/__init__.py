"""The sidecar: server, protocols, pipeline, upstreams, command line. Reaches into the engine through two doors only."""

__version__ = "0.1.0"
