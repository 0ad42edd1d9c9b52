"""Bytes for people, in one way everywhere."""


def human(size_bytes: int) -> str:
    """`size_bytes` in decimal units, as disks and the hub count them: "98 MB", "4.7 GB"."""
    if size_bytes < 1000:
        return f"{size_bytes} B"
    size = float(size_bytes)
    for unit in ("kB", "MB", "GB"):
        size /= 1000
        if size < 999.5:
            return f"{size:.1f} {unit}" if size < 9.95 else f"{size:.0f} {unit}"
    return f"{size / 1000:.1f} TB"
