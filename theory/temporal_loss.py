"""The temporal loss is smooth where no feature is zero, and nowhere else: C.1 to C.3."""
