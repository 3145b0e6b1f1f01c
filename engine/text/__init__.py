"""Text on both sides of the model: tokenizer, chat template, detokeniser, stop strings. Imports no torch."""
