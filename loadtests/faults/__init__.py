"""Faults on purpose: what a network and a killed server do to us, in one process and without root."""
