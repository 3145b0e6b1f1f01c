"""What limits mean for one call: reserved, counted, settled, and told."""
