"""Trains and evaluates the detector `cascade`."""
