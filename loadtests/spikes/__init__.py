"""Spikes: what a Black Friday does to a Clickdam of its own, said once for k6 and for locust."""
