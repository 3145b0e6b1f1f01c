"""What would become of requests: of one that is asked about, and of a whole log under another policy."""
