"""Deciding which descriptors a cell gets: from flags to one frozen plan."""
