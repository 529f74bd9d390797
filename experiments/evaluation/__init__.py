"""What is measured of a model, and what that costs."""
