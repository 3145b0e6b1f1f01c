"""What is told of requests: records, metrics, the access log."""
