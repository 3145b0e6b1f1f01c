"""Decoder families read from Hugging Face directories."""
