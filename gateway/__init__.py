"""The sidecar: server, protocols, pipeline of stages, upstreams, command line."""
