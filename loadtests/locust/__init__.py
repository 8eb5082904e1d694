"""What locust is told to do."""
