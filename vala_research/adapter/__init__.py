"""GE-Adapter's temporal adapter."""
