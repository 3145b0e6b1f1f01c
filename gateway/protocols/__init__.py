"""The wire formats that callers speak, translated to and from the central types at the edge."""
