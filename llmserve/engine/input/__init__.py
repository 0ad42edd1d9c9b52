"""Request -> tokens and how the answer is to be read, off the event loop. Computes nothing."""
