"""Where an attempt can be sent: the in-process engine and OpenAI-compatible HTTP servers."""
