"""Cells by content address: CIDs, UnixFS and the embedded blockstore."""
