"""What an operator sees of the requests: log lines and traces, beside the metrics.

`record` has the facts of one HTTP request, `watch` collects those of one generation for metrics,
log and trace, `logs` and `outline` decide what lines look like, `tracing` and `otlp` make spans.
"""
