"""What the dialects and the library have in common: ranges, formats, refusals in words, folding.

Pure: knows no HTTP and no model.
"""
