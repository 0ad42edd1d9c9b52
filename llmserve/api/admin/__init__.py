"""What operators ask: models and their state, health, metrics. No generation."""
