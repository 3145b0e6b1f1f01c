"""Who calls: keys and signed tokens, in one order, each leading to a tenant or to the same 401."""
