"""HTTP/1.1 of our own on httptools and uvloop: the server underneath and the client beside it."""
