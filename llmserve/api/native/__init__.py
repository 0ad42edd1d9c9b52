"""The native dialect: POST /inference. Strict: what it does not know it refuses by name."""
