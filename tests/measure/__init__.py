"""What is measured, and what is chosen by it."""
