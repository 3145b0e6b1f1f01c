"""The decoder families and how a Hugging Face directory becomes one: configuration, rotary angles, weights, layers."""
