"""Which prefixes are known and where: in KV cells, in host memory, on disk."""
