"""What is remembered outside a request: stores, ledgers, response and prefix caches."""
