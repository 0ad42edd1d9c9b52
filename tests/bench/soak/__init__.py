"""Mixed load on a real server, with faults, for as long as one likes; and whether it was right."""
