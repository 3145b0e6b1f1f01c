"""The in-process LLM engine: scheduler, paged blocks, models and runners. Imports nothing of the other rooms."""
